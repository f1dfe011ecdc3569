"""Every choice that the paper makes, or leaves open, about a CoAtNet's shape."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, get_args

from data.errors import InputError
from data.plain import with_tuples

RelativeAttention = Literal["pre", "post", "none"]
NormKind = Literal["batch", "layer"]
DownsampleOn = Literal["conv1x1", "depthwise"]
PoolKind = Literal["max", "avg"]


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """A CoAtNet (arXiv 2106.04803): a stem, then one stage for each letter of `layout`.

    The defaults are the paper's reading in which published parameter counts come out right
    (Tables 3, 11 and 12): expansion 4 of the block's output width, squeeze-and-excitation with a
    quarter of the output width, and a head with a hidden tanh layer.
    """

    variant: str = "custom"
    """The name this config was built from; a label only."""
    layout: str = "CCTT"
    """A letter a stage: C for MBConv blocks, T for transformer blocks."""
    stem_width: int = 64
    stem_depth: int = 2
    """Number of 3x3 convolutions in the stem (S0)."""
    stem_stride: int = 2
    widths: tuple[int, ...] = (96, 192, 384, 768)
    """Channels of each stage."""
    depths: tuple[int, ...] = (2, 3, 5, 2)
    """Blocks of each stage."""
    strides: tuple[int, ...] = (2, 2, 2, 2)
    """Downsampling at each stage's first block: 1 or 2."""
    head_size: int = 32
    """Channels of an attention head; every transformer width is a multiple of it."""
    conv_expansion: int = 4
    """Hidden width of an MBConv block over its output width."""
    ffn_expansion: int = 4
    se_ratio: float = 0.25
    """Squeeze-and-excitation's hidden width over the block's output width; 0 leaves it out."""
    relative_attention: RelativeAttention = "pre"
    """Where the relative bias enters: before the softmax (the paper's choice), after it, nowhere."""
    norm: NormKind = "batch"
    """Normalisation in MBConv; transformer blocks always use LayerNorm."""
    downsample_on: DownsampleOn = "conv1x1"
    """Which convolution of a downsampling MBConv strides (section 2.3 and Table 9)."""
    pool: PoolKind = "max"
    head_hidden: bool = True
    """Whether the head has the hidden Linear + tanh layer."""
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
        _check_stages(self)
        _check_choice("relative_attention", self.relative_attention, get_args(RelativeAttention))
        _check_choice("norm", self.norm, get_args(NormKind))
        _check_choice("downsample_on", self.downsample_on, get_args(DownsampleOn))
        _check_choice("pool", self.pool, get_args(PoolKind))
        for name in ("stem_width", "stem_depth", "stem_stride", "head_size", "conv_expansion"):
            _check_positive(name, getattr(self, name))
        for name in ("ffn_expansion", "num_classes", "in_channels", "pretrain_image_size_px"):
            _check_positive(name, getattr(self, name))
        if not 0.0 <= self.stochastic_depth_rate < 1.0:
            raise InputError(f"stochastic_depth_rate is {self.stochastic_depth_rate}; it must be in [0, 1)")
        if len(self.mean) != self.in_channels or len(self.std) != self.in_channels:
            raise InputError(
                f"mean and std have {len(self.mean)} and {len(self.std)} entries; "
                f"in_channels = {self.in_channels} needs as many"
            )
        if not all(0.0 <= value <= 1.0 for value in self.mean) or not all(1e-3 <= v <= 1.0 for v in self.std):
            raise InputError(
                f"mean and std are {self.mean} and {self.std}; of images in [0, 1], std at least 0.001: "
                "divide by 255 if yours are of levels"
            )

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


def _check_choice(name: str, value: object, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise InputError(f"{name} is {value!r}; allowed: {', '.join(allowed)}")


def _check_positive(name: str, value: int) -> None:
    if value < 1:
        raise InputError(f"{name} is {value}; it must be at least 1")


def _check_stages(config: ModelConfig) -> None:
    if not config.layout or set(config.layout) - {"C", "T"}:
        raise InputError(f"layout is {config.layout!r}; use one letter a stage, C or T, as in CCTT")
    for name in ("widths", "depths", "strides"):
        values = getattr(config, name)
        if len(values) != len(config.layout):
            raise InputError(
                f"{name} has {len(values)} entries; layout {config.layout!r} needs {len(config.layout)}"
            )
        for value in values:
            _check_positive(name, value)
    if set(config.strides) - {1, 2}:
        raise InputError(f"strides are {config.strides}; each must be 1 or 2")
    for letter, width in zip(config.layout, config.widths, strict=True):
        if letter == "T" and width % config.head_size:
            raise InputError(f"transformer width {width} is not a multiple of head_size = {config.head_size}")
