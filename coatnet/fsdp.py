"""Weights sharded over ranks (FSDP2), for the members of the family that fit on no single device."""

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.nn.modules.batchnorm import _BatchNorm  # pyright: ignore[reportPrivateUsage]

from coatnet.model import CoAtNet
from coatnet.train_config import Precision


def shard_model(model: CoAtNet, mesh: DeviceMesh, precision: Precision = "float32") -> None:
    """Shard the weights of every block, and of what is left, over the mesh, in place.

    Each block is gathered when it is needed and freed after use. With `bf16` the gathered weights and the
    gradients' sums are bfloat16, while BatchNorm keeps float32: its statistics would lose what a batch adds.
    Call it before the optimizer is made. NCCL and GPUs have not run here; gloo on the CPU has.
    """
    if precision == "bf16":
        policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    else:
        policy = MixedPrecisionPolicy()
    exact = MixedPrecisionPolicy(
        param_dtype=torch.float32,
        output_dtype=torch.bfloat16 if precision == "bf16" else None,
    )
    # FSDP2 shards contiguous weights only; images and activations stay channels_last.
    model.to(memory_format=torch.contiguous_format)  # pyright: ignore[reportCallIssue]
    for stage in model.stages:
        assert isinstance(stage, nn.Sequential)
        for block in stage:
            _shard_batch_norms(block, mesh, exact)
            fully_shard(block, mesh=mesh, mp_policy=policy)
    _shard_batch_norms(model.stem, mesh, exact)
    fully_shard(model, mesh=mesh, mp_policy=policy)


def _shard_batch_norms(module: nn.Module, mesh: DeviceMesh, policy: MixedPrecisionPolicy) -> None:
    """Give the BatchNorm layers of a block one group of their own, with their own precision."""
    norms: list[nn.Module] = [norm for norm in module.modules() if isinstance(norm, _BatchNorm)]
    for norm in norms:
        fully_shard(norm, mesh=mesh, mp_policy=policy)
