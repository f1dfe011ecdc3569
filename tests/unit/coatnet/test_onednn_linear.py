"""A linear layer that oneDNN computes is still that linear layer."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.utils._python_dispatch import TorchDispatchMode

from coatnet import onednn_linear, plain_cpu
from coatnet.onednn_linear import trained_linear
from coatnet.transformer import TransformerBlock
from tests.tiny_coatnet import TINY

_PRODUCTS = {"linear", "addmm", "mm", "_linear_pointwise"}


class Products(TorchDispatchMode):
    """Notes which operations multiply by weights; torch's counter of FLOPs would listen to layers."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()
        self.count = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = func.overloadpacket.__name__
        self.names |= {name} & _PRODUCTS
        self.count += name in _PRODUCTS
        return func(*args, **(kwargs or {}))


@pytest.fixture(autouse=True)
def slow_mkl(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on AMD's processors, whichever runs the tests."""
    monkeypatch.setattr(onednn_linear, "_mkl_is_slow", lambda: True)


def products(work: Callable[[], object]) -> set[str]:
    with Products() as mode:
        work()
    return mode.names


@pytest.mark.parametrize("shape", [(3, 5, 7, 16), (1, 1, 1, 16), (4, 16), (16,), (0, 16)])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("is_contiguous", [True, False])
def test_outputs_and_gradients_are_the_layers(
    shape: tuple[int, ...], bias: bool, is_contiguous: bool
) -> None:
    layer = nn.Linear(16, 24, bias=bias)
    x = torch.randn(shape) if is_contiguous else torch.randn((*shape[:-1], 32))[..., ::2]
    found: list[list[Tensor]] = []
    for call in (trained_linear, lambda x, layer: layer(x)):
        leaf = x.detach().requires_grad_()
        leaf.grad = None
        y = call(leaf, layer)
        y.sum().backward(retain_graph=True)  # its gradient is one number, expanded
        y.square().sum().backward()
        gradients = [leaf.grad, *(weight.grad for weight in layer.parameters())]
        found.append([y, *(gradient.clone() for gradient in gradients if gradient is not None)])
        layer.zero_grad()
    assert len(found[0]) == len(found[1]) == 3 + bias
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("frozen", ["nothing", "weight", "input", "both"])
def test_of_what_is_frozen_nothing_is_kept_or_computed(frozen: str) -> None:
    layer, x = nn.Linear(8, 8), torch.randn(2, 3, 3, 8)
    layer.weight.requires_grad_(frozen in ("nothing", "input"))
    x.requires_grad_(frozen in ("nothing", "weight"))
    found: list[tuple[int, int]] = []
    for call in (trained_linear, lambda x, layer: layer(x)):
        kept: list[Tensor] = []

        def keep(tensor: Tensor, kept: list[Tensor] = kept) -> Tensor:
            kept.append(tensor)
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            y = call(x, layer)
        with Products() as mode:
            y.sum().backward()
        found.append((len(kept), mode.count))
    assert found[0] == found[1]


def test_gradients_of_gradients() -> None:
    """As a penalty on gradients asks for."""
    layer, x = nn.Linear(8, 8), torch.randn(2, 3, 3, 8, requires_grad=True)
    penalties: list[list[Tensor]] = []
    for call in (trained_linear, lambda x, layer: layer(x)):
        (gradient,) = torch.autograd.grad(call(x, layer).square().sum(), x, create_graph=True)
        penalties.append([*torch.autograd.grad(gradient.square().sum(), [x, layer.weight])])
    torch.testing.assert_close(*penalties, atol=1e-3, rtol=1e-4)


def test_many_gradients_at_once() -> None:
    """The backward pass alone stands in a vmap then."""
    layer, x = nn.Linear(4, 3), torch.randn(2, 4, requires_grad=True)
    found = [
        torch.autograd.grad(
            call(x, layer), [x, layer.weight], torch.eye(6).view(6, 2, 3), is_grads_batched=True
        )
        for call in (trained_linear, lambda x, layer: layer(x))
    ]
    torch.testing.assert_close(*found)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.* is deprecated:DeprecationWarning")  # torch's own
def test_forward_mode_differentiation() -> None:
    layer, x = nn.Linear(4, 3), torch.randn(2, 4)
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(x, torch.ones_like(x))
        tangents = [forward_ad.unpack_dual(y).tangent for y in (trained_linear(dual, layer), layer(dual))]
    torch.testing.assert_close(*tangents)


@pytest.mark.parametrize(("vendor", "expected"), [("AuthenticAMD", True), ("GenuineIntel", False)])
def test_the_processors_maker_decides(vendor: str, expected: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    def read_text(_: Path) -> str:
        return f"vendor_id\t: {vendor}\n"

    monkeypatch.setattr(Path, "read_text", read_text)
    is_amd: Any = vars(onednn_linear)["_is_amd"]
    assert is_amd.__wrapped__() is expected  # what it remembers stays


def test_a_block_trains_by_onednn_alone() -> None:
    """MKL, which torch hands linear layers to, has less than half of oneDNN's speed on AMD's Zen 5."""
    block = TransformerBlock(TINY, 16, 16, stride=1, drop_rate=0.0, grid_size=4).train()
    x = torch.randn(2, 16, 4, 4).contiguous(memory_format=torch.channels_last)
    assert products(lambda: block(x).sum().backward()) == {"_linear_pointwise"}


class Own(nn.Linear):
    """As of LoRA: it computes something else."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) + 1


@pytest.mark.parametrize(
    "what",
    ["subclass", "hook", "backward hook", "own forward", "eval", "double", "strided bias", "autocast",
     "no gradient", "no oneDNN", "fast MKL"],
)  # fmt: skip
def test_anything_else_goes_the_layers_own_way(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    layer = Own(8, 8) if what == "subclass" else nn.Linear(8, 8)
    x = torch.randn(2, 3, 3, 8)
    heard: list[str] = []
    if what == "hook":
        layer.register_forward_hook(lambda *_: heard.append("hook"))
    if what == "backward hook":
        layer.register_full_backward_hook(lambda *_: heard.append("hook"))
    if what == "own forward":
        monkeypatch.setattr(layer, "forward", lambda x: x + 1)
    if what == "eval":
        layer.eval()
    if what == "no oneDNN":  # torch's own switch warns of Intel's GPUs
        monkeypatch.setattr(plain_cpu, "_onednn_is_on", lambda: False)
    if what == "fast MKL":  # Intel's: by oneDNN a step took 7 to 12% longer
        monkeypatch.setattr(onednn_linear, "_mkl_is_slow", lambda: False)
    if what == "double":
        layer, x = layer.double(), x.double()
    if what == "strided bias":
        layer.bias = nn.Parameter(torch.randn(16)[::2])
    with (
        torch.autocast("cpu", torch.bfloat16, enabled=what == "autocast"),
        torch.set_grad_enabled(what != "no gradient"),
    ):
        assert "_linear_pointwise" not in products(lambda: trained_linear(x, layer))
        found, expected = trained_linear(x, layer), layer(x)
    torch.testing.assert_close(found, expected)
    heard.clear()
    if what == "backward hook":
        trained_linear(x.requires_grad_(), layer).sum().backward()
    if what == "hook":
        trained_linear(x, layer)
    assert heard == (["hook"] if what.endswith("hook") else [])
