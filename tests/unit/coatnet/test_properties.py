"""What holds for every shape and every order of images: drawn, not chosen."""

from typing import Any

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from coatnet import CoAtNet, ModelConfig
from coatnet.relative_attention import RelativeAttentionLayer

LAYOUTS = st.sampled_from(["C", "T", "CT", "TC", "CCT", "CTT"])
SIDES = st.integers(1, 70)
# The first call of each kernel of torch takes its time.
no_deadline = settings(deadline=None)


@st.composite
def configs(draw: st.DrawFn) -> ModelConfig:
    layout = draw(LAYOUTS)
    stem_stride = draw(st.sampled_from([1, 2]))
    choices: dict[str, Any] = {
        "downsample_on": st.sampled_from(["conv1x1", "depthwise", "pool"]),
        "pool": st.sampled_from(["max", "avg", "max3"]),
        "relative_attention": st.sampled_from(["pre", "post", "none"]),
        "norm": st.sampled_from(["batch", "layer"]),
        "stem_stride": st.just(stem_stride),
        "stem_kernel_size": st.sampled_from([3, 7, stem_stride]),
        "strides": st.tuples(*(st.sampled_from([1, 2]) for _ in layout)),
    }
    return ModelConfig(
        layout=layout,
        stem_width=8,
        widths=(8,) * len(layout),
        depths=(1,) * len(layout),
        head_size=4,
        num_classes=3,
        pretrain_image_size_px=32,
        **{name: draw(choice) for name, choice in choices.items()},
    )


def ceil_div(side: int, stride: int) -> int:
    return -(-side // stride)


@no_deadline
@given(configs(), SIDES, SIDES)
def test_every_stage_keeps_the_ceiling_of_its_sides(config: ModelConfig, height: int, width: int) -> None:
    """A branch that rounds down where its shortcut rounds up fails on odd sides, as at 200 or 250 px."""
    height, width = max(height, config.stem_stride), max(width, config.stem_stride)
    model = CoAtNet(config).eval()
    with torch.inference_mode():
        images = torch.randn(2, 3, height, width)
        x = model.stem(images)
        sides = (ceil_div(height, config.stem_stride), ceil_div(width, config.stem_stride))
        assert x.shape[2:] == sides
        for stage, stride in zip(model.stages, config.strides, strict=True):
            x = stage(x)
            sides = (ceil_div(sides[0], stride), ceil_div(sides[1], stride))
            assert x.shape[2:] == sides
        assert model.head(x).shape == (2, config.num_classes)
        assert model(images).isfinite().all()


@no_deadline
@given(configs(), st.permutations(range(4)))
def test_images_in_another_order_give_the_same_logits(config: ModelConfig, order: list[int]) -> None:
    model = CoAtNet(config).eval()
    images = torch.randn(4, 3, 24, 17)
    with torch.inference_mode():
        torch.testing.assert_close(model(images[order]), model(images)[order], atol=1e-5, rtol=1e-5)


@no_deadline
@given(st.integers(1, 5), st.integers(1, 5), st.randoms(use_true_random=False))
def test_only_the_bias_tells_positions_apart(height: int, width: int, random: Any) -> None:
    """Without it attention commutes with any permutation of the positions; with it, it must not."""
    order = list(range(height * width))
    random.shuffle(order)
    layer = RelativeAttentionLayer(8, 8, head_size=4, grid_size=5, kind="none").eval()
    x = torch.randn(1, height, width, 8)
    moved = x.flatten(1, 2)[:, order].view_as(x)
    with torch.inference_mode():
        expected = layer(x).flatten(1, 2)[:, order].view_as(x)
        torch.testing.assert_close(layer(moved), expected, atol=1e-5, rtol=1e-5)


@no_deadline
@given(st.integers(2, 5), st.integers(2, 5), st.sampled_from(["pre", "post"]))
def test_with_the_bias_positions_matter(height: int, width: int, kind: Any) -> None:
    layer = RelativeAttentionLayer(8, 8, head_size=4, grid_size=5, kind=kind).eval()
    assert layer.bias is not None
    torch.nn.init.normal_(layer.bias.table)  # pyright: ignore[reportArgumentType]
    x = torch.randn(1, height, width, 8)
    with torch.inference_mode():
        assert not torch.allclose(layer(x.flip(1)), layer(x).flip(1), atol=1e-4)
