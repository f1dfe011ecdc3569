"""Real Ray, real gloo, real kills. Worker functions run in other processes."""

import os
import signal
import tempfile
import time
from collections.abc import Generator
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
from infra.ray_tasks import run_tasks
from tests.tiny_training import CONFIG, RUNTIME, MemorySource, run_tiny, spawn_ranks

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


class KilledOnce(MemorySource):
    """Ends its process with SIGKILL in the middle of the second epoch, the first time round."""

    def __init__(self, worker: Worker, folder: Path) -> None:
        super().__init__(worker.rank, worker.world_size)
        self._flag = folder / "killed"

    def batches(self, epoch: int, start_step: int = 0) -> Any:
        for batch in super().batches(epoch, start_step):
            if (epoch, batch.step) == (1, 3) and self._rank == 1 and not self._flag.exists():
                self._flag.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            yield batch


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


def _square(item: int) -> int:
    time.sleep(0.02 * (item % 3))
    return item * item


def test_tasks_come_back_in_order() -> None:
    done: list[int] = []
    results = run_tasks(_square, range(12), max_in_flight=3, on_done=lambda index, result: done.append(index))
    assert results == [item * item for item in range(12)]
    assert sorted(done) == list(range(12))


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
