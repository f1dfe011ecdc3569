"""Training state to checkpoint and back, bit by bit."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, distributed, nn

from coatnet.checkpoint import Checkpoint, CheckpointStore
from coatnet.misfit import describe_misfit
from coatnet.step import TrainState
from coatnet.worker import Worker
from data.cursor import Cursor, OrderIdentity
from data.errors import InputError


def capture(
    state: TrainState, cursor: Cursor, *, metrics: Mapping[str, float], losses: Sequence[float]
) -> Checkpoint:
    """Name everything that going on from `cursor` needs. The tensors are the live ones."""
    return Checkpoint(
        step=state.num_steps,
        cursor=cursor.to_dict(),
        model=state.model.state_dict(),
        optimizer=_optimizer_tensors(state.optimizer, state.model),
        ema=None if state.ema is None else state.ema.model.state_dict(),
        metrics=metrics,
        losses=tuple(losses),
    )


def restore(state: TrainState, checkpoint: Checkpoint, identity: OrderIdentity) -> Cursor:
    """Put a checkpoint into the state; return the next batch to read.

    Raises InputError, naming what differs, for a checkpoint of another order or model.
    """
    cursor = Cursor.from_dict(checkpoint.cursor)
    cursor.check(identity)
    _restore_module(state.model, checkpoint.model, "model")
    _restore_optimizer(state.optimizer, state.model, checkpoint.optimizer)
    if state.ema is not None:
        if checkpoint.ema is None:
            raise InputError("the checkpoint has no moving average, ema_decay asks for one: use a new name")
        _restore_module(state.ema.model, checkpoint.ema, "moving average")
    state.num_steps = checkpoint.step
    return cursor


def load_on_all_ranks(worker: Worker, checkpoints: CheckpointStore) -> Checkpoint | None:
    """Load what rank 0 finds newest: ranks that list the store a moment apart might not agree."""
    found = checkpoints.load_latest() if worker.rank == 0 else None
    if worker.world_size == 1:
        return None if found is None else found[1]
    names: list[str | None] = [None if found is None else found[0]]
    distributed.broadcast_object_list(names, src=0, device=worker.device)
    if names[0] is None or found is not None:
        return None if found is None else found[1]
    return checkpoints.load(names[0])


def _optimizer_tensors(optimizer: torch.optim.Optimizer, model: nn.Module) -> dict[str, Tensor]:
    """Return the optimizer's state under names `{slot}/{parameter name}`; empty before the first step."""
    return {
        f"{slot}/{name}": value
        for name, parameter in model.named_parameters()
        for slot, value in optimizer.state.get(parameter, {}).items()
    }


def _restore_optimizer(
    optimizer: torch.optim.Optimizer, model: nn.Module, tensors: Mapping[str, Tensor]
) -> None:
    """Put the state of `_optimizer_tensors` back, each moment in its parameter's memory layout."""
    parameters = dict(model.named_parameters())
    for key, value in tensors.items():
        slot, name = key.split("/", 1)
        if name not in parameters:
            raise InputError(
                f"the checkpoint has optimizer state for {name!r}; this model has no such weight"
            )
        parameter = parameters[name]
        if value.ndim:
            restored = torch.empty_like(parameter, dtype=value.dtype, requires_grad=False).copy_(value)
        else:  # The step count lives beside the parameter because the optimizer is fused.
            restored = value.to(parameter.device, copy=True)
        optimizer.state[parameter][slot] = restored


def _restore_module(module: nn.Module, tensors: Mapping[str, Tensor], what: str) -> None:
    """Load weights in place. Raises InputError naming the first tensor that does not fit."""
    if misfit := describe_misfit(module, tensors):
        raise InputError(f"the checkpoint's {what} has {misfit}; it is another model's: use a new name")
    module.load_state_dict(dict(tensors))
