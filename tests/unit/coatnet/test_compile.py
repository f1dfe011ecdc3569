"""`torch.compile` takes the whole model as one graph, and that graph follows the weights."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from coatnet import CoAtNet, onednn_linear
from coatnet.compiled_depthwise import depthwise
from coatnet.mbconv import MBConvBlock
from coatnet.relative_attention import RelativeAttentionLayer
from coatnet.transformer import FeedForward
from tests.tiny_coatnet import TINY

OPERATIONS: Any = torch.ops.coatnet
CONFIG = replace(TINY, stochastic_depth_rate=0.2)


@pytest.fixture(autouse=True)
def forget_graphs() -> None:
    torch.compiler.reset()


@pytest.mark.parametrize("kind", ["pre", "post", "none"])
def test_one_graph_in_training(kind: str) -> None:
    model = CoAtNet(replace(CONFIG, relative_attention=kind))
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    images = torch.randn(2, 3, 64, 64)
    results: list[tuple[Tensor, ...]] = []
    for call in (model, compiled):
        torch.manual_seed(1)
        logits = call(images)
        results.append((logits, *torch.autograd.grad(logits.square().sum(), list(model.parameters()))))
    torch.testing.assert_close(*results, atol=1e-4, rtol=1e-4)


def test_one_graph_in_eval_that_follows_the_weights() -> None:
    """A bias cached while the graph was traced would be served after the next weights were loaded."""
    model, other = CoAtNet(CONFIG).eval(), CoAtNet(CONFIG).eval()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        for size in (64, 96):
            images = torch.randn(2, 3, size, size)
            torch.testing.assert_close(compiled(images), model(images))
        model.load_state_dict(other.state_dict())
        torch.testing.assert_close(compiled(images), other(images))


def test_the_graph_of_eval_folds_norms_and_activations() -> None:
    """Compiled inference was slower than eager: the compiler folds no BatchNorm whose weights may change,
    and leaves linear layers to MKL, GELU apart."""
    called: list[str] = []

    def note(graph: GraphModule, _: list[Tensor]) -> GraphModule:
        called.extend(str(node.target) for node in graph.graph.nodes)
        return graph

    model, images = CoAtNet(CONFIG).eval(), torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        found = torch.compile(model, fullgraph=True, backend=note)(images)
        torch.testing.assert_close(found, model(images))
    assert any("_convolution_pointwise" in target for target in called)
    num_linear = sum("coatnet.linear" in target for target in called)
    assert num_linear == sum(isinstance(m, RelativeAttentionLayer | FeedForward) for m in model.modules()) * 2
    assert not any("batch_norm" in target or "gelu" in target for target in called)


def test_the_graph_of_training_is_laid_out_as_the_memory_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """The compiler laid out a depthwise convolution's input in an order that the convolution had to undo, and
    took the second dimension of [B, H, W, C] for the channels: compiled training was slower than eager."""
    called: list[tuple[str, int]] = []
    monkeypatch.setattr(onednn_linear, "_mkl_is_slow", lambda: True)  # as on AMD's processors

    def note(graph: GraphModule, _: list[Tensor]) -> GraphModule:
        for node in graph.graph.nodes:
            assert "scaled_dot_product" not in str(node.target)  # its single steps look for rows of -inf
            if "coatnet." in str(node.target):
                called.append((str(node.target), node.args[0].meta["example_value"].ndim))
        return graph

    model = CoAtNet(CONFIG)
    logits = torch.compile(model, fullgraph=True, backend=note)(torch.randn(2, 3, 64, 64))
    logits.square().sum().backward()
    num_depthwise = sum(isinstance(module, MBConvBlock) for module in model.modules())
    num_linear = sum(isinstance(m, RelativeAttentionLayer | FeedForward) for m in model.modules()) * 2
    assert (
        sorted(called)
        == [("coatnet.depthwise.default", 4)] * num_depthwise + [("coatnet.linear.default", 3)] * num_linear
    )


FORMATS = (torch.channels_last, torch.contiguous_format)


@pytest.mark.parametrize("of_x", FORMATS)
@pytest.mark.parametrize("of_weight", FORMATS)
@pytest.mark.parametrize("stride", [1, 2])
def test_a_depthwise_convolution_and_its_gradients(
    of_x: torch.memory_format, of_weight: torch.memory_format, stride: int
) -> None:
    layer = nn.Conv2d(8, 8, 3, stride=stride, padding=1, groups=8, bias=False).to(memory_format=of_weight)
    x = torch.randn(2, 8, 9, 12).contiguous(memory_format=of_x).requires_grad_()
    found: list[tuple[Tensor, ...]] = []
    for call in (torch.compile(depthwise, fullgraph=True, backend="aot_eager"), depthwise):
        y = call(x, layer)
        found.append((y, *torch.autograd.grad(y.square().sum(), [x, layer.weight])))
    torch.testing.assert_close(*found)
    geometry = ([stride, stride], [1, 1])
    # Compares the strides that the compiler counts on with those that come.
    torch.library.opcheck(OPERATIONS.depthwise.default, (x, layer.weight, *geometry))
    gradients = (torch.randn_like(found[0][0]), x.detach(), layer.weight.detach())
    torch.library.opcheck(OPERATIONS.depthwise_gradients.default, (*gradients, *geometry))


@pytest.mark.parametrize("what", ["frozen", "dilated", "reflecting", "eval", "no gradient"])
def test_another_depthwise_convolution_is_torchs_own(what: str) -> None:
    layer = nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False)
    layer.requires_grad_(what != "frozen").train(what != "eval")
    if what == "dilated":
        layer.dilation = (2, 2)
    if what == "reflecting":
        layer = nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False, padding_mode="reflect")
    called: list[str] = []

    def note(graph: GraphModule, _: list[Tensor]) -> GraphModule:
        called.extend(str(node.target) for node in graph.graph.nodes)
        return graph

    x = torch.randn(2, 8, 9, 12, requires_grad=True)
    with torch.set_grad_enabled(what != "no gradient"):
        torch.testing.assert_close(torch.compile(depthwise, backend=note)(x, layer), layer(x))
    assert called
    assert not any("coatnet" in target for target in called)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*script_method.* is deprecated:DeprecationWarning")  # torch's own
@pytest.mark.filterwarnings(
    "ignore:(?s).*Jsonargparse:DeprecationWarning"
)  # the compiler looks into all modules
@pytest.mark.parametrize("is_training", [False, True])
def test_inductor_computes_the_same(is_training: bool) -> None:
    """The real compiler, C++ and all."""
    model = CoAtNet(replace(CONFIG, stochastic_depth_rate=0.0)).train(is_training)
    compiled = torch.compile(model, fullgraph=True)
    images = torch.randn(2, 3, 64, 64)
    results: list[tuple[Tensor, ...]] = []
    for call in (model, compiled):
        with torch.set_grad_enabled(is_training):
            logits = call(images)
        parameters = list(model.parameters()) if is_training else []
        gradients = torch.autograd.grad(logits.square().sum(), parameters) if is_training else ()
        results.append((logits, *gradients))
    tolerance = 1e-3 if is_training else 1e-4
    torch.testing.assert_close(*results, atol=tolerance, rtol=tolerance)
