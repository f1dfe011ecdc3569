"""The loader under faults of store, disk and process: the same batches, or a stop with a reason."""

import logging
import multiprocessing
import os
import random
import signal
import threading
import time
from multiprocessing.context import SpawnProcess
from pathlib import Path

import pytest

from data.crop import DecodeConfig
from data.loader import TrainLoader
from data.order import OrderConfig
from data.shard_cache import ShardCache
from data.snapshot import Snapshot
from data.store import Store, StoreError
from infra.s3_client import S3Patience
from infra.s3_store import S3Store
from tests.conftest import Stack
from tests.fault_proxy import Fault, Request
from tests.faults.full_disk import fill_disk
from tests.faults.proxied_store import ENDPOINT, new_store, spoilt_store
from tests.faults.services import kill_object_store
from tests.small_dataset import small_dataset

pytestmark = [pytest.mark.integration, pytest.mark.faults]

_ORDER = OrderConfig(global_batch_size=16, num_lanes=4, shuffle_window=32, seed=3)
_NUM_TRAIN = 150
_ALL: tuple[Fault, ...] = (
    "error_500",
    "slow_down",
    "reset_before",
    "reset_amid",
    "lost_answer",
    "truncated",
    "flipped",
    "slow",
)
Rows = list[tuple[tuple[str, ...], bytes, list[float]]]


@pytest.fixture(scope="module")
def dataset(object_store: Stack, tmp_path_factory: pytest.TempPathFactory) -> tuple[S3Store, Snapshot]:
    """Some twenty small shards in the object store."""
    made = tmp_path_factory.mktemp("made")
    folder, snapshot = small_dataset(made, num_train=_NUM_TRAIN, shard_size_bytes=16_000)
    store = new_store("loader")
    for info in folder.list():
        store.upload(folder.root / info.path, info.path)
    return store, snapshot


@pytest.fixture(scope="module")
def expected(dataset: tuple[S3Store, Snapshot]) -> Rows:
    return epoch(*dataset, cache=None)


def open_loader(store: Store, snapshot: Snapshot, cache: ShardCache | None) -> TrainLoader:
    return TrainLoader(
        store=store, snapshot=snapshot, split="train", order=_ORDER, decode=DecodeConfig(image_size_px=16),
        rank=0, world_size=1, cache=cache, num_threads=4, max_bad_samples=0,
    )  # fmt: skip


def epoch(store: Store, snapshot: Snapshot, cache: ShardCache | None) -> Rows:
    """Return the keys, pixels and weights of each batch."""
    loader = open_loader(store, snapshot, cache)
    batches = [(b.keys, b.images_BHWC.numpy().tobytes(), b.weights_B.tolist()) for b in loader.batches(0)]
    assert loader.bad_samples == {}
    return batches


def make_cache(folder: Path, *, cached: bool) -> ShardCache | None:
    return ShardCache(folder / "cache", 10**9) if cached else None


@pytest.mark.parametrize("cached", [True, False])
def test_an_epoch_under_all_faults_has_the_same_batches(
    dataset: tuple[S3Store, Snapshot], expected: Rows, tmp_path: Path, cached: bool
) -> None:
    """Two requests of five fail, in eight ways."""
    store, snapshot = dataset
    cache = make_cache(tmp_path, cached=cached)
    with spoilt_store(store, seed=5, rates=dict.fromkeys(_ALL, 0.05)) as (spoilt, proxy):
        assert epoch(spoilt, snapshot, cache) == expected
        assert len(proxy.injected) >= (5 if cached else 8)


@pytest.mark.parametrize(("cached", "stall_s"), [(True, 5.0), (False, 1.0)])
def test_stalls_are_waited_for(
    dataset: tuple[S3Store, Snapshot], expected: Rows, tmp_path: Path, cached: bool, stall_s: float
) -> None:
    store, snapshot = dataset
    cache = make_cache(tmp_path, cached=cached)
    with spoilt_store(store, seed=4, script=["stall"], rates={"stall": 0.05}, stall_s=stall_s) as (
        spoilt,
        proxy,
    ):
        assert epoch(spoilt, snapshot, cache) == expected
        assert proxy.injected["stall"] >= 1


