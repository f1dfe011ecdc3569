"""Our weights in timm 1.0.31's names and layouts (its class `MaxxVit`), and back.

Four things differ beside names: timm keeps the linear layers of a transformer block as 1x1
convolutions; it orders the rows of qkv by (head, q or k or v, channel), ours by (q or k or v, head,
channel); its bias table is [offsets, heads], ours [heads, 2H - 1, 2W - 1], both of query minus key;
and a stage of ours without stride is the rest of the stage before it in timm.
"""

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from coatnet.config import ModelConfig
from coatnet.model import CoAtNet
from coatnet.timm_variants import timm_config
from data.errors import InputError

_SHOWN_KEYS = 3

# timm's names for ours. Each table maps a module to its module; the last part of a name, as in
# "weight", is the same but for the bias table.
_OUTSIDE = {
    "stem.0": "stem.conv1",
    "stem.1": "stem.norm1",
    "stem.3": "stem.conv2",
    "head.hidden": "head.pre_logits.fc",
    "head.classifier": "head.fc",
}
_MBCONV = {
    "shortcut.project": "shortcut.expand",
    "pre_norm": "pre_norm",
    "expand": "conv1_1x1",
    "expand_norm": "norm1",
    "depthwise": "conv2_kxk",
    "early_se.reduce": "se_early.fc1",
    "early_se.expand": "se_early.fc2",
    "depthwise_norm": "norm2",
    "se.reduce": "se.fc1",
    "se.expand": "se.fc2",
    "project": "conv3_1x1",
}
_TRANSFORMER = {
    "shortcut.project": "shortcut.expand",
    "attention_norm": "norm1",
    "attention.qkv": "attn.qkv",
    "attention.bias": "attn.rel_pos",
    "attention.bias.expand": "attn.rel_pos.mlp.fc1",
    "attention.bias.project": "attn.rel_pos.mlp.fc2",
    "attention.project": "attn.proj",
    "attention_scale": "ls1",
    "ffn_norm": "norm2",
    "ffn.expand": "mlp.fc1",
    "ffn.project": "mlp.fc2",
    "ffn_scale": "ls2",
}
_AS_CONVOLUTIONS = ("attention.qkv", "attention.project", "ffn.expand", "ffn.project")


def from_timm(timm_name: str, state_dict: Mapping[str, Tensor]) -> CoAtNet:
    """Return our model of a timm model's weights, in eval mode, with equal logits.

    Args:
        timm_name: `coatnet_0_224` to `coatnet_5_224` or a `rw` or `rmlp` variant of timm 1.0.31, with or
            without a tag as in `coatnet_0_rw_224.sw_in1k`. Feed it images normalised by its config's
            mean and std, which are 0.5 for all but one.
        state_dict: Of that model; any number of classes.

    Raises:
        InputError: For an unknown name (with the nearest), or weights of another model (with the
            first names that are missing, not wanted or of another shape).
    """
    config = timm_config(timm_name)
    classifier = state_dict.get("head.fc.weight")
    if classifier is not None:
        config = replace(config, num_classes=len(classifier))
    return model_from_timm(config, state_dict)


def to_timm(model: CoAtNet) -> dict[str, Tensor]:
    """Return a copy of the model's weights in timm's names and layouts, for a strict load.

    They load into the timm model that `model.config.variant` names, or into a `MaxxVit` whose config
    says the same. `InputError` names a choice that timm cannot express.
    """
    _check_expressible(model.config)
    return _in_timm_layout(model.config, model.state_dict())


def model_from_timm(config: ModelConfig, state_dict: Mapping[str, Tensor]) -> CoAtNet:
    """Return a model of any config with weights of a timm model of the same shape."""
    with torch.device("meta"):
        wanted = CoAtNet(config).state_dict()
    _check_fits(config, _in_timm_layout(config, wanted), state_dict)
    state: dict[str, Tensor] = {}
    for name, tensor in wanted.items():
        state[name] = _to_our_layout(config, name, state_dict[_timm_name(config, name)], tensor.shape)
    model = CoAtNet(config)
    model.load_state_dict(state)
    return model.eval()


