"""One optimizer step: forward, backward, all-reduce, clip, AdamW, moving average.

Shape letters: B batch, C channels, H height, W width, K classes, P parameters.
"""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from coatnet.ema import Ema
from coatnet.losses import sample_losses
from coatnet.param_groups import make_optimizer
from coatnet.train_config import Precision, TrainConfig
from coatnet.worker import Worker

_TINY_WEIGHT = 1e-8
"""Stands in for the weight of a global batch without one usable sample: its gradient is 0."""


class NonFiniteLossError(ArithmeticError):
    """The loss or the gradient stopped being a number. Training cannot go on from these weights."""


@dataclass(kw_only=True)
class TrainState:
    """What a step changes."""

    model: nn.Module
    """The plain module: its names and tensors are what checkpoints hold."""
    forward: nn.Module
    """The same weights, compiled and wrapped for several processes."""
    optimizer: torch.optim.AdamW
    ema: Ema | None
    num_steps: int = 0
    """Finished optimizer steps over all epochs."""


class PendingMetrics:
    """A step's numbers on their way from the device: reading them one step later waits for nothing."""

    def __init__(self, values: Tensor) -> None:
        self._host = torch.empty(values.shape, dtype=values.dtype, pin_memory=values.is_cuda)
        self._host.copy_(values, non_blocking=True)
        self._arrived = torch.cuda.Event() if values.is_cuda else None
        if self._arrived is not None:
            self._arrived.record()

    def read(self, step: int) -> "StepMetrics":
        """Return the numbers, equal on all ranks. Raises NonFiniteLossError naming step and quantity."""
        if self._arrived is not None:
            self._arrived.synchronize()
        loss, gradient_norm, stop_votes = self._host.tolist()
        for quantity, value in (("loss", loss), ("gradient norm", gradient_norm)):
            if not -float("inf") < value < float("inf"):
                raise NonFiniteLossError(
                    f"the {quantity} is {value} at step {step} (counted from 0 over all epochs); the last "
                    f"checkpoint is kept: lower the learning rate, or clip the gradient, and start again"
                )
        return StepMetrics(loss=loss, gradient_norm=gradient_norm, stop=stop_votes > 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class StepMetrics:
    """Of the global batch."""

    loss: float
    gradient_norm: float
    """Before clipping."""
    stop: bool
    """Whether any rank wants to stop; the same on all ranks, so that all stop at the same step."""


def make_train_state(model: nn.Module, config: TrainConfig, worker: Worker) -> TrainState:
    """Move the model to the worker's device and put everything a step needs around it."""
    model.to(worker.device)
    model.train()
    forward = torch.compile(model) if config.compile else model
    assert isinstance(forward, nn.Module)
    if worker.world_size > 1:
        forward = _distribute(forward, worker)
    return TrainState(
        model=model,
        forward=forward,
        optimizer=make_optimizer(model, config),
        ema=None if config.ema_decay is None else Ema(model, config.ema_decay),
    )


def _distribute(model: nn.Module, worker: Worker) -> DistributedDataParallel:
    """Wrap for data parallelism so that a resumed run repeats the sums bit by bit on the CPU.

    DDP rebuilds its gradient buckets after its first step, in the order gradients arrived; a
    resumed process would sum step n in the first layout where the uninterrupted one used the
    second. With `find_unused_parameters` they are never rebuilt (`should_rebuild_buckets` in
    torch's reducer.hpp). The GPU keeps the rebuilt, better overlapped layout. BatchNorm's statistics
    stay local, which spares each step a wait for rank 0: a training step does not read them, a
    checkpoint holds rank 0's, and `evaluate` spreads those.
    """
    on_cpu = worker.device.type == "cpu"
    return DistributedDataParallel(
        model,
        device_ids=None if on_cpu else [worker.device.index],
        forward_sync_buffers=False,
        find_unused_parameters=on_cpu,
        gradient_as_bucket_view=True,
    )


def train_step(
    state: TrainState,
    images_BCHW: Tensor,
    targets_BK: Tensor,
    weights_B: Tensor,
    *,
    config: TrainConfig,
    worker: Worker,
    learning_rate: float,
    wants_stop: bool = False,
) -> PendingMetrics:
    """Take one step on this rank's part of the global batch; `wants_stop` is its vote beside the worker's.

    The gradient is that of the weighted mean over the global batch, whatever each rank's share of
    the weight: ranks add up weighted sums, and one factor turns the sum into the mean and clips.
    """
    for group in state.optimizer.param_groups:
        group["lr"] = learning_rate
    state.optimizer.zero_grad(set_to_none=True)
    votes = float(wants_stop or worker.should_stop())
    reduced = _backward(state, images_BCHW, targets_BK, weights_B, votes, config=config, worker=worker)
    loss_sum, weight_sum, stop_votes = reduced.unbind()
    weight_sum = weight_sum.clamp_min(_TINY_WEIGHT)
    gradients = [parameter.grad for parameter in state.model.parameters() if parameter.grad is not None]
    # DDP leaves the ranks' mean: times world_size it is their sum, over the weight the global mean.
    to_mean = (worker.world_size / weight_sum).float()
    gradient_norm = _scale_and_clip(gradients, to_mean, config.clip_norm)
    state.optimizer.step()
    if state.ema is not None:
        state.ema.update(state.num_steps)
    state.num_steps += 1
    return PendingMetrics(torch.stack([loss_sum / weight_sum, gradient_norm.double(), stop_votes]))


def _backward(
    state: TrainState,
    images_BCHW: Tensor,
    targets_BK: Tensor,
    weights_B: Tensor,
    stop_votes: float,
    *,
    config: TrainConfig,
    worker: Worker,
) -> Tensor:
    """Leave gradients of the weighted loss sum; return (loss sum, weight sum, stop votes) over ranks."""
    parts = config.gradient_accumulation_steps
    chunks = list(zip(images_BCHW.chunk(parts), targets_BK.chunk(parts), weights_B.chunk(parts), strict=True))
    local = torch.zeros(3, dtype=torch.float64, device=worker.device)
    local[1] = weights_B.sum()
    local[2] = stop_votes
    reduction: distributed.Work | None = None
    for index, (images, targets, weights) in enumerate(chunks):
        is_last = index + 1 == len(chunks)
        with _without_reduction(state.forward, is_last), autocast(config.precision, worker.device):
            logits = state.forward(images)
            losses = sample_losses(logits, targets, loss=config.loss, label_smoothing=config.label_smoothing)
            loss = (losses * weights).sum()
        local[0] += loss.detach()
        if is_last and worker.world_size > 1:
            reduction = distributed.all_reduce(local, async_op=True)  # hides behind the backward pass
        with _without_reduction(state.forward, is_last):
            loss.backward()
    if reduction is not None:
        reduction.wait()
    return local


def _scale_and_clip(gradients: list[Tensor], to_mean: Tensor, clip_norm: float | None) -> Tensor:
    """Scale gradients in place to the global mean, clipped; return the mean's norm before clipping."""
    norm = nn.utils.get_total_norm(gradients, foreach=True) * to_mean
    factor = to_mean
    if clip_norm is not None:
        factor = to_mean * (clip_norm / (norm + 1e-6)).clamp_max(1.0)
    torch._foreach_mul_(gradients, factor)  # pyright: ignore[reportPrivateUsage, reportPrivateImportUsage]
    return norm


def _without_reduction(forward: nn.Module, is_last: bool) -> AbstractContextManager[None]:
    if isinstance(forward, DistributedDataParallel) and not is_last:
        return forward.no_sync()
    return nullcontext()


def autocast(precision: Precision, device: torch.device) -> torch.autocast:
    """Return the context that runs matrix products in bfloat16, or leaves everything in float32."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")
