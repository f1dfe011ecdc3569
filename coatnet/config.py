"""Every choice that the paper makes, or leaves open, about a CoAtNet's shape."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, cast, get_args, get_origin, get_type_hints

from data.errors import InputError
from data.plain import with_tuples

_MIN_STRIDED_WIDTH = 8
"""With fewer, oneDNN's backward pass of a strided 1x1 convolution writes beside its buffers (torch 2.13)."""

RelativeAttention = Literal["pre", "post", "none"]
NormKind = Literal["batch", "layer"]
DownsampleOn = Literal["conv1x1", "depthwise", "pool"]
PoolKind = Literal["max", "avg", "max3"]
Activation = Literal["gelu", "silu", "relu"]
BlockSide = Literal["input", "output"]
SqueezeWidth = Literal["output", "hidden"]
SqueezePlace = Literal["after_norm", "before_norm"]
RelativePosition = Literal["table", "mlp"]
HeadNorm = Literal["after_pool", "before_pool"]


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """A CoAtNet (arXiv 2106.04803): a stem, then one stage for each letter of `layout`.

    The defaults are the paper's reading in which published parameter counts come out right
    (Tables 3, 11 and 12): expansion 4 of the block's output width, squeeze-and-excitation with a
    quarter of the output width, and a head with a hidden tanh layer. Choices that no paper names
    are those of timm 1.0.31's trained variants (`coatnet.interop.timm_config`).
    """

    variant: str = "custom"
    """The name this config was built from; a label only."""
    layout: str = "CCTT"
    """A letter a stage: C for MBConv blocks, T for transformer blocks."""
    stem_width: int = 64
    stem_depth: int = 2
    """Number of convolutions in the stem (S0)."""
    stem_kernel_size: int = 3
    """Of the stem's first convolution; the others are 3x3."""
    stem_stride: int = 2
    """Of the stem's first convolution."""
    stem_inner_width: int | None = None
    """Channels of the stem's convolutions before the last; None: `stem_width`."""
    stem_bias: bool = True
    widths: tuple[int, ...] = (96, 192, 384, 768)
    """Channels of each stage."""
    depths: tuple[int, ...] = (2, 3, 5, 2)
    """Blocks of each stage."""
    strides: tuple[int, ...] = (2, 2, 2, 2)
    """Downsampling at each stage's first block: 1 or 2."""
    head_size: int = 32
    """Channels of an attention head; every transformer width is a multiple of it."""
    conv_expansion: int = 4
    """Hidden width of an MBConv block over its `conv_expand_from` width."""
    conv_expand_from: BlockSide = "output"
    conv_activation: Activation = "gelu"
    """Activation (GELU is the exact one) in the stem and in MBConv; transformers always use GELU."""
    pre_norm_activation: bool = False
    """Whether the activation also follows the norm that opens an MBConv block."""
    conv_output_bias: bool = True
    """Whether MBConv's last 1x1 convolution and its shortcut's projection have biases."""
    ffn_expansion: int = 4
    se_ratio: float = 0.25
    """Squeeze-and-excitation's hidden width over the block's `se_ratio_of` width; 0 leaves it out."""
    se_ratio_of: SqueezeWidth = "output"
    se_place: SqueezePlace = "after_norm"
    """Whether it comes after the depthwise convolution's norm and activation, or before both."""
    se_activation: Activation = "silu"
    relative_attention: RelativeAttention = "pre"
    """Where the relative bias enters: before the softmax (the paper's choice), after it, nowhere."""
    relative_position: RelativePosition = "table"
    """Where the relative bias comes from: a table, or an MLP over log-spaced offsets."""
    relative_mlp_hidden: int = 512
    attention_width: BlockSide = "output"
    """Width of q, k and v; with the input's, the attention's projection widens."""
    transformer_shortcut_bias: bool = True
    """Whether the projection in a downsampling transformer block's shortcut has a bias."""
    layer_scale_init: float = 0.0
    """First value of the learned scales on a transformer block's branches; 0 leaves them out."""
    norm: NormKind = "batch"
    """Normalisation in the stem and in MBConv."""
    norm_eps: float | None = None
    """Added to the variance; None: 1e-3 for batch, 1e-5 for layer."""
    transformer_norm: NormKind = "layer"
    """Normalisation in transformer blocks and in the head."""
    transformer_norm_eps: float | None = None
    """As `norm_eps`."""
    downsample_on: DownsampleOn = "conv1x1"
    """What strides in a downsampling MBConv's branch (section 2.3 and Table 9); pool: 2x2 averages."""
    pool: PoolKind = "max"
    """The shortcuts' pooling, and attention's: of 2x2 positions, or max of 3x3 (max3)."""
    head_hidden: bool = True
    """Whether the head has the hidden Linear + tanh layer, as wide as the last stage."""
    head_norm: HeadNorm = "after_pool"
    stochastic_depth_rate: float = 0.0
    """Drop rate of the last residual branch; it grows linearly from 0 with depth."""
    num_classes: int = 1000
    in_channels: int = 3
    pretrain_image_size_px: int = 224
    """Sizes the relative-bias tables, whatever size is fed later."""
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    """Normalisation the weights expect, for inputs in [0, 1]."""
    std: tuple[float, ...] = (0.229, 0.224, 0.225)

    def __post_init__(self) -> None:
        for name, hint in get_type_hints(ModelConfig).items():
            _check_kind(name, getattr(self, name), hint)
        _check_stages(self)
        _check_numbers(self)
        _check_normalisation(self)

    @property
    def total_stride(self) -> int:
        """Input pixels for each position of the last stage."""
        product = self.stem_stride
        for stride in self.strides:
            product *= stride
        return product

    def to_dict(self) -> dict[str, Any]:
        """Return plain values that `from_dict` takes back."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "ModelConfig":
        """Build a config from plain values; an unknown key is an `InputError`."""
        known = {field.name for field in fields(cls)}
        unknown = sorted(set(values) - known)
        if unknown:
            raise InputError(f"unknown model option {unknown[0]!r}; options: {', '.join(sorted(known))}")
        return cls(**with_tuples(values))


def _check_kind(name: str, value: object, hint: Any) -> None:
    """Refuse what a field cannot hold: a config.json and overrides hold anything. All integers are counts."""
    origin, kinds = get_origin(hint), get_args(hint)
    if origin is Literal:
        if value not in kinds:
            raise InputError(f"{name} is {value!r}; allowed: {', '.join(kinds)}")
    elif origin is tuple:
        if not isinstance(value, tuple | list):
            raise InputError(f"{name} is {value!r}; it must be a list")
        for entry in cast(Sequence[object], value):
            _check_kind(name, entry, kinds[0])
    elif type(None) in kinds:
        if value is not None:
            _check_kind(name, value, kinds[0])
    else:
        is_allowed, wanted = _KINDS[hint]
        if not is_allowed(value):
            raise InputError(f"{name} is {value!r}; it must be {wanted}")


_KINDS: dict[type, tuple[Callable[[Any], bool], str]] = {
    bool: (lambda value: type(value) is bool, "true or false"),
    int: (lambda value: type(value) is int and value >= 1, "a whole number, at least 1"),
    float: (lambda value: type(value) in (int, float) and math.isfinite(value), "a number"),
    str: (lambda value: isinstance(value, str), "text"),
}


def _check_numbers(config: ModelConfig) -> None:
    if config.stem_kernel_size % 2 == 0 and config.stem_kernel_size != config.stem_stride:
        raise InputError(
            f"stem_kernel_size is {config.stem_kernel_size}; it must be odd, or stem_stride = "
            f"{config.stem_stride} for patches"
        )
    for name in ("norm_eps", "transformer_norm_eps"):
        eps = getattr(config, name)
        if eps is not None and not 0.0 < eps < 1.0:
            raise InputError(f"{name} is {eps}; it must be between 0 and 1, or None for the usual")
    for name in ("se_ratio", "layer_scale_init"):
        if getattr(config, name) < 0.0:
            raise InputError(f"{name} is {getattr(config, name)}; it must be positive, or 0 for none")
    if not 0.0 <= config.stochastic_depth_rate < 1.0:
        raise InputError(f"stochastic_depth_rate is {config.stochastic_depth_rate}; it must be in [0, 1)")


def _check_normalisation(config: ModelConfig) -> None:
    mean, std = config.mean, config.std
    if len(mean) != config.in_channels or len(std) != config.in_channels:
        raise InputError(
            f"mean and std have {len(mean)} and {len(std)} entries; "
            f"in_channels = {config.in_channels} needs as many"
        )
    if not all(0.0 <= value <= 1.0 for value in mean) or not all(1e-3 <= value <= 1.0 for value in std):
        raise InputError(
            f"mean and std are {mean} and {std}; of images in [0, 1], std at least 0.001: "
            "divide by 255 if yours are of levels"
        )


def _check_stages(config: ModelConfig) -> None:
    if not config.layout or set(config.layout) - {"C", "T"}:
        raise InputError(f"layout is {config.layout!r}; use one letter a stage, C or T, as in CCTT")
    for name in ("widths", "depths", "strides"):
        values = getattr(config, name)
        if len(values) != len(config.layout):
            raise InputError(
                f"{name} has {len(values)} entries; layout {config.layout!r} needs {len(config.layout)}"
            )
    if set(config.strides) - {1, 2}:
        raise InputError(f"strides are {config.strides}; each must be 1 or 2")
    in_widths = (config.stem_width, *config.widths[:-1])
    for letter, in_width, width, stride in zip(
        config.layout, in_widths, config.widths, config.strides, strict=True
    ):
        if (
            letter == "C"
            and stride > 1
            and config.downsample_on == "conv1x1"
            and in_width < _MIN_STRIDED_WIDTH
        ):
            raise InputError(
                f"a downsampling convolution stage has {in_width} input channels; at least "
                f"{_MIN_STRIDED_WIDTH} are needed with downsample_on = 'conv1x1'"
            )
        if letter == "T" and width % config.head_size:
            raise InputError(f"transformer width {width} is not a multiple of head_size = {config.head_size}")
        if letter == "T" and config.attention_width == "input" and in_width % config.head_size:
            raise InputError(
                f"a transformer stage's input width {in_width} is not a multiple of head_size = "
                f"{config.head_size}, which attention_width = 'input' needs"
            )
