"""Two gloo processes that each hold half of every weight, against each holding all of them."""

from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor

from coatnet import CoAtNet
from coatnet.fsdp import shard_model
from coatnet.train_config import Precision
from coatnet.worker import LocalWorker
from tests.tiny_coatnet import TINY
from tests.tiny_training import spawn_ranks


def train_both(worker: LocalWorker, precision: Precision) -> dict[str, Any]:
    """Return the largest relative difference of the gradients, and how the sharded model is held."""
    torch.manual_seed(0)
    plain = CoAtNet(TINY)
    sharded = deepcopy(plain)
    shard_model(sharded, init_device_mesh("cpu", (worker.world_size,)), precision)
    torch.manual_seed(worker.rank)
    images = torch.randn(4, 3, 32, 32)
    plain(images).square().mean().backward()
    sharded(images).float().square().mean().backward()
    differences: dict[str, float] = {}
    for (name, weight), other in zip(plain.named_parameters(), sharded.parameters(), strict=True):
        assert weight.grad is not None
        assert isinstance(other.grad, DTensor)
        distributed.all_reduce(weight.grad, op=distributed.ReduceOp.SUM)
        mean = weight.grad / worker.world_size
        # Weights before a normalisation have gradients of nothing but rounding: compare with the largest.
        differences[name] = float((other.grad.full_tensor() - mean).norm())
    scale = max(float(weight.grad.norm()) for weight in plain.parameters() if weight.grad is not None)
    norms = [module for module in sharded.modules() if isinstance(module, nn.BatchNorm2d)]
    plain_norms = [module for module in plain.modules() if isinstance(module, nn.BatchNorm2d)]
    drift = max(
        float((ours.running_var - theirs.running_var).abs().max())
        for ours, theirs in zip(norms, plain_norms, strict=True)
        if ours.running_var is not None and theirs.running_var is not None
    )
    local = [weight.to_local() for weight in sharded.parameters() if isinstance(weight, DTensor)]
    return {
        "difference": max(differences.values()) / scale * worker.world_size,
        "statistics": {norm.running_mean.dtype for norm in norms if norm.running_mean is not None},
        "drift": drift,
        "local_numel": sum(weight.numel() for weight in local),
        "numel": sum(weight.numel() for weight in plain.parameters()),
        "names": list(sharded.state_dict()) == list(plain.state_dict()),
    }


@pytest.mark.parametrize(("precision", "tolerance"), [("float32", 1e-5), ("bf16", 0.1)])
def test_gradients_are_those_of_the_whole_model(precision: str, tolerance: float) -> None:
    found = spawn_ranks(train_both, precision, world_size=2)
    for rank in found:
        assert rank["difference"] < tolerance
        assert rank["drift"] < tolerance
        assert rank["statistics"] == {torch.float32}
        assert rank["names"], "a checkpoint of one must load into the other"
    # Each weight is cut along its first dimension, so one of odd length leaves a row more to rank 0.
    assert sum(rank["local_numel"] for rank in found) == found[0]["numel"]
    assert max(rank["local_numel"] for rank in found) < 0.6 * found[0]["numel"]
