"""`torch.compile` takes the whole model as one graph, and that graph follows the weights."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.fx import GraphModule

from coatnet import CoAtNet
from coatnet.relative_attention import RelativeAttentionLayer
from coatnet.transformer import FeedForward
from tests.tiny_coatnet import TINY

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


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*script_method.* is deprecated:DeprecationWarning")  # torch's own
@pytest.mark.filterwarnings(
    "ignore:(?s).*Jsonargparse:DeprecationWarning"
)  # the compiler looks into all modules
def test_inductor_computes_the_same() -> None:
    """The real compiler, C++ and all."""
    model = CoAtNet(CONFIG).eval()
    compiled = torch.compile(model, fullgraph=True)
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(compiled(images), model(images), atol=1e-4, rtol=1e-4)
