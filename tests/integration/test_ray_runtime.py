"""Real Ray, real gloo, real kills. Worker functions run in other processes."""

import os
import signal
import tempfile
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import ray
import torch
from torch import distributed

from coatnet.loop import TrainingStoppedError
from coatnet.progress import Progress
from coatnet.worker import Worker
from data.errors import InputError
from data.store import StoreError
from infra.ray_runtime import WorkersFailedError, run_workers
from infra.ray_tasks import run_tasks, stream_tasks
from pipelines.corpus_tasks import corpus_tasks
from tests.tiny_training import CONFIG, RUNTIME, KilledOnce, MemorySource, run_tiny, spawn_ranks

pytestmark = [
    pytest.mark.integration,
    # Ray's own use of what it deprecated itself.
    pytest.mark.filterwarnings("ignore:`use_:DeprecationWarning"),
]
ROOT = str(Path(__file__).parents[2])


@pytest.fixture(scope="module", autouse=True)
def ray_cluster() -> Generator[None]:
    # A socket path may have 107 bytes: pytest's own folders are too deep.
    with tempfile.TemporaryDirectory(prefix="r", dir="/tmp") as folder, pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        # Ray reads its authentication mode once a process, at import: a mode that the local
        # stack's fixture exported later would reach this cluster's servers and not this driver.
        for name in [name for name in os.environ if name.startswith("RAY_AUTH_")]:
            patch.delenv(name)
        ray.init(
            address="local",
            num_cpus=4,
            num_gpus=1,  # Ray takes our word: tasks can reserve it, and nothing computes on it
            include_dashboard=False,
            log_to_driver=False,
            _temp_dir=folder,
            runtime_env={"env_vars": {"PYTHONPATH": ROOT}},
        )
        yield
        ray.shutdown()


def run(fn: Any, payload: Any, **options: Any) -> tuple[Any, list[Progress]]:
    shown: list[Progress] = []
    result = run_workers(fn, payload, name="test", num_workers=2, show=shown.append, **options)
    return result, shown


def _train(worker: Worker, folder: Path, **options: Any) -> dict[str, Any]:
    result = run_tiny(worker, folder, config=replace(CONFIG, epochs=3), **options)
    return {
        "weights": {name: tensor.numpy() for name, tensor in result.weights.items()},
        "threads": torch.get_num_threads(),
        "backend": distributed.get_backend(),
        "cwd": os.getcwd(),
    }


def _train_and_die(worker: Worker, folder: Path) -> dict[str, Any]:
    return _train(worker, folder, source=KilledOnce(worker, folder))


def test_a_killed_worker_resumes_and_ends_with_the_same_weights(tmp_path: Path) -> None:
    """The reference run needs no Ray: the loop knows only the Worker protocol."""
    straight = spawn_ranks(_train, tmp_path / "straight", 2)[0]
    (tmp_path / "killed").mkdir()
    killed, shown = run(_train_and_die, tmp_path / "killed")
    assert (tmp_path / "killed" / "killed").exists()
    notes = [progress.note.split("  ")[0] for progress in shown if progress.note]
    assert notes == ["eval", "resumed at step 2/4", "eval", "eval"]
    assert killed["threads"] == 1
    assert killed["backend"] == "gloo"
    assert killed["cwd"] == os.getcwd()
    for name, value in straight["weights"].items():
        assert (value == killed["weights"][name]).all(), name


def test_an_error_that_would_come_again_is_raised_as_it_is(tmp_path: Path) -> None:
    """A worker's InputError came as Ray's error, three attempts later, without the message in front."""
    error = InputError("the class folder cat has no image")
    with pytest.raises(InputError, match=str(error)) as caught:
        run(_count_and_fail, (tmp_path / "attempts", error))
    assert (tmp_path / "attempts").read_text() == "1"
    assert "In worker 1" in caught.value.__notes__[0]


