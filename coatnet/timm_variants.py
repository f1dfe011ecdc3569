"""timm 1.0.31's CoAtNets as configs of ours; public weights exist for most of its `rw` models.

Its `coatnet_0_224` to `coatnet_5_224` follow the paper and have none. The `rw` models were designed before
any official code could be read, and differ from the paper and from each other. All but one expect
images normalised with mean = std = 0.5, which their configs carry.
"""

import difflib
from dataclasses import replace
from typing import Any

from coatnet.config import ModelConfig
from coatnet.variants import VARIANTS
from data.errors import InputError

_HALF = (0.5, 0.5, 0.5)
_EVERYWHERE: dict[str, Any] = {
    "stem_bias": False,
    "downsample_on": "depthwise",
    "pool": "avg",
    "norm_eps": 1e-5,
    "transformer_norm_eps": 1e-6,
    "mean": _HALF,
    "std": _HALF,
}
_RW: dict[str, Any] = {
    **_EVERYWHERE,
    "conv_activation": "silu",
    "conv_expand_from": "input",
    "se_ratio_of": "hidden",
    "attention_width": "input",
    "head_hidden": False,
    "head_norm": "before_pool",
}
"""Common to all `rw` models (`_rw_max_cfg` in timm's maxxvit.py: pico, nano and rmlp_nano)."""
_FIRST_RW: dict[str, Any] = {
    **_RW,
    "pre_norm_activation": True,
    "conv_output_bias": False,
    "se_activation": "relu",
}
"""The other `rw` models (`_rw_coat_cfg`)."""
_EARLY: dict[str, Any] = {"se_place": "before_norm", "transformer_shortcut_bias": False}
_MLP: dict[str, Any] = {"relative_position": "mlp"}
_SILU_SE: dict[str, Any] = {"se_activation": "silu"}
_SCALE: dict[str, Any] = {"layer_scale_init": 1e-6}


def _shape(stem: int, width: int, depths: tuple[int, ...]) -> dict[str, Any]:
    return {
        "stem_inner_width": stem // 2,
        "stem_width": stem,
        "widths": (width, 2 * width, 4 * width, 8 * width),
        "depths": depths,
    }


_PICO = _shape(64, 64, (2, 3, 5, 2))
_NANO = _shape(64, 64, (3, 4, 6, 3))
_0 = _shape(64, 96, (2, 3, 7, 2))  # Deeper than the paper's.
_1 = _shape(64, 96, (2, 6, 14, 2))
_2 = _shape(128, 128, (2, 6, 14, 2))
_3 = _shape(192, 192, (2, 6, 14, 2))


def _config(*choices: dict[str, Any], **more: Any) -> ModelConfig:
    merged: dict[str, Any] = {}
    for part in (*choices, more):
        merged.update(part)
    return ModelConfig(**merged)


TIMM_VARIANTS: dict[str, ModelConfig] = {
    **{f"coatnet_{size}_224": replace(VARIANTS[f"coatnet_{size}"], **_EVERYWHERE) for size in range(5)},
    # The paper's CoAtNet-5 has heads of 64 channels (Table 11).
    "coatnet_5_224": replace(VARIANTS["coatnet_5"], **_EVERYWHERE, head_size=32),
    "coatnet_pico_rw_224": _config(_RW, _PICO),
    "coatnet_nano_rw_224": _config(_RW, _NANO, downsample_on="pool"),
    "coatnet_0_rw_224": _config(_FIRST_RW, _0, _EARLY, downsample_on="pool"),
    "coatnet_1_rw_224": _config(_FIRST_RW, _1, _EARLY),
    "coatnet_2_rw_224": _config(_FIRST_RW, _2, _SILU_SE),
    "coatnet_3_rw_224": _config(_FIRST_RW, _3, _SILU_SE, _SCALE),
    # BatchNorm in its transformers too, and the one that was trained with ImageNet's mean and std.
    "coatnet_bn_0_rw_224": _config(
        _FIRST_RW, _0, _EARLY, transformer_norm="batch", mean=ModelConfig.mean, std=ModelConfig.std
    ),
    "coatnet_rmlp_nano_rw_224": _config(_RW, _NANO, _MLP, relative_mlp_hidden=384),
    "coatnet_rmlp_0_rw_224": _config(_FIRST_RW, _0, _MLP),
    "coatnet_rmlp_1_rw_224": _config(
        _FIRST_RW, _1, _EARLY, _MLP, relative_mlp_hidden=384, downsample_on="pool", pool="max3"
    ),
    "coatnet_rmlp_1_rw2_224": _config(_FIRST_RW, _1, _MLP),
    "coatnet_rmlp_2_rw_224": _config(_FIRST_RW, _2, _MLP, _SILU_SE, _SCALE),
    "coatnet_rmlp_2_rw_384": _config(_FIRST_RW, _2, _MLP, _SILU_SE, _SCALE, pretrain_image_size_px=384),
    "coatnet_rmlp_3_rw_224": _config(_FIRST_RW, _3, _MLP, _SILU_SE, _SCALE),
    # Its last two stages open with an MBConv block: stages of their own here, the next without stride.
    "coatnet_nano_cc_224": _config(
        _FIRST_RW,
        _NANO,
        downsample_on="pool",
        layout="CCCTCT",
        widths=(64, 128, 256, 256, 512, 512),
        depths=(3, 4, 1, 5, 1, 2),
        strides=(2, 2, 2, 1, 2, 1),
    ),
}


def timm_config(timm_name: str) -> ModelConfig:
    """Return the config of a timm model, with or without the tag of its weights (`.sw_in1k`).

    Raises `InputError` with the nearest name for an unknown one.
    """
    name = timm_name.partition(".")[0]
    if name not in TIMM_VARIANTS:
        near = difflib.get_close_matches(name, TIMM_VARIANTS, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise InputError(f"unknown timm model {name!r}; models: {', '.join(TIMM_VARIANTS)}{hint}")
    return replace(TIMM_VARIANTS[name], variant=name)
