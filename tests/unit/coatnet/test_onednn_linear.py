"""A linear layer that is computed as a convolution is still that linear layer."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from coatnet.onednn_linear import linear_as_convolution
from coatnet.transformer import TransformerBlock
from tests.tiny_coatnet import TINY


def kinds_of(work: Any) -> set[str]:
    """Run it and return what the operations that multiply are called."""
    with FlopCounterMode(display=False) as counter:
        work()
    return {str(kind).partition(".")[2] for kind in counter.get_flop_counts()["Global"]}


@pytest.mark.parametrize(
    "shape", [(3, 10, 9, 16), (1, 1, 1, 16), (2, 128, 1, 16), (300, 1, 1, 16), (32, 3, 3, 16)]
)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("is_channels_last", [True, False])
def test_outputs_and_gradients_are_the_layers(
    shape: tuple[int, ...], bias: bool, is_channels_last: bool
) -> None:
    layer = nn.Linear(16, 24, bias=bias)
    x = torch.randn(shape)
    if not is_channels_last:  # BCHW in its own order, seen as BHWC
        x = x.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1)
    found: list[list[Tensor]] = []
    for call in (linear_as_convolution, lambda x, layer: layer(x)):
        leaf = x.detach().clone(memory_format=torch.preserve_format).requires_grad_()
        y = call(leaf, layer)
        y.square().sum().backward()
        gradients = [p.grad for p in layer.parameters()]
        assert leaf.grad is not None
        assert all(g is not None for g in gradients)
        found.append([y, leaf.grad, *(g for g in gradients if g is not None)])
        layer.zero_grad()
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


def test_training_on_the_cpu_multiplies_in_convolutions_alone() -> None:
    """MKL, which torch hands linear layers to, has half of oneDNN's speed on AMD's Zen 5."""
    block = TransformerBlock(TINY, 16, 16, stride=1, drop_rate=0.0, grid_size=4).train()
    x = torch.randn(16, 16, 4, 4).contiguous(memory_format=torch.channels_last)
    # What is left are the products of queries, keys and values.
    assert kinds_of(lambda: block(x).sum().backward()) == {"convolution", "convolution_backward", "bmm"}


class Listening(nn.Linear):
    """As of LoRA: it computes something else."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) + 1


@pytest.mark.parametrize("what", ["subclass", "hook", "eval", "double", "autocast", "tokens", "few"])
def test_anything_else_goes_the_layers_own_way(what: str) -> None:
    layer = Listening(8, 8) if what == "subclass" else nn.Linear(8, 8)
    x = torch.randn(400, 8) if what == "tokens" else torch.randn(2, 3 if what == "few" else 200, 3, 8)
    heard: list[str] = []
    if what == "hook":
        layer.register_forward_hook(lambda *_: heard.append("hook"))
    if what == "eval":
        layer.eval()
    if what == "double":
        layer, x = layer.double(), x.double()
    with torch.autocast("cpu", torch.bfloat16, enabled=what == "autocast"):
        assert "convolution" not in kinds_of(lambda: linear_as_convolution(x, layer))
        torch.testing.assert_close(linear_as_convolution(x, layer), layer(x))
    assert heard == (["hook"] * 3 if what == "hook" else [])
