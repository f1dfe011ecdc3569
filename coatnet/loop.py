"""The training loop, top to bottom: restore, then for each epoch train, evaluate, save."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, distributed, nn

from coatnet.checkpoint import CheckpointStore
from coatnet.evaluate import EvalSource, Normalize, evaluate
from coatnet.layers import set_batch_norm_momentum
from coatnet.progress import ProgressLine
from coatnet.resume import capture, load_on_all_ranks, restore
from coatnet.schedule import batch_norm_momentum, learning_rate
from coatnet.step import (
    NonFiniteLossError,
    PendingMetrics,
    StepMetrics,
    TrainState,
    make_train_state,
    train_step,
)
from coatnet.step_times import StepTimes
from coatnet.train_config import RuntimeTrainConfig, TrainConfig
from coatnet.train_parts import Augmenter, BeforeSave, DataMetrics, Log, TrainSource
from coatnet.worker import Worker
from data.batch_reader import TooManyBadSamplesError
from data.cursor import Cursor
from data.randomness import hash_key
from data.transfer import batch_to_device
from data.types import Batch


class TrainingStoppedError(Exception):
    """Stopped on request, with a checkpoint saved; the same call goes on from there."""


@dataclass(frozen=True, kw_only=True)
class TrainResult:
    """A finished training."""

    metrics: Mapping[str, float]
    """Of the last epoch's evaluation, under `EvalMetrics.scalars` names."""
    weights: Mapping[str, Tensor]
    """The state dict to use from here on: the moving average if there is one. On the device."""
    num_steps: int


@dataclass(kw_only=True)
class _Run:
    """What the parts of the loop share."""

    worker: Worker
    config: TrainConfig
    runtime: RuntimeTrainConfig
    source: TrainSource
    make_eval_source: Callable[[], EvalSource]
    augment: Augmenter
    normalize: Normalize
    checkpoints: CheckpointStore
    log: Log
    state: TrainState
    progress: ProgressLine
    data_metrics: DataMetrics
    before_save: BeforeSave
    wants_stop: Callable[[], bool]
    times: StepTimes = field(default_factory=StepTimes)
    metrics: dict[str, float] = field(default_factory=dict[str, float])
    losses: list[float] = field(default_factory=list[float])
    """Since the last logged step; rank 0's alone, which logs."""


def train(
    worker: Worker,
    *,
    model: nn.Module,
    config: TrainConfig,
    runtime: RuntimeTrainConfig,
    source: TrainSource,
    make_eval_source: Callable[[], EvalSource],
    augment: Augmenter,
    normalize: Normalize,
    checkpoints: CheckpointStore,
    log: Log,
    data_metrics: DataMetrics = dict,
    before_save: BeforeSave = lambda num_steps: None,
    wants_stop: Callable[[], bool] = lambda: False,
) -> TrainResult:
    """Train to the end of the last epoch, from the newest checkpoint if there is one.

    Every rank calls it with its own worker and source. With the same world size a resumed run ends
    with the same weights bit by bit on the CPU. `wants_stop`, asked on every step, lets any one rank
    bring all of them to `before_save` and a stop. Raises InputError for a checkpoint of another model
    or order, NonFiniteLossError, TrainingStoppedError, and StoreError if the final state cannot
    be saved.
    """
    set_batch_norm_momentum(model, batch_norm_momentum(config.epochs * source.steps_per_epoch))
    progress = ProgressLine(
        stage=runtime.name,
        num_epochs=config.epochs,
        steps_per_epoch=source.steps_per_epoch,
        global_batch_size=source.identity.global_batch_size,
        every_s=runtime.progress_every_s,
    )
    run = _Run(
        worker=worker,
        config=config,
        runtime=runtime,
        source=source,
        make_eval_source=make_eval_source,
        augment=augment,
        normalize=normalize,
        checkpoints=checkpoints,
        log=log,
        data_metrics=data_metrics,
        before_save=before_save,
        wants_stop=wants_stop,
        state=make_train_state(model, config, worker),
        progress=progress,
    )
    try:
        _train_epochs(run)
    except NonFiniteLossError:
        _wind_down(run)
        raise
    checkpoints.finish()
    return TrainResult(
        metrics=run.metrics, weights=_averaged(run.state).state_dict(), num_steps=run.state.num_steps
    )


def _train_epochs(run: _Run) -> None:
    config = run.config
    start = _restore(run)
    for epoch in range(start.epoch, config.epochs):
        stop = _train_epoch(run, epoch, start.step if epoch == start.epoch else 0)
        is_last = epoch + 1 == config.epochs
        if is_last or (epoch + 1) % config.eval_every_epochs == 0:
            _evaluate(run, epoch)
        _save(run, epoch=epoch + 1, step=0)
        if stop and not is_last:
            _stop(run, f"after epoch {epoch + 1}/{config.epochs}")


