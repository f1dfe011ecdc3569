"""The main job, run once for all tests of what it leaves behind; a registry and a ledger to promote in."""

import os
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from infra.ledger import Intent, Ledger
from infra.registry import Registry, VersionInfo
from infra.store import open_store
from infra.tracking import find_or_create_run
from pipelines.cifar10 import default_cache_dir, fetch_cifar10
from pipelines.demo import job_command
from tests.conftest import REPOSITORY, Stack

SMOKE_CONFIG = "pipelines/configs/smoke.yaml"
# It takes 100 s on two idle cores; a busy machine may need several times that.
_JOB_TIMEOUT_S = 720


@dataclass(frozen=True, kw_only=True)
class JobTarget:
    """Where one test's jobs write; two targets share nothing, so each is computed from the start."""

    root_uri: str
    experiment: str
    model_name: str
    cache_dir: Path

    @property
    def options(self) -> list[str]:
        """Return the overrides that lead a job there."""
        return [
            *("--runtime.root", self.root_uri),
            *("--runtime.experiment", self.experiment),
            *("--runtime.model_name", self.model_name),
            *("--runtime.cache_dir", str(self.cache_dir)),
        ]


@dataclass(frozen=True, kw_only=True)
class FinishedJob:
    """A job that was submitted and followed to its end."""

    exit_code: int
    output: str
    """What `ray job submit` printed, the job's own lines included."""
    seconds: float
    options: list[str]
    target: JobTarget
    environment: dict[str, str]
    """Of the process that submitted it; finds and may use every service of the stack."""

    @property
    def lines(self) -> list[str]:
        return self.output.splitlines()


def submit_job(stack: Stack, target: JobTarget, options: Sequence[str] = ()) -> FinishedJob:
    """Submit the small main job as `make demo` submits its own, and wait for its end."""
    all_options = ["--config", SMOKE_CONFIG, *target.options, *options]
    command = job_command(all_options)
    environment = {**os.environ, **stack.environment}
    ray = str(Path(sys.executable).with_name("ray"))
    started = time.monotonic()
    try:
        done = subprocess.run(
            [ray, *command[1:]],
            cwd=REPOSITORY,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=_JOB_TIMEOUT_S,
        )
    except subprocess.TimeoutExpired as error:
        # The follower is gone, the job is not: it would take the cluster's CPUs from all later tests.
        stop = [ray, "job", "stop", command[command.index("--submission-id") + 1]]
        subprocess.run(stop, env=environment, timeout=120, check=False, stdout=subprocess.DEVNULL)
        so_far = (error.stdout or b"").decode()
        raise AssertionError(f"the job took more than {_JOB_TIMEOUT_S} s; it said:\n{so_far}") from None
    return FinishedJob(
        exit_code=done.returncode,
        output=done.stdout.decode(),
        seconds=time.monotonic() - started,
        options=all_options,
        target=target,
        environment=environment,
    )


def run_script(
    stack: Stack, script: str, options: Sequence[str], *, timeout_s: float = 280, exit_code: int = 0
) -> str:
    """Run `pipelines/SCRIPT.py` as a user does; return what it printed."""
    done = subprocess.run(
        [sys.executable, f"pipelines/{script}.py", *options],
        cwd=REPOSITORY,
        env={**os.environ, **stack.environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=timeout_s,
    )
    assert done.returncode == exit_code, done.stdout
    return done.stdout


@pytest.fixture(scope="session")
def cifar10() -> Path:
    """The folder of the real photographs; fetched where the cache has none."""
    return fetch_cifar10(default_cache_dir(), lambda line: print(line, flush=True))


@pytest.fixture(scope="session")
def smoke_target(tmp_path_factory: pytest.TempPathFactory) -> JobTarget:
    return JobTarget(
        root_uri="s3://coatnet/smoke",
        experiment="coatnet-smoke",
        model_name="coatnet-smoke",
        cache_dir=tmp_path_factory.mktemp("smoke cache"),
    )


@pytest.fixture(scope="session")
def smoke_job(stack: Stack, cifar10: Path, smoke_target: JobTarget) -> FinishedJob:
    """The small main job on real photographs, from an empty root to its champion; about 2 minutes.

    Whoever changes what it left (another champion, another root) takes a `JobTarget` of its own.
    """
    job = submit_job(stack, smoke_target)
    assert job.exit_code == 0, job.output
    return job


@pytest.fixture
def mlflow_uri(tracking_stack: Stack) -> str:
    return tracking_stack.environment["MLFLOW_TRACKING_URI"]


@pytest.fixture
def registry(mlflow_uri: str) -> Registry:
    return Registry(tracking_uri=mlflow_uri)


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(store=open_store(str(tmp_path / "store")))


@pytest.fixture
def register(registry: Registry, tmp_path: Path) -> Callable[..., VersionInfo]:
    """Return a function that registers a small folder as a version of one model."""
    name = f"m-{uuid.uuid4().hex[:8]}"

    def register_one(fingerprint: str, model_dir: Path | None = None) -> VersionInfo:
        if model_dir is None:
            model_dir = tmp_path / f"model-{fingerprint}"
            model_dir.mkdir(exist_ok=True)
            (model_dir / "weights.txt").write_text(fingerprint)
        run = find_or_create_run(
            tracking_uri=registry.tracking_uri,
            experiment="test-registry",
            identity={"coatnet.job": f"{name}-{fingerprint}"},
            name="finetune",
        )
        return registry.register_version(
            run_id=run.run_id,
            model_dir=model_dir,
            name=name,
            fingerprint=fingerprint,
            tags={"data.snapshot": "1-abc"},
            description="waiting for the gate",
        )

    return register_one


def promotion(version: VersionInfo, from_version: str | None) -> Intent:
    return Intent(
        model=version.name,
        version=version.version,
        from_version=from_version,
        verdict="PROMOTED",
        first_line="PROMOTED +1.0 pp",
        description="**PROMOTED +1.0 pp**",
        delta="+1.0 pp",
        snapshot_ids=("1-abc",),
        code_version="0123abc",
        actor="job-1",
        gates={},
    )
