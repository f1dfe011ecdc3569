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
        ({"depths": (2, 0, 5, 2)}, "depths is 0; it must be at least 1"),
        ({"strides": (2, 2, 4, 2)}, "each must be 1 or 2"),
        ({"head_size": 100}, "transformer width 384 is not a multiple of head_size = 100"),
        ({"relative_attention": "both"}, "allowed: pre, post, none"),
        ({"norm": "group"}, "allowed: batch, layer"),
        ({"downsample_on": "project"}, "allowed: conv1x1, depthwise"),
        ({"pool": "min"}, "allowed: max, avg"),
        ({"stochastic_depth_rate": 1.0}, r"must be in \[0, 1\)"),
        ({"in_channels": 1}, "in_channels = 1 needs as many"),
        ({"mean": (124.0, 116.0, 104.0)}, "divide by 255"),
        ({"std": (0.2, 0.0, 0.2)}, "std at least 0.001"),
        ({"num_classes": 0}, "num_classes is 0"),
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
