"""A training counts every bad sample once, over stops, kills and ranks, and ends past the budget."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from coatnet.loop import TrainingStoppedError
from coatnet.worker import LocalWorker
from data.crop import DecodeConfig
from data.loader import TooManyBadSamplesError, TrainLoader
from data.shard_index import read_index
from data.snapshot import Snapshot
from data.tar_reader import ShardReader, StoredImage
from data.types import Batch
from infra.folder_store import FolderStore
from pipelines.bad_samples import ARTIFACT, METRIC, BadSamples
from pipelines.config import PhaseConfig, Runtime
from pipelines.training import TrainPlan, train_worker
from tests.small_dataset import small_dataset
from tests.tiny_coatnet import TINY
from tests.tiny_training import CONFIG, ORDER, RUNTIME, MemorySource, run_tiny, spawn_ranks

NUM_BAD = 15
"""Of 84 samples: 7 steps of 12."""


class MemoryTracker:
    """`infra.tracking.Tracker` without a server."""

    def __init__(self) -> None:
        self.counts: list[tuple[int, float]] = []
        self.listed: Mapping[str, str] = {}
        self.num_flushed = 0

    def log_metrics(self, step: int, values: Mapping[str, float]) -> None:
        self.counts.append((step, values[METRIC]))

    def log_json(self, path: str, value: Mapping[str, str]) -> None:
        assert path == ARTIFACT
        self.listed = dict(value)

    def flush(self) -> bool:
        self.num_flushed = len(self.counts)
        return True


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> tuple[FolderStore, Snapshot]:
    return small_dataset(tmp_path_factory.mktemp("bad"), num_train=84, classes="abc")


@pytest.fixture
def bad(dataset: tuple[FolderStore, Snapshot], monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Break the last samples of an epoch's batches; return their names."""
    names = {key for batch in make_loader(dataset).batches(0) for key in batch.keys[-3:]}
    broken = set(sorted(names)[:NUM_BAD])
    break_samples(broken, monkeypatch)
    return broken


def break_samples(broken: set[str], monkeypatch: pytest.MonkeyPatch) -> None:
    real = ShardReader.read

    def read(self: ShardReader, shard: int, row: int) -> StoredImage:
        stored = real(self, shard, row)
        return stored._replace(image_bytes=b"broken") if stored.name in broken else stored

    monkeypatch.setattr(ShardReader, "read", read)


class StoppingLoader(TrainLoader):
    """Calls back after a batch was used."""

    after_step: Any = None

    def batches(self, epoch: int, start_step: int = 0) -> Iterator[Batch]:  # type: ignore[override]
        for batch in super().batches(epoch, start_step):
            yield batch
            if self.after_step is not None:
                self.after_step(batch.step)


def make_loader(dataset: tuple[FolderStore, Snapshot]) -> StoppingLoader:
    return StoppingLoader(
        store=dataset[0], snapshot=dataset[1], split="train", order=ORDER, rank=0, world_size=1,
        decode=DecodeConfig(image_size_px=8), cache=None, num_threads=0, max_bad_samples=None,
    )  # fmt: skip


def run(
    dataset: tuple[FolderStore, Snapshot],
    folder: Path,
    max_allowed: int,
    tracker: MemoryTracker,
    **options: Any,
) -> BadSamples:
    """Train an epoch as `pipelines.training` does, with a checkpoint every 3 steps or so."""
    worker = LocalWorker(device=torch.device("cpu"), show=lambda line: None)
    loader = make_loader(dataset)
    if "after_step" in options:
        loader.after_step = lambda step: options["after_step"](worker, step)
    stage: Any = FolderStore(root=folder)
    samples = BadSamples(worker, loader, tracker, max_allowed, stage=stage)  # type: ignore[arg-type]
    run_tiny(
        worker, folder, source=loader, config=replace(CONFIG, epochs=1), before_save=samples.report,
        runtime=replace(RUNTIME, checkpoint_every_steps=options.get("checkpoint_every_steps", 3)),
        wants_stop=samples.is_past_budget,
    )  # fmt: skip
    return samples


def stop_after_step_2(worker: LocalWorker, step: int) -> None:
    if step == 2:
        worker.stop()


def test_a_stop_forgets_no_bad_sample(
    dataset: tuple[FolderStore, Snapshot], bad: set[str], tmp_path: Path
) -> None:
    """Of 15, only the 4 after a stop and resume were counted, as the report came at an epoch's end alone."""
    tracker = MemoryTracker()
    with pytest.raises(TrainingStoppedError):
        run(dataset, tmp_path, 100, tracker, checkpoint_every_steps=100, after_step=stop_after_step_2)
    assert 0 < tracker.counts[-1][1] < NUM_BAD
    samples = run(dataset, tmp_path, 100, tracker)
    assert samples.reasons.keys() == tracker.listed.keys() == bad
    assert tracker.counts[-1] == (7, float(NUM_BAD))