def test_a_store_that_dies_is_waited_for(
    object_store: Stack, dataset: tuple[S3Store, Snapshot], expected: Rows
) -> None:
    """kill -9 in the middle of an epoch, and a new start seconds later."""
    store, snapshot = dataset
    found: Rows = []
    for batch in open_loader(store, snapshot, None).batches(0):
        found.append((batch.keys, batch.images_BHWC.numpy().tobytes(), batch.weights_B.tolist()))
        if len(found) == 2:
            kill_object_store(object_store)
            restart = threading.Timer(2.0, object_store.run, ("up", "--services", "s3"))
            restart.start()
    restart.join()
    assert found == expected


def test_a_store_that_stays_away_ends_in_a_stop_that_names_it(dataset: tuple[S3Store, Snapshot]) -> None:
    store, snapshot = dataset
    patience = S3Patience(num_sends=1, num_tries=2, retry_s=1.0)
    with spoilt_store(store, rates={"slow_down": 1.0}, patience=patience) as (spoilt, _):
        loader = open_loader(spoilt, snapshot, None)
        with pytest.raises(StoreError, match=rf"{store.uri}/shards/train-.*SlowDown"):
            list(loader.batches(0))
        assert loader.bad_samples == {}


def read_epoch(store: S3Store, snapshot: Snapshot, folder: Path) -> None:
    epoch(store, snapshot, ShardCache(folder, 10**9))


def shared_memory(pid: int) -> set[Path]:
    """Return what a process has mapped of shared memory: other processes' names come and go."""
    lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
    return {Path(line.split()[5]) for line in lines if "/dev/shm/" in line}


def test_kill_in_the_middle_of_a_cache_write(
    dataset: tuple[S3Store, Snapshot], expected: Rows, tmp_path: Path
) -> None:
    """Killed three times while shards trickle in: no half shard, no lock, nothing in shared memory."""
    store, snapshot = dataset
    mapped: set[Path] = set()
    folder = tmp_path / "cache"
    draws = random.Random(0)
    num_left: list[int] = []
    for _ in range(3):
        fetching = threading.Event()

        def is_of_shard(request: Request, fetching: threading.Event = fetching) -> bool:
            if request.path.split("?")[0].endswith(".tar"):
                fetching.set()
            return fetching.is_set()

        with spoilt_store(store, rates={"slow": 1.0}, concerns=is_of_shard) as (slow, proxy):
            proxy.slow_s = 1.5
            reader = start_reader(slow, snapshot, folder)
            assert fetching.wait(60)
            time.sleep(draws.uniform(0.0, 1.4))
            assert reader.pid is not None
            mapped |= shared_memory(reader.pid)
            os.kill(reader.pid, signal.SIGKILL)
            reader.join()
        num_left.append(len(list((folder / "incoming").iterdir())))
        whole = {shard.sha256: shard.size_bytes for shard in snapshot.splits["train"]}
        for file in (folder / "shards").iterdir():
            assert file.stat().st_size == whole[file.stem]
    assert any(num_left), "no kill met a write"
    assert epoch(store, snapshot, ShardCache(folder, 10**9)) == expected
    assert list((folder / "incoming").iterdir()) == []
    assert len(list((folder / "locks").iterdir())) == 257
    assert not mapped, "nothing of shared memory is ever used"


def start_reader(store: S3Store, snapshot: Snapshot, folder: Path) -> SpawnProcess:
    """Start a process that reads an epoch, and fills the cache on its way."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(ENDPOINT, store.endpoint())
        context = multiprocessing.get_context("spawn")
        reader = context.Process(target=read_epoch, args=(store, snapshot, folder))
        reader.start()
    return reader


def test_a_full_disk_evicts_then_streams_and_warns_once(
    dataset: tuple[S3Store, Snapshot], expected: Rows, small_disk: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The disk is smaller than the budget; then something else takes all of it."""
    store, snapshot = dataset
    total_bytes = sum(shard.size_bytes for shard in snapshot.splits["train"])
    assert total_bytes > 2 * 96 * 1024
    with caplog.at_level(logging.WARNING):
        assert epoch(store, snapshot, ShardCache(small_disk, 10**9)) == expected
    kept = list((small_disk / "shards").iterdir())
    assert kept
    for file in kept:
        file.unlink()
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        cache = ShardCache(small_disk, 10**9)
        fill_disk(small_disk)
        assert epoch(store, snapshot, cache) == expected
    warnings = [record.getMessage() for record in caplog.records]
    assert len(warnings) == 1
    assert "no room for shard" in warnings[0]
    assert "reading from the store" in warnings[0]
