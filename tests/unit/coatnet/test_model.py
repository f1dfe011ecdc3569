import pytest
import torch
from torch import nn
from torch.nn import functional as F

from coatnet import CoAtNet, ModelConfig

SMALL = ModelConfig(
    layout="CCTT",
    stem_width=8,
    widths=(8, 16, 16, 32),
    depths=(1, 2, 1, 1),
    head_size=8,
    num_classes=5,
    pretrain_image_size_px=64,
)


def make_small(**overrides: object) -> CoAtNet:
    torch.manual_seed(0)
    return CoAtNet(ModelConfig(**{**SMALL.to_dict(), **overrides}))


@pytest.mark.parametrize("size", [(64, 64), (96, 64), (50, 83), (33, 33), (128, 128)])
@pytest.mark.parametrize(
    "overrides", [{}, {"downsample_on": "pool", "pool": "max3", "relative_position": "mlp"}]
)
def test_any_resolution_with_the_same_weights(size: tuple[int, int], overrides: dict[str, object]) -> None:
    """timm's set_input_size replaces parameters, and 200x200 and 250x330 inputs crash it."""
    model = make_small(**overrides)
    state = {name: tensor.shape for name, tensor in model.state_dict().items()}
    for mode in (True, False):
        assert model.train(mode)(torch.randn(2, 3, *size)).shape == (2, 5)
    assert {name: tensor.shape for name, tensor in model.state_dict().items()} == state


@pytest.mark.parametrize(
    "overrides",
    [
        {"layout": "CCCC"},
        {"layout": "CCCT"},
        {"layout": "CTTT", "widths": (8, 16, 16, 32)},
        {"relative_attention": "post"},
        {"relative_attention": "none"},
        {"norm": "layer"},
        {"downsample_on": "depthwise"},
        {"downsample_on": "pool"},
        {"pool": "avg"},
        {"pool": "max3"},
        {"stem_inner_width": 4, "stem_bias": False},
        {"conv_activation": "silu", "pre_norm_activation": True},
        {"conv_expand_from": "input", "conv_output_bias": False},
        {"se_place": "before_norm", "se_activation": "relu", "se_ratio_of": "hidden"},
        {"relative_position": "mlp", "relative_mlp_hidden": 8},
        {"attention_width": "input", "transformer_shortcut_bias": False},
        {"layer_scale_init": 1e-6},
        {"transformer_norm": "batch", "head_norm": "before_pool"},
        {"head_hidden": False},
        {"se_ratio": 0.0},
        {"strides": (1, 2, 2, 1)},
        {"stem_depth": 1, "stem_stride": 1},
        {"in_channels": 1, "mean": (0.5,), "std": (0.5,)},
    ],
)
def test_every_choice_trains(overrides: dict[str, object]) -> None:
    model = make_small(**overrides)
    logits = model(torch.randn(2, model.config.in_channels, 64, 64))
    F.cross_entropy(logits, torch.tensor([0, 1])).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


def test_eval_does_not_depend_on_the_other_images() -> None:
    model = make_small().eval()
    images = torch.randn(3, 3, 64, 64)
    torch.testing.assert_close(model(images)[1:2], model(images[1:2]), atol=1e-5, rtol=1e-5)


def test_stochastic_depth_grows_linearly_and_only_acts_in_training() -> None:
    model = make_small(stochastic_depth_rate=0.4)
    rates = [m.rate for m in model.modules() if hasattr(m, "rate")]
    assert rates == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.4])
    images = torch.randn(4, 3, 64, 64)
    assert not torch.equal(model(images), model(images))
    model.eval()
    assert torch.equal(model(images), model(images))


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.zeros(3, 64, 64), r"shape \(3, 64, 64\); expected \[B, 3, H, W\]"),
        (torch.zeros(1, 1, 64, 64), "1 channels; the model takes 3"),
        (torch.zeros(1, 3, 64, 64, dtype=torch.uint8), "torch.uint8; normalise"),
        (torch.zeros(1, 3, 64, 64, dtype=torch.float64), r"torch.float64, .* call .float\(\)"),
        (torch.zeros(0, 3, 64, 64), "no image in the batch"),
        (torch.zeros(1, 3, 64, 1), "64 x 1 pixels; the stem needs 2 x 2"),
    ],
)
def test_wrong_images_are_one_clear_error(images: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_small()(images)


def test_patches_begin_at_the_first_pixel_and_cover_the_last() -> None:
    """Patches of 16 px were padded by 7 all around, so that the last 7 rows and columns were never seen."""
    model = CoAtNet(
        ModelConfig(**{**SMALL.to_dict(), "stem_depth": 1, "stem_kernel_size": 16, "stem_stride": 16})
    )
    convolution = model.stem[0]
    assert isinstance(convolution, nn.Conv2d)
    images = torch.randn(1, 3, 48, 33)
    with torch.no_grad():
        found = model.stem(images)
        padded = F.pad(images, (0, 15, 0, 0))
        expected = F.conv2d(padded, convolution.weight, convolution.bias, stride=16)
    assert found.shape[2:] == (3, 3)
    torch.testing.assert_close(found, expected)


def test_depthwise_initialisation_counts_one_group() -> None:
    """Counting all groups would start depthwise kernels sqrt(channels) too small."""
    depthwise = make_small(widths=(64, 64, 64, 64)).stages[0][0].depthwise.weight  # pyright: ignore
    assert depthwise.std().item() == pytest.approx((2 / 9) ** 0.5, rel=0.1)