def test_a_stop_does_not_hide_that_the_budget_is_passed(
    dataset: tuple[FolderStore, Snapshot], bad: set[str], tmp_path: Path
) -> None:
    """With 15 bad samples and a limit of 12 a stopped and resumed run ended without an error."""
    with pytest.raises(TrainingStoppedError):
        run(dataset, tmp_path, NUM_BAD - 1, MemoryTracker(), after_step=stop_after_step_2)
    with pytest.raises(TooManyBadSamplesError, match=f"{NUM_BAD} samples of all ranks"):
        run(dataset, tmp_path, NUM_BAD - 1, MemoryTracker())


class KilledError(Exception):
    """Stands for a kill -9."""


def test_steps_that_are_trained_again_count_once(
    dataset: tuple[FolderStore, Snapshot], bad: set[str], tmp_path: Path
) -> None:
    """A kill after the checkpoint of step 3: the steps from there on meet their bad samples again."""

    def kill(worker: LocalWorker, step: int) -> None:
        if step == 4:
            raise KilledError

    tracker = MemoryTracker()
    with pytest.raises(KilledError):
        run(dataset, tmp_path, 100, tracker, after_step=kill)
    samples = run(dataset, tmp_path, 100, tracker)
    assert samples.reasons.keys() == bad
    assert [count for _, count in tracker.counts] == sorted(count for _, count in tracker.counts)
    assert tracker.counts[-1] == (7, float(NUM_BAD))


def test_what_passed_the_budget_is_reported_first(
    dataset: tuple[FolderStore, Snapshot], bad: set[str], tmp_path: Path
) -> None:
    """The loader raised by itself: no count in MLflow, no list, and an error with one key."""
    tracker = MemoryTracker()
    with pytest.raises(
        TooManyBadSamplesError, match=r"among them '.*' \(.*\), '.*' \(.*\), '.*' \(.*\): build"
    ):
        run(dataset, tmp_path, 3, tracker, checkpoint_every_steps=100)
    ((step, count),) = tracker.counts
    assert step < 7, "it does not go on to the next checkpoint"
    assert 3 < count == len(tracker.listed)
    assert tracker.listed.keys() <= bad
    assert tracker.num_flushed == 1, "before the processes end"
    assert json.loads((tmp_path / ARTIFACT).read_text()) == tracker.listed


def test_a_stage_counts_both_splits(
    dataset: tuple[FolderStore, Snapshot], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, snapshot = dataset
    first = {
        split: read_index(store, shards[0])["name"][0].as_py() for split, shards in snapshot.splits.items()
    }
    break_samples(set(first.values()), monkeypatch)
    phase = PhaseConfig(
        global_batch_size=12, num_lanes=4, shuffle_window=24, train=replace(CONFIG, epochs=1),
        decode=DecodeConfig(image_size_px=32, crop_mode="random_pad", eval_crop="squash"),
    )  # fmt: skip
    plan = TrainPlan(
        name="pretrain", root_uri=FolderStore(root=store.root.parent).uri, stage_path="stages/both",
        dataset_path=store.root.name, snapshot_id=snapshot.id, model_config=replace(TINY, num_classes=3),
        initial_weights_path=None, phase=phase, seed=1, run=None,
        runtime=Runtime(cache_dir=str(tmp_path / "cache"), max_bad_samples=2),
    )  # fmt: skip
    worker = LocalWorker(device=torch.device("cpu"), show=lambda line: None)
    assert train_worker(worker, plan)["bad_samples"].keys() == set(first.values())
    stricter = replace(plan, stage_path="stages/stricter", runtime=replace(plan.runtime, max_bad_samples=1))
    with pytest.raises(TooManyBadSamplesError, match="2 samples of all ranks"):
        train_worker(worker, stricter)


class BadOnRankOne(MemorySource):
    """One sample after the other of rank 1 is bad."""

    def __init__(self, worker: LocalWorker) -> None:
        super().__init__(worker.rank, worker.world_size)
        self.bad_samples: dict[str, str] = {}
        self.lost_samples: set[str] = set()
        self._is_bad = worker.rank == 1

    def batches(self, epoch: int, start_step: int = 0) -> Iterator[Batch]:
        for batch in super().batches(epoch, start_step):
            if self._is_bad:
                self.bad_samples[batch.keys[0]] = "broken"
            yield batch


def train_past_the_budget(worker: LocalWorker, folder: Path) -> tuple[str, int]:
    """Return this rank's error, and how many samples it knows."""
    source = BadOnRankOne(worker)
    samples = BadSamples(worker, source, None, 1, stage=FolderStore(root=folder))
    with pytest.raises(TooManyBadSamplesError) as error:
        run_tiny(
            worker, folder, source=source, runtime=replace(RUNTIME, checkpoint_every_steps=100),
            before_save=samples.report, wants_stop=samples.is_past_budget,
        )  # fmt: skip
    return str(error.value), len(samples.reasons)


def test_a_rank_alone_past_the_budget_stops_all(tmp_path: Path) -> None:
    """It raised by itself while the others waited for it in the next step, and nobody wrote its keys down."""
    first, second = spawn_ranks(train_past_the_budget, tmp_path, 2)
    assert first == second == (first[0], 3), "two steps and the one under way"
    assert len(json.loads((tmp_path / ARTIFACT).read_text())) == 3
