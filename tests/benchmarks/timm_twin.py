"""timm's CoAtNet in the shape of one of ours, and its weights in our names.

timm's `coatnet_*_224` are ours with the stride on the depthwise convolution, average pooling and no
biases in the stem. `twin` builds what its table does not have from its own blocks and head.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import timm
import torch
from timm.layers.classifier import NormMlpClassifierHead
from timm.models.maxxvit import MaxxVit, MaxxVitCfg, MaxxVitConvCfg, MaxxVitStage, MaxxVitTransformerCfg
from torch import Tensor, nn

from coatnet import ModelConfig
from coatnet.layers import BATCH_NORM_EPS, LAYER_NORM_EPS

TIMM_CHOICES: dict[str, Any] = {"downsample_on": "depthwise", "pool": "avg"}
"""Overrides of our config that timm's blocks have built in."""


def registered_twin(timm_name: str) -> MaxxVit:
    """Return a model of timm's own table, with our epsilons."""
    model = timm.create_model(
        timm_name, conv_norm_eps=BATCH_NORM_EPS, transformer_norm_eps=LAYER_NORM_EPS, num_classes=1000
    )
    assert isinstance(model, MaxxVit)
    return model


def twin(config: ModelConfig) -> MaxxVit:
    """Return a model of `config`'s shape made of timm's blocks: any strides, stem depth 1 or 2.

    timm's own class always strides each stage by two, has two convolutions in the stem, and normalises
    before it pools where the head has no hidden layer; those parts are replaced.
    """
    conv = MaxxVitConvCfg(
        attn_layer="se" if config.se_ratio else "", attn_ratio=config.se_ratio, norm_eps=BATCH_NORM_EPS
    )
    transformer = MaxxVitTransformerCfg(dim_head=config.head_size, norm_eps=LAYER_NORM_EPS)
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


# Our names for timm's, inside a block of either kind.
_RENAMED = {
    "shortcut.expand": "shortcut.project",
    "conv1_1x1": "expand",
    "norm1.norm": "attention_norm",
    "conv2_kxk": "depthwise",
    "se.fc1": "se.reduce",
    "se.fc2": "se.expand",
    "conv3_1x1": "project",
    "attn.qkv": "attention.qkv",
    "attn.proj": "attention.project",
    "mlp.fc1": "ffn.expand",
    "mlp.fc2": "ffn.project",
    "pre_norm": "pre_norm",
}
_RENAMED_NORMS = {
    "C": {"norm1": "expand_norm", "norm2": "depthwise_norm"},
    "T": {"norm1": "attention_norm", "norm2": "ffn_norm"},
}
_RENAMED_OUTSIDE = {
    "stem.conv1": "stem.0",
    "stem.norm1": "stem.1",
    "stem.conv2": "stem.3",
    "head.norm": "head.norm",
    "head.pre_logits.fc": "head.hidden",
    "head.fc": "head.classifier",
}
_BIAS_TABLE = "attn.rel_pos.relative_position_bias_table"


def to_ours(state: Mapping[str, Tensor], config: ModelConfig) -> dict[str, Tensor]:
    """Return a state dict of our model that computes what timm's does. An unknown name is a KeyError."""
    ours = {
        f"stem.{index}.bias": torch.zeros(config.stem_width)
        for index in (0, 3)
        if index < 3 * config.stem_depth
    }
    for name, tensor in state.items():
        owner, _, leaf = name.rpartition(".")
        if not name.startswith("stages."):
            ours[f"{_RENAMED_OUTSIDE[owner]}.{leaf}"] = tensor
            continue
        _, stage, _, block, inner = name.split(".", 4)
        prefix = f"stages.{stage}.{block}."
        if inner == _BIAS_TABLE:
            side = round(len(tensor) ** 0.5)
            ours[f"{prefix}attention.bias.table"] = tensor.T.reshape(-1, side, side)
            continue
        owner = inner.rpartition(".")[0]
        letter = config.layout[int(stage)]
        renamed = {**_RENAMED, **_RENAMED_NORMS[letter]}[owner]
        if owner == "attn.qkv":
            tensor = _by_kind(tensor, config.head_size)
        if letter == "T" and tensor.ndim == 4:  # A 1x1 convolution is a linear layer of ours.
            tensor = tensor.flatten(1) if not renamed.startswith("shortcut") else tensor
        ours[f"{prefix}{renamed}.{leaf}"] = tensor
    return ours


def _by_kind(qkv: Tensor, head_size: int) -> Tensor:
    """Reorder output channels from (head, q or k or v, channel) to (q or k or v, head, channel)."""
    return qkv.unflatten(0, (-1, 3, head_size)).transpose(0, 1).flatten(0, 2)


def set_fused_attention(model: MaxxVit, enabled: bool) -> None:
    """Let attention go through torch's fused operation, or through single ones."""
    for module in model.modules():
        if hasattr(module, "fused_attn"):
            vars(module)["fused_attn"] = enabled
