"""Create, append and verify on a store that fails: byte for byte the data set of a store that does not."""

import contextlib
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.context import SpawnProcess
from pathlib import Path

import psutil
import pytest

from data.append import append_snapshot
from data.build import build_snapshot
from data.shard_write import write_shards_here
from data.sharding_config import ShardingConfig
from data.snapshot import Snapshot, load_snapshot
from data.verify import verify_lists, verify_shard
from infra.s3_store import S3Store
from tests.conftest import REPOSITORY, Stack
from tests.fault_proxy import Fault, FaultProxy, Request
from tests.faults.jobs import PRETRAIN_CLASSES
from tests.faults.proxied_store import ENDPOINT, new_store, spoilt_store
from tests.faults.services import kill_object_store

pytestmark = [pytest.mark.integration, pytest.mark.faults]

_CONFIG = ShardingConfig(shard_size_bytes=20_000)
_NUM_FIRST, _NUM_MORE, _NUM_TEST = 14, 6, 4
"""Photographs of each class that create, append and eval get."""


@dataclass(frozen=True, kw_only=True)
class Built:
    """What became of a data set."""

    ids: list[str]
    objects: dict[str, str]
    """Path to etag, which is a hash of the content here."""


@pytest.fixture(scope="module")
def place(object_store: Stack, small_corpus: Path) -> S3Store:
    """A store with two corpora of real photographs, `first` and `more`."""
    store = new_store("dataset")
    for name in PRETRAIN_CLASSES:
        train = sorted((small_corpus / "train" / name).iterdir())[: _NUM_FIRST + _NUM_MORE]
        test = sorted((small_corpus / "test" / name).iterdir())[:_NUM_TEST]
        for number, path in enumerate(train):
            corpus = "first" if number < _NUM_FIRST else "more"
            store.put(f"{corpus}/train/{name}/{path.name}", path.read_bytes())
        for path in test:
            store.put(f"first/test/{name}/{path.name}", path.read_bytes())
    return store


@pytest.fixture(scope="module")
def expected(place: S3Store) -> Built:
    create(place, "undisturbed")
    append(place, "undisturbed")
    return built(place, "undisturbed")


def create(place: S3Store, name: str) -> Snapshot:
    corpus, dataset = place.sub("first"), place.sub(name)
    return build_snapshot(corpus, dataset, _CONFIG, write_shards_here(corpus, dataset, _CONFIG.limits))


def append(place: S3Store, name: str) -> Snapshot:
    corpus, dataset = place.sub("more"), place.sub(name)
    run_all = write_shards_here(corpus, dataset, _CONFIG.limits)
    appended = append_snapshot(load_snapshot(dataset, "HEAD"), corpus, dataset, _CONFIG, run_all)
    assert appended is not None
    return appended


def verify(place: S3Store, name: str) -> None:
    dataset = place.sub(name)
    head = load_snapshot(dataset, "HEAD")
    assert verify_lists(head, dataset) == ()
    for shard in (shard for shards in head.splits.values() for shard in shards):
        assert verify_shard(shard, dataset=dataset) == ()


def built(place: S3Store, name: str) -> Built:
    dataset = place.sub(name)
    head = load_snapshot(dataset, "HEAD")
    ids = [head.id] if head.parent is None else [head.parent, head.id]
    # Marks of finished work may name the place of the corpus; it is the same here.
    return Built(ids=ids, objects=objects(dataset))


def objects(dataset: S3Store) -> dict[str, str]:
    """Return path and etag of what makes up a data set: no leases, and no card, which commands write."""
    passing = ("leases/", "clock/", "cards/")
    return {info.path: info.etag for info in dataset.list() if not info.path.startswith(passing)}


@pytest.mark.parametrize(
    "faults",
    [
        ("error_500", "slow_down"),
        ("reset_before", "reset_amid"),
        ("lost_answer", "truncated"),
        ("flipped", "slow"),
    ],
    ids="-".join,
)
def test_a_data_set_made_under_faults_is_the_same(
    place: S3Store, expected: Built, faults: tuple[Fault, ...]
) -> None:
    """One request in 14 fails in each of two ways, of the corpus and of the data set."""
    name = "-".join(faults)
    with spoilt_store(place, seed=7, rates=dict.fromkeys(faults, 0.07)) as (spoilt, proxy):
        create(spoilt, name)
        append(spoilt, name)
        verify(spoilt, name)
        assert all(proxy.injected[fault] >= 5 for fault in faults)
    assert built(place, name) == expected
    verify(place, name)


