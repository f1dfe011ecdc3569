from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from coatnet.checkpoint import CheckpointStore
from coatnet.evaluate import evaluate
from coatnet.loop import TrainingStoppedError
from coatnet.schedule import batch_norm_momentum
from coatnet.step import NonFiniteLossError
from coatnet.worker import LocalWorker
from data.batch_reader import TooManyBadSamplesError
from data.errors import InputError
from data.types import Batch
from infra.folder_store import FolderStore
from tests.tiny_training import (
    CONFIG,
    NUM_SAMPLES,
    ORDER,
    RUNTIME,
    MemoryEval,
    MemorySource,
    StopAfter,
    TinyNet,
    run_tiny,
    spawn_ranks,
)


def make_worker(lines: list[str] | None = None) -> LocalWorker:
    show = (lambda line: None) if lines is None else lines.append
    return LocalWorker(device=torch.device("cpu"), show=show)


def steps_saved(folder: Path) -> list[int]:
    """Of whole checkpoints: an upload beside the training is a hidden file until then."""
    return sorted(int(path.name[5:14]) for path in (folder / "checkpoints").glob("step-*"))


def test_it_learns_and_reports(tmp_path: Path) -> None:
    lines: list[str] = []
    logged: list[tuple[int, Mapping[str, float]]] = []
    config = replace(CONFIG, epochs=8, eval_every_epochs=4, ema_decay=0.9)
    result = run_tiny(
        make_worker(lines), tmp_path, config=config, log=lambda step, values: logged.append((step, values))
    )
    assert result.num_steps == 8 * 4
    assert result.metrics["eval/top1"] > 0.9
    assert [step for step, values in logged if "train/loss" in values] == list(range(1, 33))
    assert [step for step, values in logged if "eval/top1" in values] == [16, 32]
    assert logged[0][1]["train/learning_rate"] == pytest.approx(2.5e-3)
    assert sum("eval  top-1" in line for line in lines) == 2
    assert steps_saved(tmp_path) == [30, 32]


def test_the_result_is_the_moving_average(tmp_path: Path) -> None:
    live, averaged = TinyNet(), TinyNet()
    plain = run_tiny(make_worker(), tmp_path / "a", model=live, config=replace(CONFIG, ema_decay=None))
    ema = run_tiny(make_worker(), tmp_path / "b", model=averaged)
    for name, value in live.state_dict().items():
        assert torch.equal(value, averaged.state_dict()[name]), "averaging must not change training"
        assert torch.equal(plain.weights[name], value)
    assert any(not torch.equal(ema.weights[name], value) for name, value in averaged.state_dict().items())


def test_a_short_training_moves_batch_norm_faster_than_the_paper(tmp_path: Path) -> None:
    model = TinyNet()
    model.layers[1] = nn.BatchNorm2d(8, momentum=0.01)
    result = run_tiny(make_worker(), tmp_path, model=model)
    momentum = model.layers[1].momentum
    assert momentum == batch_norm_momentum(result.num_steps) == 0.1


def test_a_finished_run_is_not_trained_again(tmp_path: Path) -> None:
    first = run_tiny(make_worker(), tmp_path)

    class Unreadable(MemorySource):
        def batches(self, epoch: int, start_step: int = 0) -> Iterator[Batch]:
            raise AssertionError("read a batch")

    again = run_tiny(make_worker(), tmp_path, source=Unreadable(0, 1))
    assert again.metrics == first.metrics
    assert all(torch.equal(again.weights[name], value) for name, value in first.weights.items())


class Poisoned(MemorySource):
    """From one batch on, every label's weight is not a number."""

    def batches(self, epoch: int, start_step: int = 0) -> Iterator[Batch]:
        for batch in super().batches(epoch, start_step):
            bad = (epoch, batch.step) >= (1, 1)
            yield replace(batch, weights_B=batch.weights_B * float("nan")) if bad else batch


def test_a_non_finite_loss_stops_and_keeps_the_last_good_checkpoint(tmp_path: Path) -> None:
    """Numbers are read one step late: a checkpoint due on the bad step must not be written."""
    runtime = replace(RUNTIME, checkpoint_every_steps=1)
    with pytest.raises(NonFiniteLossError, match="the loss is nan at step 5 "):
        run_tiny(make_worker(), tmp_path, runtime=runtime, source=Poisoned(0, 1))
    assert steps_saved(tmp_path) == [4, 5], "steps 0 to 4 were good"
    found = CheckpointStore(FolderStore(root=tmp_path), "checkpoints").load_latest()
    assert found is not None
    assert all(value.isfinite().all() for value in found[1].model.values())