def _in_timm_layout(config: ModelConfig, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {_timm_name(config, name): _to_timm_layout(config, name, state[name]) for name in state}


def _timm_name(config: ModelConfig, name: str) -> str:
    owner, _, leaf = name.rpartition(".")
    if owner == "head.norm":
        return f"{owner}.{leaf}" if config.head_norm == "after_pool" else f"norm.{leaf}"
    if not name.startswith("stages."):
        return f"{_OUTSIDE[owner]}.{leaf}"
    _, stage, block, inner = owner.split(".", 3)
    timm_stage, timm_block = _timm_position(config, int(stage), int(block))
    names = _MBCONV if config.layout[int(stage)] == "C" else _TRANSFORMER
    timm_owner = names[inner]
    if inner == "attention_norm" and block == "0" and config.strides[int(stage)] == 2:
        timm_owner = "norm1.norm"  # Beside the pooling, in a Sequential.
    if leaf == "table":
        leaf = "relative_position_bias_table"
    return f"stages.{timm_stage}.blocks.{timm_block}.{timm_owner}.{leaf}"


def _timm_position(config: ModelConfig, stage: int, block: int) -> tuple[int, int]:
    timm_stage, first_block = 0, 0
    for index in range(1, stage + 1):
        if config.strides[index] == 1:
            first_block += config.depths[index - 1]
        else:
            timm_stage, first_block = timm_stage + 1, 0
    return timm_stage, first_block + block


def _to_timm_layout(config: ModelConfig, name: str, tensor: Tensor) -> Tensor:
    if ".attention.qkv." in name:
        tensor = tensor.unflatten(0, (3, -1, config.head_size)).transpose(0, 1).flatten(0, 2)
    if tensor.ndim == 2 and _is_convolution_in_timm(name):
        tensor = tensor[:, :, None, None]
    if name.endswith(".table"):
        tensor = tensor.flatten(1).T
    return tensor.detach().clone(memory_format=torch.contiguous_format)


def _to_our_layout(config: ModelConfig, name: str, tensor: Tensor, shape: torch.Size) -> Tensor:
    if ".attention.qkv." in name:
        tensor = tensor.unflatten(0, (-1, 3, config.head_size)).transpose(0, 1).flatten(0, 2)
    if name.endswith(".table"):
        tensor = tensor.T
    return tensor.reshape(shape)


def _is_convolution_in_timm(name: str) -> bool:
    return any(f".{owner}." in name for owner in _AS_CONVOLUTIONS)


def _check_fits(config: ModelConfig, wanted: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> None:
    problems = {
        "missing": [name for name in wanted if name not in found],
        "not wanted": [name for name in found if name not in wanted],
        "of another shape": [
            f"{name} {list(found[name].shape)} instead of {list(tensor.shape)}"
            for name, tensor in wanted.items()
            if name in found and found[name].shape != tensor.shape
        ],
    }
    said = [f"{what}: {_first(names)}" for what, names in problems.items() if names]
    if said:
        raise InputError(f"the weights are not those of timm's {config.variant}; {'; '.join(said)}")


def _first(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN_KEYS} more" if len(names) > _SHOWN_KEYS else ""
    return ", ".join(names[:_SHOWN_KEYS]) + more


def _check_expressible(config: ModelConfig) -> None:
    in_widths = (config.stem_width, *config.widths[:-1])
    hidden_widths = [
        config.conv_expansion * (width if config.conv_expand_from == "output" else in_width)
        for letter, in_width, width in zip(config.layout, in_widths, config.widths, strict=True)
        if letter == "C"
    ]
    pairs = zip(config.strides, in_widths, config.widths, strict=True)
    reasons = {
        "relative_attention = 'post'": config.relative_attention == "post",
        f"stem_depth = {config.stem_depth} (only 2)": config.stem_depth != 2,
        f"stem_kernel_size = {config.stem_kernel_size} (only 3)": config.stem_kernel_size != 3,
        f"stem_stride = {config.stem_stride} (only 2)": config.stem_stride != 2,
        "a first stage without stride": config.strides[0] == 1,
        "another width without stride": any(s == 1 and i != o for s, i, o in pairs),
        f"a hidden width of {hidden_widths} that is not a multiple of 8": any(w % 8 for w in hidden_widths),
        "se_ratio_of that does not go with conv_expand_from": config.se_ratio > 0
        and (config.se_ratio_of == "output") != (config.conv_expand_from == "output"),
        "head_norm that does not go with head_hidden": config.head_hidden
        != (config.head_norm == "after_pool"),
    }
    found = [reason for reason, is_so in reasons.items() if is_so]
    if found:
        raise InputError(f"timm cannot express this model: {', '.join(found)}")