def _count_and_fail(worker: Worker, payload: tuple[Path, Exception]) -> None:
    """Rank 1 fails; rank 0 waits for it in a collective, as in training."""
    path, error = payload
    if worker.rank == 1:
        with path.open("a") as file:
            file.write("1")
        raise error
    distributed.barrier()


def test_a_fault_is_named_when_retries_are_used_up(tmp_path: Path) -> None:
    with pytest.raises(WorkersFailedError, match="worker 1 failed: StoreError: 503 from the store"):
        run(_count_and_fail, (tmp_path / "attempts", StoreError("503 from the store")), max_failures=0)
    assert (tmp_path / "attempts").read_text() == "1"


def _train_long(worker: Worker, folder: Path) -> None:
    config = replace(CONFIG, epochs=10_000, eval_every_epochs=10_000)
    run_tiny(worker, folder, config=config, runtime=replace(RUNTIME, checkpoint_every_steps=10_000))


def test_a_signal_to_the_driver_stops_at_a_checkpoint(tmp_path: Path) -> None:
    shown: list[Progress] = []

    def show(progress: Progress) -> None:
        if not shown:
            os.kill(os.getpid(), signal.SIGTERM)
        shown.append(progress)

    handler = signal.getsignal(signal.SIGTERM)
    with pytest.raises(TrainingStoppedError, match="tiny stopped after"):
        run_workers(_train_long, tmp_path, name="test", num_workers=2, show=show)
    assert signal.getsignal(signal.SIGTERM) is handler
    assert list((tmp_path / "checkpoints").iterdir())


class _WaitsForStop(MemorySource):
    """Hands out the last batch of all only when the driver's stop has come."""

    def __init__(self, worker: Worker, flag: Path) -> None:
        super().__init__(worker.rank, worker.world_size)
        self._worker, self._flag = worker, flag

    def batches(self, epoch: int, start_step: int = 0) -> Any:
        for batch in super().batches(epoch, start_step):
            if (epoch, batch.step) == (2, self.steps_per_epoch - 1):
                self._flag.touch()
                while not self._worker.should_stop():
                    time.sleep(0.05)
            yield batch


def _train_until_stop(worker: Worker, folder: Path) -> dict[str, Any]:
    return _train(worker, folder, source=_WaitsForStop(worker, folder / "flag"))


@contextmanager
def signal_when(flag: Path, number: signal.Signals) -> Generator[None]:
    """Send this process a signal once the workers have made the file."""

    def send() -> None:
        while not flag.exists():
            time.sleep(0.05)
        os.kill(os.getpid(), number)

    thread = threading.Thread(target=send)
    thread.start()
    yield
    thread.join()


def test_a_stop_at_the_very_end_is_not_forgotten(tmp_path: Path) -> None:
    """Ctrl-C during a stage's last step was swallowed, and the job went on to its next stage."""
    stopped = pytest.raises(TrainingStoppedError, match="stopped at its end; run the same command")
    with stopped, signal_when(tmp_path / "flag", signal.SIGINT):
        run(_train_until_stop, tmp_path)
    assert sorted(path.name[:14] for path in (tmp_path / "checkpoints").iterdir())[-1] == "step-000000012"


class _LosesItsDriver(MemorySource):
    """Ends the channel to the driver in the second epoch, the first time round."""

    def __init__(self, worker: Any, folder: Path) -> None:
        super().__init__(worker.rank, worker.world_size)
        self._worker, self._flag = worker, folder / "lost"

    def batches(self, epoch: int, start_step: int = 0) -> Any:
        for batch in super().batches(epoch, start_step):
            if (epoch, batch.step) == (1, 1) and self._rank == 1 and not self._flag.exists():
                self._flag.touch()
                ray.kill(self._worker._channel)
                while not self._worker.should_stop():
                    time.sleep(0.05)
            yield batch


def _train_and_lose_the_driver(worker: Worker, folder: Path) -> dict[str, Any]:
    return _train(worker, folder, source=_LosesItsDriver(worker, folder))