def test_a_checkpoint_of_another_order_is_refused_by_field(tmp_path: Path) -> None:
    run_tiny(make_worker(), tmp_path)
    source = MemorySource(0, 1, replace(ORDER, seed=2, shuffle_window=12))
    with pytest.raises(InputError, match=r"shuffle_window \(24 kept, 12 now\), seed \(1 kept, 2 now\)"):
        run_tiny(make_worker(), tmp_path, source=source)


def test_a_checkpoint_of_another_model_is_refused_by_tensor(tmp_path: Path) -> None:
    run_tiny(make_worker(), tmp_path)
    model = TinyNet()
    model.layers[-1] = nn.Linear(16, 4)
    with pytest.raises(InputError, match=r"'layers.8.bias' where the model has \(4,\)"):
        run_tiny(make_worker(), tmp_path, model=model)


def test_a_stop_is_seen_within_two_steps_and_saved(tmp_path: Path) -> None:
    worker = make_worker()
    with pytest.raises(TrainingStoppedError, match="tiny stopped after step 3/4 of epoch 1"):
        run_tiny(worker, tmp_path, source=StopAfter(worker, 2))
    assert steps_saved(tmp_path) == [3]


def test_before_each_checkpoint_the_caller_is_asked(tmp_path: Path) -> None:
    """It was asked at the end of an epoch only: a stop before that forgot what it would have counted."""
    asked: list[tuple[int, list[int]]] = []

    def before_save(num_steps: int) -> None:
        asked.append((num_steps, steps_saved(tmp_path) if asked else []))

    worker = make_worker()
    with pytest.raises(TrainingStoppedError, match="after step 2/4 of epoch 2"):
        run_tiny(worker, tmp_path, source=StopAfter(worker, 5), before_save=before_save)
    assert [num_steps for num_steps, _ in asked] == [3, 4, 6]
    assert all(num_steps not in saved for num_steps, saved in asked)
    assert steps_saved(tmp_path) == [4, 6]


def test_a_refusal_before_a_checkpoint_keeps_the_one_before(tmp_path: Path) -> None:
    def before_save(num_steps: int) -> None:
        if num_steps == 4:
            raise TooManyBadSamplesError("too many")

    with pytest.raises(TooManyBadSamplesError):
        run_tiny(make_worker(), tmp_path, before_save=before_save)
    assert steps_saved(tmp_path) == [3], "its upload has ended"


def _stop_on_one_rank(worker: LocalWorker, folder: Path) -> list[int]:
    """Rank 1 wants a stop from its second step on; return when this rank was asked before a checkpoint."""
    asked: list[int] = []
    num_asked = iter(range(100))
    with pytest.raises(TrainingStoppedError):
        run_tiny(
            worker, folder, runtime=replace(RUNTIME, checkpoint_every_steps=100), before_save=asked.append,
            wants_stop=lambda: worker.rank == 1 and next(num_asked) >= 1,
        )  # fmt: skip
    return asked


def test_one_rank_brings_all_to_the_same_checkpoint(tmp_path: Path) -> None:
    assert spawn_ranks(_stop_on_one_rank, tmp_path, 2) == [[3], [3]]


def _evaluate_rank(worker: LocalWorker, batch_size: int) -> tuple[int, float, float, list[str]]:
    model = TinyNet(seed=worker.rank)  # BatchNorm statistics differ between ranks, as after training
    with torch.no_grad():
        for parameter, source in zip(model.parameters(), TinyNet(seed=0).parameters(), strict=True):
            parameter.copy_(source)
        model.layers[1].running_mean.add_(worker.rank)
    keys: list[str] = []
    metrics = evaluate(
        worker,
        model,
        MemoryEval(worker.rank, worker.world_size, batch_size),
        normalize=lambda images: images.permute(0, 3, 1, 2).float() / 255,
        on_batch=lambda batch, logits: keys.extend(
            key for key, weight in zip(batch.keys, batch.weights_B, strict=True) if weight > 0
        ),
    )
    assert model.training
    return metrics.num_samples, metrics.loss, metrics.top1, keys


def test_evaluation_counts_every_sample_once_at_any_world_size() -> None:
    alone = _evaluate_rank(make_worker(), 7)
    ranks = spawn_ranks(_evaluate_rank, 8, 3)
    assert alone[0] == NUM_SAMPLES
    for rank in ranks:
        assert rank[0] == NUM_SAMPLES
        assert rank[1] == pytest.approx(alone[1], rel=1e-6)
        assert rank[2] == alone[2]
    assert sorted(key for rank in ranks for key in rank[3]) == sorted(alone[3])
    assert len(set(alone[3])) == NUM_SAMPLES
