import math
from typing import Literal

import pytest
import torch
from torch.nn import functional as F

from coatnet import relative_attention
from coatnet.relative_attention import RelativeAttentionLayer, RelativeBias, relative_index


def naive_attention(layer: RelativeAttentionLayer, x_BHWC: torch.Tensor) -> torch.Tensor:
    """Equation 3 of the paper, one (i, j) pair at a time."""
    batch, height, width, _ = x_BHWC.shape
    n, h, d = height * width, layer.num_heads, layer.head_size
    qkv = layer.qkv(x_BHWC).reshape(batch, n, 3, h, d)
    out = torch.zeros(batch, n, h, d, dtype=x_BHWC.dtype)
    for b in range(batch):
        for head in range(h):
            scores = torch.zeros(n, n, dtype=x_BHWC.dtype)
            bias = torch.zeros(n, n, dtype=x_BHWC.dtype)
            for i in range(n):
                for j in range(n):
                    scores[i, j] = qkv[b, i, 0, head] @ qkv[b, j, 1, head] / math.sqrt(d)
                    if layer.bias is not None:
                        dy, dx = i // width - j // width, i % width - j % width
                        bias[i, j] = layer.bias.table[head, dy + height - 1, dx + width - 1]
            is_pre = layer.kind == "pre"
            weights = (scores + bias).softmax(-1) if is_pre else scores.softmax(-1) + bias
            out[b, :, head] = weights @ qkv[b, :, 2, head]
    return layer.project(out.reshape(batch, height, width, h * d))


@pytest.mark.parametrize("kind", ["pre", "post", "none"])
def test_equals_the_papers_formula(kind: Literal["pre", "post", "none"]) -> None:
    torch.manual_seed(0)
    layer = RelativeAttentionLayer(6, 8, head_size=4, grid_size=3, kind=kind).double()
    if layer.bias is not None:
        layer.bias.reset_parameters()
        layer.bias.table.data.mul_(50)
    x_BHWC = torch.randn(2, 3, 3, 6, dtype=torch.float64)
    expected = naive_attention(layer, x_BHWC)
    torch.testing.assert_close(layer(x_BHWC), expected, atol=1e-12, rtol=1e-12)
    with torch.no_grad():  # torch's fused kernel
        torch.testing.assert_close(layer.eval()(x_BHWC), expected, atol=1e-12, rtol=1e-12)


def test_index_is_query_minus_key() -> None:
    """google-research/maxvit indexes key minus query; the paper's w is of i - j."""
    index = relative_index(2, 3).view(6, 6)
    offsets = torch.arange(3 * 5).view(3, 5)
    assert index[5, 0] == offsets[2, 4]
    assert index[0, 5] == offsets[0, 0]
    assert (index.diagonal() == offsets[1, 2]).all()


def test_other_grids_read_a_bilinear_resize() -> None:
    bias = RelativeBias(num_heads=2, grid_size=4)
    bias.reset_parameters()
    resized = F.interpolate(bias.table[None], size=(9, 11), mode="bilinear", align_corners=False)[0]
    expected = resized.flatten(1)[:, relative_index(5, 6)].view(2, 30, 30)
    torch.testing.assert_close(bias(5, 6, torch.float32), expected)


def test_eval_cache_follows_every_way_to_change_the_table() -> None:
    """A bias cached in eval must not survive an EMA swap or a weight load."""
    bias = RelativeBias(num_heads=1, grid_size=3).eval()
    bias.reset_parameters()
    with torch.no_grad():
        first = bias(3, 3, torch.float32)
        assert bias(3, 3, torch.float32) is first
        assert bias(4, 3, torch.float32).shape == (1, 12, 12)
        assert bias(3, 3, torch.bfloat16).dtype == torch.bfloat16
        assert bias(3, 3, torch.float32) is first, "images of two sizes in turn keep both"
        bias.table.copy_(torch.ones_like(bias.table))
        assert (bias(3, 3, torch.float32) == 1).all()
        bias.load_state_dict({"table": torch.full_like(bias.table, 2.0)})
        assert (bias(3, 3, torch.float32) == 2).all()
        bias.table.data = torch.full_like(bias.table, 3.0)
        assert (bias(3, 3, torch.float32) == 3).all()


def test_layers_share_the_few_indices_that_are_kept() -> None:
    """Each layer kept its own index of every grid it had seen: 154 MB a layer for 30 grids."""
    relative_attention._kept_index.cache_clear()  # pyright: ignore[reportPrivateUsage]
    first, second = (RelativeBias(num_heads=1, grid_size=3) for _ in range(2))
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        for _ in range(2):
            first(5, 4, torch.float32)
            second(5, 4, torch.float32)
    made = [event for event in profile.events() if event.name == "aten::repeat_interleave"]
    assert len(made) == 1
    assert not [value for value in vars(first).values() if isinstance(value, dict) and len(value) > 8]


def test_many_grids_are_not_all_kept() -> None:
    bias = RelativeBias(num_heads=1, grid_size=3).eval()
    bias.reset_parameters()
    with torch.no_grad():
        kept = [bias(side, 2, torch.float32) for side in range(1, 20)]
        assert bias(19, 2, torch.float32) is kept[-1]
        assert bias(1, 2, torch.float32) is not kept[0]


def test_a_model_made_in_inference_mode_runs() -> None:
    """Its tensors do not track versions, which the cache asks for."""
    with torch.inference_mode():
        bias = RelativeBias(num_heads=1, grid_size=3).eval()
        bias.reset_parameters()
        assert bias(3, 3, torch.float32).shape == (1, 9, 9)
        bias.table.fill_(1.0)
        assert (bias(3, 3, torch.float32) == 1).all()


def test_training_after_inference_at_the_same_size() -> None:
    """The index kept from inference mode ended it: "Inference tensors cannot be saved for backward"."""
    bias = RelativeBias(num_heads=1, grid_size=3).eval()
    bias.reset_parameters()
    with torch.inference_mode():
        bias(4, 4, torch.float32)
    bias.train()(4, 4, torch.float32).sum().backward()
    assert bias.table.grad is not None


def test_gradient_reaches_the_table() -> None:
    layer = RelativeAttentionLayer(8, 8, head_size=4, grid_size=2, kind="pre")
    assert layer.bias is not None
    layer.bias.reset_parameters()
    layer(torch.randn(1, 3, 3, 8)).square().sum().backward()
    assert layer.bias.table.grad is not None
    assert layer.bias.table.grad.abs().sum() > 0
