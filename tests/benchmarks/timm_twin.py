"""timm's CoAtNet in the shape of one of ours, where timm's own table has none."""

from collections.abc import Iterator
from typing import Any

from timm.layers.classifier import NormMlpClassifierHead
from timm.models.maxxvit import MaxxVit, MaxxVitCfg, MaxxVitConvCfg, MaxxVitStage, MaxxVitTransformerCfg
from torch import nn

from coatnet import ModelConfig

TIMM_CHOICES: dict[str, Any] = {
    "downsample_on": "depthwise",
    "pool": "avg",
    "stem_bias": False,
    "norm_eps": 1e-5,
    "transformer_norm_eps": 1e-6,
}
"""Overrides of our config: what timm's paper-like CoAtNets are made of."""


def twin(config: ModelConfig) -> MaxxVit:
    """Return a model of `config`'s shape made of timm's blocks: any strides, stem depth 1 or 2.

    Beside the shape, the config has `TIMM_CHOICES`.

    timm's own class always strides each stage by two, has two convolutions in the stem, and normalises
    before it pools where the head has no hidden layer; those parts are replaced.
    """
    conv = MaxxVitConvCfg(attn_layer="se" if config.se_ratio else "", attn_ratio=config.se_ratio)
    transformer = MaxxVitTransformerCfg(dim_head=config.head_size)
    shape = MaxxVitCfg(
        embed_dim=config.widths,
        depths=config.depths,
        block_type=tuple(config.layout),
        stem_width=config.stem_width,
        conv_cfg=conv,
        transformer_cfg=transformer,
        head_hidden_size=config.widths[-1],
    )
    model = MaxxVit(shape, img_size=config.pretrain_image_size_px, num_classes=config.num_classes)
    model.stages = nn.Sequential(*_stages(config, conv, transformer))
    if config.stem_depth == 1:
        model.stem.norm1, model.stem.conv2 = nn.Identity(), nn.Identity()
    if not config.head_hidden:
        assert isinstance(model.head, NormMlpClassifierHead)
        model.head.pre_logits = nn.Identity()
    return model


def _stages(
    config: ModelConfig, conv: MaxxVitConvCfg, transformer: MaxxVitTransformerCfg
) -> Iterator[MaxxVitStage]:
    side = config.pretrain_image_size_px // config.stem_stride
    in_channels = config.stem_width
    for letter, width, depth, stride in zip(
        config.layout, config.widths, config.depths, config.strides, strict=True
    ):
        side //= stride
        yield MaxxVitStage(
            in_channels,
            width,
            stride=stride,
            depth=depth,
            feat_size=(side, side),
            block_types=letter,
            transformer_cfg=transformer,
            conv_cfg=conv,
            drop_path=[0.0] * depth,
        )
        in_channels = width


def set_fused_attention(model: MaxxVit, enabled: bool) -> None:
    """Let attention go through torch's fused operation, or through single ones."""
    for module in model.modules():
        if hasattr(module, "fused_attn"):
            vars(module)["fused_attn"] = enabled
