from typing import Any

import pytest

from coatnet import ModelConfig
from data.errors import InputError


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layout": "CXTT"}, "layout is 'CXTT'"),
        ({"layout": ""}, "layout is ''"),
        ({"widths": (64, 128)}, "widths has 2 entries; layout 'CCTT' needs 4"),
        ({"depths": (2, 0, 5, 2)}, "depths is 0; it must be a whole number, at least 1"),
        ({"strides": (2, 2, 4, 2)}, "each must be 1 or 2"),
        ({"head_size": 100}, "transformer width 384 is not a multiple of head_size = 100"),
        ({"relative_attention": "both"}, "allowed: pre, post, none"),
        ({"norm": "group"}, "allowed: batch, layer"),
        ({"downsample_on": "project"}, "allowed: conv1x1, depthwise, pool"),
        ({"pool": "min"}, "allowed: max, avg, max3"),
        ({"conv_activation": "tanh"}, "conv_activation is 'tanh'; allowed: gelu, silu, relu"),
        ({"conv_expand_from": "hidden"}, "allowed: input, output"),
        ({"se_ratio_of": "input"}, "allowed: output, hidden"),
        ({"se_place": "first"}, "allowed: after_norm, before_norm"),
        ({"se_activation": "sigmoid"}, "se_activation is 'sigmoid'"),
        ({"relative_position": "rope"}, "allowed: table, mlp"),
        ({"attention_width": "hidden"}, "attention_width is 'hidden'"),
        ({"transformer_norm": "rms"}, "transformer_norm is 'rms'; allowed: batch, layer"),
        ({"head_norm": "none"}, "allowed: after_pool, before_pool"),
        ({"stem_inner_width": 0}, "stem_inner_width is 0"),
        ({"relative_mlp_hidden": 0}, "relative_mlp_hidden is 0"),
        ({"norm_eps": 0.0}, "norm_eps is 0.0; it must be between 0 and 1, or None"),
        ({"transformer_norm_eps": 1.5}, "transformer_norm_eps is 1.5"),
        ({"se_ratio": -0.25}, "se_ratio is -0.25; it must be positive, or 0 for none"),
        ({"layer_scale_init": -1.0}, "layer_scale_init is -1.0"),
        (
            {"widths": (96, 200, 384, 768), "attention_width": "input"},
            "input width 200 is not a multiple of head_size = 32, which attention_width = 'input' needs",
        ),
        ({"stochastic_depth_rate": 1.0}, r"must be in \[0, 1\)"),
        ({"in_channels": 1}, "in_channels = 1 needs as many"),
        ({"mean": (124.0, 116.0, 104.0)}, "divide by 255"),
        ({"std": (0.2, 0.0, 0.2)}, "std at least 0.001"),
        ({"num_classes": 0}, "num_classes is 0"),
        # A config.json holds anything: each was a TypeError, or came through and failed in a layer.
        ({"head_size": 1.5}, "head_size is 1.5; it must be a whole number, at least 1"),
        ({"head_size": "32"}, "head_size is '32'"),
        ({"stem_width": "64"}, "stem_width is '64'"),
        ({"se_ratio": float("nan")}, "se_ratio is nan; it must be a number"),
        ({"num_classes": True}, "num_classes is True"),
        ({"stem_inner_width": 8.0}, "stem_inner_width is 8.0"),
        ({"widths": (96, None, 384, 768)}, "widths is None"),
        ({"depths": 2}, "depths is 2; it must be a list"),
        ({"layout": 4}, "layout is 4"),
        ({"norm_eps": "small"}, "norm_eps is 'small'; it must be a number"),
        ({"se_ratio": None}, "se_ratio is None; it must be a number"),
        ({"stochastic_depth_rate": "0.1"}, "stochastic_depth_rate is '0.1'; it must be a number"),
        ({"mean": 0.5}, "mean is 0.5; it must be a list"),
        ({"std": (0.5, "0.5", 0.5)}, "std is '0.5'; it must be a number"),
        ({"stem_bias": "no"}, "stem_bias is 'no'; it must be true or false"),
    ],
)
def test_bad_option_names_value_and_what_is_allowed(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        ModelConfig(**options)


def test_dict_round_trip_through_plain_lists() -> None:
    config = ModelConfig(widths=(32, 64, 128, 256), variant="mine")
    plain = {k: list(v) if isinstance(v, tuple) else v for k, v in config.to_dict().items()}
    assert ModelConfig.from_dict(plain) == config


def test_unknown_key_in_a_saved_config_is_refused() -> None:
    with pytest.raises(InputError, match="unknown model option 'width'"):
        ModelConfig.from_dict({"width": 3})


def test_total_stride() -> None:
    assert ModelConfig().total_stride == 32