def test_stalls_are_waited_for(place: S3Store, expected: Built) -> None:
    with spoilt_store(place, seed=2, rates={"stall": 0.01}) as (spoilt, proxy):
        create(spoilt, "stall")
        append(spoilt, "stall")
        assert proxy.injected["stall"] >= 1
    assert built(place, "stall") == expected


def test_a_store_that_dies_in_mid_way_is_waited_for(
    object_store: Stack, place: S3Store, expected: Built
) -> None:
    """kill -9 when some shards are written, and a new start seconds later."""
    started: list[threading.Timer] = []

    def kill_at_the_second_shard(request: Request) -> bool:
        if request.method == "PUT" and ".tar" in request.path and not started:
            started.append(threading.Timer(2.0, object_store.run, ("up", "--services", "s3")))
            kill_object_store(object_store)
            started[0].start()
        return False

    with spoilt_store(place, concerns=kill_at_the_second_shard) as (spoilt, _):
        create(spoilt, "store-dies")
        append(spoilt, "store-dies")
    started[0].join()
    assert built(place, "store-dies") == expected


def test_kill_of_the_driver_at_drawn_moments(place: S3Store, expected: Built) -> None:
    """Twice in create and once in append; what is there is whole, and the next start goes on from it."""
    name = "driver-killed"
    draws = random.Random(0)
    for step, is_last_try in ((create, False), (create, True), (append, True)):
        with spoilt_store(place, rates={"slow": 0.5}) as (slow, proxy):
            proxy.slow_s = 0.1
            driver = start(slow, step, name)
            wait_for_requests(proxy, draws.randrange(10, 30), driver.is_alive)
            assert driver.pid is not None
            os.kill(driver.pid, signal.SIGKILL)
            driver.join()
        there = objects(place.sub(name))
        assert there.items() < expected.objects.items(), "only what an undisturbed run writes, and not all"
        if is_last_try:
            step(place, name)
    assert built(place, name) == expected


def start(store: S3Store, step: Callable[[S3Store, str], Snapshot], name: str) -> SpawnProcess:
    """Start a process that makes a data set."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(ENDPOINT, store.endpoint())
        process = multiprocessing.get_context("spawn").Process(target=step, args=(store, name))
        process.start()
    return process


def wait_for_requests(proxy: FaultProxy, count: int, is_alive: Callable[[], bool]) -> None:
    while proxy.num_requests < count:
        assert is_alive(), f"it ended too early: {proxy}"
        time.sleep(0.005)


@pytest.mark.timeout(600)
def test_kill_of_a_ray_worker_in_mid_shard(place: S3Store, expected: Built, tmp_path: Path) -> None:
    """The command line on a Ray of its own: the shard is written again elsewhere, and the id is the same."""
    with spoilt_store(place, rates={"slow": 1.0}, concerns=lambda r: "/first/" in r.path) as (_, proxy):
        environment = {**os.environ, ENDPOINT: proxy.url}
        for name in [name for name in environment if name.startswith(("RAY_", "MLFLOW_"))]:
            del environment[name]
        command = [
            *(sys.executable, "pipelines/shard.py", "create", "--json", "--runtime.num_workers", "2"),
            *("--corpus", place.sub("first").uri, "--dataset", place.sub("worker-killed").uri),
            *("--shard_size_bytes", str(_CONFIG.shard_size_bytes)),
        ]
        with (tmp_path / "log").open("wb") as log:
            driver = subprocess.Popen(command, cwd=REPOSITORY, env=environment, stdout=log, stderr=log)
        try:
            killed = kill_a_busy_worker(driver, tmp_path / "log")
            assert driver.wait(300) == 0, (tmp_path / "log").read_text()
        finally:
            driver.kill()
    output = (tmp_path / "log").read_text()
    assert f'"snapshot": "{expected.ids[0]}"' in output, output
    assert not psutil.pid_exists(killed)
    append(place, "worker-killed")
    assert built(place, "worker-killed") == expected


def kill_a_busy_worker(driver: subprocess.Popen[bytes], log: Path) -> int:
    """Kill a process while it is at a task; return its id."""
    while driver.poll() is None:
        for process in psutil.Process(driver.pid).children(recursive=True):
            # Ray gives a worker the name of the task that it is at.
            with contextlib.suppress(psutil.NoSuchProcess):
                if process.cmdline()[:1] == ["ray::_call"]:
                    process.kill()
                    return process.pid
        time.sleep(0.05)
    raise AssertionError(f"no worker was met at work: {log.read_text()}")