@pytest.mark.slow
def test_a_lost_channel_costs_a_restart_only(tmp_path: Path) -> None:
    """Its loss ended the job with Ray's own error; workers that stop for it must not end it either."""
    straight = spawn_ranks(_train, tmp_path / "straight", 2)[0]
    done, shown = run(_train_and_lose_the_driver, tmp_path)
    assert (tmp_path / "lost").exists()
    assert any(progress.note.startswith("resumed at step") for progress in shown)
    for name, value in straight["weights"].items():
        assert (value == done["weights"][name]).all(), name


def _die_when_asked_to_stop(worker: Worker, folder: Path) -> None:
    (folder / "flag").touch()
    while not worker.should_stop():
        time.sleep(0.05)
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.slow
def test_a_worker_that_dies_of_a_stop_does_not_undo_it(tmp_path: Path) -> None:
    """The job ended with the worker's crash and a traceback, though it was asked to stop, and had."""
    stopped = pytest.raises(TrainingStoppedError, match=r"stopped without a new checkpoint \(worker")
    with stopped, signal_when(tmp_path / "flag", signal.SIGTERM):
        run(_die_when_asked_to_stop, tmp_path)


def _square(item: int) -> int:
    time.sleep(0.02 * (item % 3))
    return item * item


def test_tasks_come_back_in_order() -> None:
    done: list[int] = []
    results = run_tasks(_square, range(12), max_in_flight=3, on_done=lambda index, result: done.append(index))
    assert results == [item * item for item in range(12)]
    assert sorted(done) == list(range(12))


def test_a_big_corpus_is_listed_by_tasks_and_a_small_one_here() -> None:
    said: list[str] = []
    joined: list[bool] = []
    tasks = corpus_tasks(max_in_flight=3, announce=said.append, connect=lambda: joined.append(True))
    assert sorted(tasks(_square, range(12), size_bytes=2**30)) == [item * item for item in range(12)]
    assert (joined, said[-1]) == ([True], "list  12/12 files of 1.1 GB")
    assert list(tasks(lambda item: item + 1, range(3), size_bytes=1000)) == [1, 2, 3]
    assert joined == [True]


def test_items_are_taken_only_as_they_are_worked_on() -> None:
    """Ten million of them must never be there at once."""
    taken: list[int] = []
    results: list[tuple[int, int]] = []
    for finished in stream_tasks(_square, (taken.append(i) or i for i in range(20)), max_in_flight=3):
        results.append(finished)
        assert len(taken) <= len(results) + 2
    assert sorted(results) == [(item, item * item) for item in range(20)]


def _reserved_gpus(item: int) -> list[str]:
    return ray.get_runtime_context().get_accelerator_ids()["GPU"]


def test_a_task_has_the_gpu_that_it_asked_for() -> None:
    """Evaluation reserved none: all tasks of a node ran on its first GPU, those of a CPU node on the CPU."""
    assert run_tasks(_reserved_gpus, range(2), max_in_flight=2, num_gpus_per_task=1) == [["0"], ["0"]]
    assert run_tasks(_reserved_gpus, range(2), max_in_flight=2) == [[], []]


def _die_once(item: tuple[int, Path]) -> int:
    index, folder = item
    flag = folder / str(index)
    if index % 2 and not flag.exists():
        flag.touch()
        if index == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        raise StoreError("503 from the store")
    return index


def test_killed_and_faulty_tasks_run_again(tmp_path: Path) -> None:
    assert run_tasks(_die_once, [(index, tmp_path) for index in range(5)], max_in_flight=2) == [0, 1, 2, 3, 4]


def _refuse(item: int) -> int:
    if item == 2:
        raise InputError("image 2 is not an image")
    return item


def test_a_task_with_bad_input_is_raised_as_it_is() -> None:
    with pytest.raises(InputError, match="image 2 is not an image"):
        run_tasks(_refuse, range(5), max_in_flight=2)
