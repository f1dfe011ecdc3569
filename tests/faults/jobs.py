"""The real main job on a few hundred photographs, as processes that tests kill, stop and start again."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from data.store import Store
from infra.stack_site import get_body
from infra.store import open_store
from tests.conftest import REPOSITORY

MAIN_JOB, PRETRAIN_ONLY = "pipelines/pretrain_finetune.py", "tests/faults/pretrain_driver.py"
PRETRAIN_CLASSES, FINETUNE_CLASSES = ("bird", "cat", "deer", "dog"), ("ship", "truck")
NUM_TRAIN, NUM_TEST = 80, 12
"""Images of each class."""
NUM_EPOCHS, STEPS_PER_EPOCH, NUM_WORKERS = 3, 20, 2
CHECKPOINT_EVERY = 4
# One a cluster, started by Ray Train on its first use.
_RAYS_OWN_ACTORS = ("_AutoscalingCoordinatorActor",)
_PHASE = """
    global_batch_size: 16
    num_lanes: 4
    shuffle_window: 128
    stochastic_depth_rate: 0.2
    decode: {image_size_px: 32, crop_mode: random_pad, pad_px: 4, eval_crop: squash}
    augment: {randaugment_num_ops: 2, randaugment_magnitude: 10.0, mixup_alpha: 0.8, color_jitter: 0.2}
"""
# Everything that is random or remembers is on: what a resume forgets would show.
_CONFIG = f"""
corpus: {{corpus}}
recipe:
  model: coatnet_nano
  model_overrides: {{widths: [16, 32, 64], stem_width: 16, depths: [1, 1, 2]}}
  shard: {{shard_size_bytes: 200000}}
  pretrain:
    classes: [{", ".join(PRETRAIN_CLASSES)}]
{_PHASE}
    train: {{epochs: {NUM_EPOCHS}, warmup_epochs: 1.0, peak_learning_rate: 0.002, ema_decay: 0.9}}
  finetune:
    classes: [{", ".join(FINETUNE_CLASSES)}]
{_PHASE}
    train: {{epochs: 1, warmup_epochs: 0.5, peak_learning_rate: 0.001}}
  gate: {{min_top1: 0.0}}
runtime:
  num_workers: {NUM_WORKERS}
  decode_threads: 1
  checkpoint_every_steps: {CHECKPOINT_EVERY}
