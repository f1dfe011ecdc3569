"""A stopped run that goes on ends where it would have ended."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from coatnet.loop import TrainingStoppedError
from coatnet.worker import LocalWorker
from tests.tiny_training import RUNTIME, MemorySource, StopAfter, run_tiny, spawn_ranks

LOG_SELDOM = replace(RUNTIME, log_every_steps=4)


def weights_and_metrics(worker: LocalWorker, folder: Path, **options: Any) -> dict[str, Any]:
    curve: dict[int, dict[str, float]] = {}
    result = run_tiny(
        worker,
        folder,
        runtime=LOG_SELDOM,
        log=lambda step, values: curve.setdefault(step, {}).update(values),
        **options,
    )
    weights = {name: tensor.numpy() for name, tensor in result.weights.items()}
    losses = {step: values["train/loss"] for step, values in curve.items() if "train/loss" in values}
    return {"weights": weights, "metrics": dict(result.metrics), "losses": losses}


def assert_same(left: dict[str, Any], right: dict[str, Any]) -> None:
    assert left["weights"].keys() == right["weights"].keys()
    for name, value in left["weights"].items():
        assert (value == right["weights"][name]).all(), name
    assert left["metrics"] == right["metrics"]
    # A point is a mean over the steps since the last one, of which a stop may have seen the first.
    for step in left["losses"].keys() & right["losses"].keys():
        assert left["losses"][step] == right["losses"][step], step


@pytest.mark.parametrize("stop_after", [2, 3, 4, 6])
def test_a_stopped_run_resumes_bit_by_bit(tmp_path: Path, stop_after: int) -> None:
    cpu = torch.device("cpu")
    straight = weights_and_metrics(LocalWorker(device=cpu), tmp_path / "straight")
    worker = LocalWorker(device=cpu)
    with pytest.raises(TrainingStoppedError, match="run the same command"):
        run_tiny(worker, tmp_path / "stopped", runtime=LOG_SELDOM, source=StopAfter(worker, stop_after))
    assert_same(straight, weights_and_metrics(LocalWorker(device=cpu), tmp_path / "stopped"))


def _straight_then_stop(worker: LocalWorker, folder: Path) -> dict[str, Any]:
    straight = weights_and_metrics(worker, folder / "straight")
    # Only rank 0 hears of the stop, as when a signal reaches one process first.
    source = StopAfter(worker, 3) if worker.rank == 0 else MemorySource(worker.rank, worker.world_size)
    with pytest.raises(TrainingStoppedError):
        run_tiny(worker, folder / "stopped", runtime=LOG_SELDOM, source=source)
    return straight


def _resume(worker: LocalWorker, folder: Path) -> dict[str, Any]:
    return weights_and_metrics(worker, folder / "stopped")


@pytest.mark.parametrize("world_size", [2, 3])
def test_new_processes_resume_bit_by_bit(tmp_path: Path, world_size: int) -> None:
    """DDP rebuilt its buckets after the first step, so a resumed run summed in another order.

    Three ranks: with two, a sum is the same in any order.
    """
    straight = spawn_ranks(_straight_then_stop, tmp_path, world_size)
    resumed = spawn_ranks(_resume, tmp_path, world_size)
    assert_same(straight[0], resumed[0])
    assert straight[0]["metrics"] == straight[1]["metrics"]
