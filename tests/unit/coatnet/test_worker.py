import pytest
import torch

from coatnet.progress import Progress
from coatnet.worker import LocalWorker, start_torchrun_worker

PROGRESS = Progress(
    stage="s", epoch=1, num_epochs=1, step=1, steps_per_epoch=2, loss=1.0, learning_rate=1e-3,
    images_per_s=5.0, eta_s=3.0,
)  # fmt: skip


def test_only_rank_zero_shows_progress() -> None:
    lines: list[str] = []
    for rank in (0, 1):
        worker = LocalWorker(rank=rank, world_size=2, device=torch.device("cpu"), show=lines.append)
        worker.report(PROGRESS)
    assert len(lines) == 1
    assert "step 1/2" in lines[0]


def test_stop_is_seen() -> None:
    worker = LocalWorker()
    assert not worker.should_stop()
    worker.stop()
    assert worker.should_stop()


def test_without_torchrun_a_worker_is_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    worker = start_torchrun_worker()
    assert (worker.rank, worker.world_size) == (0, 1)