def _train_epoch(run: _Run, epoch: int, start_step: int) -> bool:
    """Train the epoch's remaining steps; return whether a stop was asked for at the very end.

    Numbers are read one step late, so that the device never waits for the host; before anything
    is saved they are read in full, so that a checkpoint never holds what a non-finite loss left.
    """
    state, steps_per_epoch = run.state, run.source.steps_per_epoch
    pending: tuple[int, PendingMetrics] | None = None
    stop = False
    run.progress.resume()
    for batch in run.times.watch(run.source.batches(epoch, start_step)):
        launched = _launch(run, batch)
        if pending is not None:
            stop |= _settle(run, epoch, *pending).stop
        pending = (batch.step, launched)
        is_last = batch.step + 1 == steps_per_epoch
        is_due = state.num_steps % run.runtime.checkpoint_every_steps == 0
        if is_last or is_due or stop:
            stop |= _settle(run, epoch, *pending).stop
            pending = None
        if (is_due or stop) and not is_last:
            _save(run, epoch=epoch, step=batch.step + 1)
        if stop and not is_last:
            _stop(run, f"after step {batch.step + 1}/{steps_per_epoch} of epoch {epoch + 1}")
    run.progress.pause()
    return stop


def _launch(run: _Run, batch: Batch) -> PendingMetrics:
    """Augment and take one step, without waiting for the device."""
    state, identity = run.state, run.source.identity
    lane_size = identity.global_batch_size // identity.num_lanes
    # Dropout and stochastic depth depend on the step alone, never on what ran before it.
    torch.manual_seed(hash_key(run.source.identity.seed, state.num_steps, run.worker.rank))
    with run.times.part("copy"):
        batch = batch_to_device(batch, run.worker.device)
    with run.times.part("augment"):
        augmented = run.augment(batch, lane_size=lane_size, device=run.worker.device)
    return train_step(
        state,
        augmented.images_BCHW,
        augmented.targets_BK,
        augmented.weights_B,
        config=run.config,
        worker=run.worker,
        learning_rate=learning_rate(run.config, state.num_steps, run.source.steps_per_epoch),
        wants_stop=run.wants_stop(),
    )


def _settle(run: _Run, epoch: int, step: int, pending: PendingMetrics) -> StepMetrics:
    """Read a step's numbers, show and log them. Raises NonFiniteLossError."""
    global_step = epoch * run.source.steps_per_epoch + step
    metrics = pending.read(global_step)
    rate = learning_rate(run.config, global_step, run.source.steps_per_epoch)
    shown = run.progress.step(epoch, step, metrics.loss, rate)
    if shown is not None:
        run.worker.report(shown)
    if run.worker.rank != 0:
        return metrics
    run.losses.append(metrics.loss)
    if (global_step + 1) % run.runtime.log_every_steps == 0:
        values = {
            "train/loss": sum(run.losses) / len(run.losses),
            "train/gradient_norm": metrics.gradient_norm,
            "train/learning_rate": rate,
        }
        values |= {**run.times.take(), **run.data_metrics()}
        if run.progress.images_per_s > 0:
            values["train/images_per_s"] = run.progress.images_per_s
        run.log(global_step + 1, values)
        run.losses.clear()
    return metrics


def _evaluate(run: _Run, epoch: int) -> None:
    result = evaluate(
        run.worker,
        _averaged(run.state),
        run.make_eval_source(),
        normalize=run.normalize,
        precision=run.config.precision,
    )
    run.metrics = result.scalars()
    text = f"eval  top-1 {result.top1:.1%}  loss {result.loss:.3f}  {result.num_samples:,} images"
    run.worker.report(run.progress.note(epoch, text))
    if run.worker.rank == 0:
        run.log(run.state.num_steps, run.metrics)


def _averaged(state: TrainState) -> nn.Module:
    return state.model if state.ema is None else state.ema.model


def _save(run: _Run, *, epoch: int, step: int) -> None:
    """Save on rank 0; every rank calls it, at the same step."""
    try:
        run.before_save(run.state.num_steps)
    except TooManyBadSamplesError:  # On all ranks alike.
        _wind_down(run)
        raise
    if run.worker.rank != 0:
        return
    cursor = Cursor(identity=run.source.identity, epoch=epoch, step=step)
    run.checkpoints.save(capture(run.state, cursor, metrics=run.metrics, losses=run.losses))


def _stop(run: _Run, where: str) -> None:
    _wind_down(run)
    raise TrainingStoppedError(f"{run.runtime.name} stopped {where}; run the same command to go on")


def _wind_down(run: _Run) -> None:
    """Let rank 0's upload end before any rank leaves: the runtime ends all when the first one fails."""
    try:
        run.checkpoints.finish()
    finally:
        if run.worker.world_size > 1:
            distributed.barrier()


def _restore(run: _Run) -> Cursor:
    """Go on from the newest checkpoint, or start; return the next batch to read."""
    checkpoint = load_on_all_ranks(run.worker, run.checkpoints)
    if checkpoint is None:
        return Cursor(identity=run.source.identity, epoch=0, step=0)
    cursor = restore(run.state, checkpoint, run.source.identity)
    run.metrics, run.losses = dict(checkpoint.metrics), list(checkpoint.losses)
    if cursor.epoch < run.config.epochs:
        text = f"resumed at step {cursor.step}/{run.source.steps_per_epoch}"
        run.worker.report(run.progress.note(cursor.epoch, text))
    return cursor
