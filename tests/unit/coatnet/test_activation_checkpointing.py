"""Memory for time: the same numbers, the same BatchNorm statistics, less kept for the backward pass."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from coatnet import CoAtNet, ModelConfig
from coatnet.activation_checkpointing import checkpoint_stages
from coatnet.worker import LocalWorker
from data.errors import InputError
from tests.tiny_coatnet import TINY
from tests.tiny_training import spawn_ranks

CONFIG = replace(TINY, stochastic_depth_rate=0.3)


def train_once(model: CoAtNet) -> dict[str, torch.Tensor]:
    """Return all gradients, and the buffers after the step."""
    torch.manual_seed(1)
    model.train()
    model(torch.randn(4, 3, 32, 32)).square().sum().backward()
    gradients = {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}
    return gradients | dict(model.named_buffers())


def make_pair(config: ModelConfig = CONFIG) -> tuple[CoAtNet, CoAtNet]:
    plain = CoAtNet(config)
    checkpointed = CoAtNet(config)
    checkpointed.load_state_dict(plain.state_dict())
    checkpoint_stages(checkpointed.stages, range(3))
    return plain, checkpointed


def test_gradients_and_batch_norm_statistics_stay_the_same() -> None:
    """BatchNorm's running statistics moved twice a step, the second time for the recomputation."""
    plain, checkpointed = make_pair()
    expected, found = train_once(plain), train_once(checkpointed)
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, msg=name)
    assert {norm.momentum for norm in checkpointed.modules() if isinstance(norm, nn.BatchNorm2d)} == {0.01}
    assert all(int(value) == 1 for name, value in found.items() if name.endswith("num_batches_tracked"))


def test_compiled_it_is_the_same() -> None:
    """torch's compiler refuses the contexts that keep BatchNorm from counting twice, and needs none."""
    plain, checkpointed = make_pair(TINY)
    expected = train_once(plain)
    torch.compiler.reset()
    checkpointed.compile(fullgraph=True, backend="aot_eager")
    found = train_once(checkpointed)
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, msg=name)


def test_less_is_kept() -> None:
    def kept_bytes(model: CoAtNet) -> int:
        sizes: dict[int, int] = {}

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            sizes[tensor.data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            model.train()(torch.randn(4, 3, 32, 32))
        return sum(sizes.values())

    plain, checkpointed = make_pair()
    assert kept_bytes(checkpointed) < kept_bytes(plain) / 3


def test_eval_and_the_state_dict_are_the_plain_models() -> None:
    plain, checkpointed = make_pair()
    images = torch.randn(2, 3, 40, 32)
    assert torch.equal(plain.eval()(images), checkpointed.eval()(images))
    assert list(plain.state_dict()) == list(checkpointed.state_dict())


def test_a_stage_that_is_not_there() -> None:
    with pytest.raises(InputError, match="no stage 3 to checkpoint: the model has 0 to 2"):
        checkpoint_stages(CoAtNet(CONFIG).stages, [3])


def train_distributed(worker: LocalWorker, checkpointed: bool) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    model = CoAtNet(CONFIG)
    checkpoint_stages(model.stages, range(3) if checkpointed else ())
    forward = DistributedDataParallel(model, find_unused_parameters=True)
    torch.manual_seed(worker.rank)
    forward(torch.randn(4, 3, 32, 32)).square().sum().backward()
    return {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}


def test_it_works_under_data_parallelism() -> None:
    plain, checkpointed = (
        spawn_ranks(train_distributed, choice, world_size=2)[0] for choice in (False, True)
    )
    assert plain.keys() == checkpointed.keys()
    for name, value in plain.items():
        torch.testing.assert_close(checkpointed[name], value, msg=name)