"""


@dataclass(kw_only=True)
class Job:
    """One run of the pipeline in a root of its own; `start` is always the same command."""

    folder: Path
    """For config, logs and audits."""
    corpus: Path
    root_uri: str
    program: str
    environment: Mapping[str, str]
    overrides: tuple[str, ...] = ()
    logs: list[Path] = field(default_factory=list[Path])

    @cached_property
    def root(self) -> Store:
        return open_store(self.root_uri)

    @property
    def name(self) -> str:
        """Of the experiment and the model in MLflow."""
        return f"faults-{self.folder.name}"

    @property
    def options(self) -> list[str]:
        config = self.folder / "config.yaml"
        config.write_text(_CONFIG.replace("{corpus}", json.dumps(str(self.corpus))))
        return [
            *("--config", str(config)),
            *("--runtime.root", self.root_uri),
            *("--runtime.experiment", self.name, "--runtime.model_name", self.name),
            *("--runtime.cache_dir", str(self.folder / "cache")),
            *("--runtime.audit_dir", str(self.folder / "audit")),
            *self.overrides,
        ]

    def start(self) -> subprocess.Popen[bytes]:
        """Start the driver in a session of its own, its output in a new log."""
        self.logs.append(self.folder / f"driver-{len(self.logs)}.log")
        command = [sys.executable, self.program, *self.options]
        with self.logs[-1].open("wb") as log:
            return subprocess.Popen(
                command,
                cwd=REPOSITORY,
                env={**os.environ, **self.environment, "PYTHONPATH": str(REPOSITORY)},
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def run(self, timeout_s: float = 280) -> str:
        """Run to the end; return the log."""
        driver = self.start()
        return self.finish(driver, timeout_s)

    def finish(self, driver: subprocess.Popen[bytes], timeout_s: float = 280, code: int = 0) -> str:
        """Wait for the driver, check its exit code, return its log."""
        try:
            found = driver.wait(timeout_s)
        finally:
            end(driver)
        assert found == code, self.log
        return self.log

    @property
    def log(self) -> str:
        """Of the last start."""
        return self.logs[-1].read_text(errors="replace")

    def checkpoints(self, stage: str = "pretrain") -> list[int]:
        """Return the finished steps that the stage's checkpoints stand at, ascending."""
        names = [info.path.rpartition("/")[2] for info in self.root.list(stage)]
        return sorted(int(name[5:14]) for name in names if name.startswith("step-"))

    def weights(self, stage: str = "pretrain") -> dict[str, bytes]:
        """Return the files of the stage's final model."""
        found = {
            info.path.split("/model/")[1]: info.path
            for info in self.root.list(stage)
            if "/model/" in info.path
        }
        return {name: self.root.get(path) for name, path in found.items()}

    def record(self, stage: str) -> dict[str, Any]:
        """Return the output of the one finished stage of this name."""
        (path,) = [info.path for info in self.root.list(stage) if info.path.endswith("/record.json")]
        return json.loads(self.root.get(path))["output"]

    def audit(self) -> list[dict[str, Any]]:
        """Return pretraining's lines of all ranks, each rank's in the order it wrote them."""
        paths = sorted((self.folder / "audit").glob("pretrain-rank*.jsonl"))
        return [json.loads(line) for path in paths for line in path.read_text().splitlines()]

    def freeze_in_mid_epoch(self, wait_for: Callable[[Callable[[], bool]], None]) -> int:
        """Wait for the second epoch and halt there, a checkpoint of its middle stored; return a pid.

        It is that of rank 1, which is stopped, so that rank 0 waits for it in a collective: what
        happens next happens there, however slow this machine is.
        """
        wait_for(lambda: bool(self._pids_at(rank=1, epoch=1, step=6)))
        (pid,) = self._pids_at(rank=1, epoch=1, step=6)
        os.kill(pid, signal.SIGSTOP)
        first = STEPS_PER_EPOCH
        wait_for(lambda: any(first < step < 2 * first for step in self.checkpoints()))
        return pid

    def is_past(self, *, epoch: int, step: int) -> bool:
        """Say whether rank 0 took a step of pretraining."""
        return bool(self._pids_at(rank=0, epoch=epoch, step=step))

    def _pids_at(self, *, rank: int, epoch: int, step: int) -> list[int]:
        return [line["pid"] for line in self.audit() if _place(line) == (rank, epoch, step)]

    def wait_for(
        self, driver: subprocess.Popen[bytes], happened: Callable[[], bool], timeout_s: float = 240
    ) -> None:
        """Poll until something happened while the driver runs."""
        deadline = time.monotonic() + timeout_s
        while not happened():
            assert driver.poll() is None, f"the driver ended too early:\n{self.log}"
            assert time.monotonic() < deadline, f"nothing happened in {timeout_s} s:\n{self.log}"
            time.sleep(0.02)

    def wait_until_alone(self, timeout_s: float = 60) -> None:
        """Wait until Ray has ended every actor that this or an earlier driver left."""
        deadline = time.monotonic() + timeout_s
        while left := [name for name in self._living_actors() if name not in _RAYS_OWN_ACTORS]:
            assert time.monotonic() < deadline, f"still there after {timeout_s} s: {left}"
            time.sleep(0.5)

    def _living_actors(self) -> list[str]:
        url = f"{self.environment['RAY_API_SERVER_ADDRESS']}/api/v0/actors?limit=1000"
        url += "&filter_keys=state&filter_predicates=%21%3D&filter_values=DEAD"
        token = Path(self.environment["RAY_AUTH_TOKEN_PATH"]).read_text().strip()
        answer = get_body(url, {"Authorization": f"Bearer {token}"})
        assert answer is not None, "Ray's dashboard does not answer"
        return [actor["class_name"] for actor in json.loads(answer)["data"]["result"]["result"]]


def end(driver: subprocess.Popen[bytes]) -> None:
    """Leave no driver behind, whatever a test thinks of it."""
    if driver.poll() is None:
        os.killpg(driver.pid, signal.SIGKILL)
        driver.wait()


def assert_same_result(job: Job, undisturbed: Job) -> None:
    """Weights bit for bit, and every step's samples and augmented pixels, whichever attempt took it."""
    assert job.weights() == undisturbed.weights()
    assert job.record("pretrain") == undisturbed.record("pretrain")
    expected = {_place(line): line for line in undisturbed.audit()}
    assert len(expected) == len(undisturbed.audit()) == NUM_EPOCHS * STEPS_PER_EPOCH * NUM_WORKERS
    found = job.audit()
    assert {_place(line) for line in found} == expected.keys()
    for line in found:
        assert {**line, "pid": 0} == {**expected[_place(line)], "pid": 0}


def assert_each_image_once(job: Job) -> None:
    """Within each epoch, over all ranks."""
    for epoch in range(NUM_EPOCHS):
        keys = [key for line in job.audit() if line["epoch"] == epoch for key in line["keys"]]
        assert len(keys) == len(set(keys)) == NUM_TRAIN * len(PRETRAIN_CLASSES)


def first_steps(job: Job) -> dict[int, list[int]]:
    """Return, for each rank, the global step that each of its processes began with."""
    began: dict[int, dict[int, int]] = {}
    for line in job.audit():
        step = line["epoch"] * STEPS_PER_EPOCH + line["step"]
        began.setdefault(line["rank"], {}).setdefault(line["pid"], step)
    return {rank: list(steps.values()) for rank, steps in began.items()}


def _place(line: Mapping[str, Any]) -> tuple[int, int, int]:
    return line["rank"], line["epoch"], line["step"]
