"""kill -9 of loading processes at a drawn step: other processes go on with the very next batch."""

import json
import multiprocessing
import os
import random
import signal
import time
from collections.abc import Callable
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import pytest

from data.store import Store
from infra.folder_store import FolderStore
from infra.store import open_store
from tests.conftest import Stack
from tests.faults.loader_process import (
    NUM_EPOCHS,
    ORDER,
    LoadTask,
    global_batches,
    load,
    open_loader,
)
from tests.small_dataset import small_dataset

pytestmark = [pytest.mark.integration, pytest.mark.faults]
_TIMEOUT_S = 120.0


@pytest.fixture(scope="module")
def datasets(object_store: Stack, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """Two datasets in the object store, the second small: it begins anew within an epoch."""
    os.environ.update(object_store.environment)
    uris: list[str] = []
    for number, num_train in enumerate((150, 40)):
        folder = tmp_path_factory.mktemp(f"dataset{number}")
        local, _ = small_dataset(folder, num_train=num_train, first_seed=1000 * number)
        uris.append(f"s3://coatnet/faults/loader-{number}")
        copy_all(local, open_store(uris[-1]))
    return uris[0], uris[1]


def copy_all(source: FolderStore, target: Store) -> None:
    for info in source.list():
        target.put(info.path, source.get(info.path))


def start(tasks: list[LoadTask], environment: dict[str, str]) -> list[ForkServerProcess]:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.faults.loader_process"])
    processes = [context.Process(target=load, args=(task, environment), daemon=True) for task in tasks]
    for process in processes:
        process.start()
    return processes


def wait_for(happened: Callable[[], bool], processes: list[ForkServerProcess]) -> None:
    deadline = time.monotonic() + _TIMEOUT_S
    while not happened():
        assert all(process.exitcode in (None, 0) for process in processes), "a process failed"
        assert time.monotonic() < deadline, f"nothing happened in {_TIMEOUT_S} s"
        time.sleep(0.01)


def has_taken(task: LoadTask, num_steps: int) -> bool:
    return task.out.exists() and task.out.read_bytes().count(b"\n") >= num_steps


def older(cursors: list[dict[str, int]]) -> dict[str, int]:
    return min(cursors, key=lambda cursor: (cursor["epoch"], cursor["step"]))


@pytest.mark.parametrize("is_mixture", [False, True], ids=["one snapshot", "mixture"])
def test_killed_loaders_go_on_at_another_world_size(
    object_store: Stack, datasets: tuple[str, str], tmp_path: Path, is_mixture: bool
) -> None:
    environment = dict(object_store.environment)

    def ranks(name: str, world_size: int, num_threads: int) -> list[LoadTask]:
        return [
            LoadTask(
                datasets=datasets if is_mixture else datasets[:1],
                cache_dir=tmp_path / "cache",
                out=tmp_path / f"{name}-{rank}.jsonl",
                rank=rank,
                world_size=world_size,
                num_threads=num_threads,
            )
            for rank in range(world_size)
        ]

    undisturbed = ranks("undisturbed", 1, 0)
    load(undisturbed[0], environment)
    expected = global_batches(undisturbed)
    num_steps = NUM_EPOCHS * open_loader(undisturbed[0]).steps_per_epoch
    assert len(expected) == num_steps
    assert all(len(rows) == ORDER.global_batch_size for rows in expected.values())

    drawn = random.randrange(1, num_steps - 2)
    print(f"killed at step {drawn} of {num_steps}")
    # Rank 0 is a step ahead, as prefetching may leave it.
    killed = [
        LoadTask(**{**vars(task), "hold_at": drawn + (task.rank == 0)}) for task in ranks("killed", 2, 3)
    ]
    processes = start(killed, environment)
    wait_for(lambda: all(has_taken(t, drawn + 1 + (t.rank == 0)) for t in killed), processes)
    for process in processes:
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
        process.join(_TIMEOUT_S)
    assert [process.exitcode for process in processes] == [-signal.SIGKILL] * 2

    cursor = older([json.loads(task.cursor_file.read_text()) for task in killed])
    steps_per_epoch = num_steps // NUM_EPOCHS
    assert cursor["epoch"] * steps_per_epoch + cursor["step"] == drawn + 1
    resumed = [LoadTask(**{**vars(task), "cursor": cursor}) for task in ranks("resumed", 3, 1)]
    processes = start(resumed, environment)
    wait_for(lambda: all(process.exitcode == 0 for process in processes), processes)

    before, after = global_batches(killed), global_batches(resumed)
    complete = {place: rows for place, rows in before.items() if len(rows) == ORDER.global_batch_size}
    assert set(complete).isdisjoint(after)
    assert {**complete, **after} == expected
