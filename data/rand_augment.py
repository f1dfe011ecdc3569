"""RandAugment drawn for each sample, run once per kind of operation.

Cubuk et al., "RandAugment: Practical automated data augmentation with a reduced search space", 2019.
The operations and their scale are those of timm's `rand_augment_ops` (`_RAND_TRANSFORMS`, and
`_RAND_INCREASING_TRANSFORMS` for `increasing`); a magnitude above 10 continues the line, as in the
TensorFlow implementation the CoAtNet paper used (2 operations, magnitude 15).

Shape letters: B batch, N operations per sample, C channels, H height, W width.
"""

import math
from dataclasses import dataclass
from enum import IntEnum
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from data import image_ops
from data.transfer import to_device

DRAWS_PER_OP = 3
"""Uniform numbers for each drawn operation: which, its sign, whether it is applied."""

NOT_APPLIED = -1


class Op(IntEnum):
    """The operations, in timm's order. The numbers decide what a seed draws: never reorder."""

    AutoContrast = 0
    Equalize = 1
    Invert = 2
    Rotate = 3
    Posterize = 4
    Solarize = 5
    SolarizeAdd = 6
    Color = 7
    Contrast = 8
    Brightness = 9
    Sharpness = 10
    ShearX = 11
    ShearY = 12
    TranslateXRel = 13
    TranslateYRel = 14


GEOMETRIC = frozenset({Op.Rotate, Op.ShearX, Op.ShearY, Op.TranslateXRel, Op.TranslateYRel})
"""All of them are one affine sampling, so their rows share one call."""

_ROW_OPS: dict[int, image_ops.RowOp] = {
    NOT_APPLIED: image_ops.identity,
    Op.AutoContrast: image_ops.auto_contrast,
    Op.Equalize: image_ops.equalize,
    Op.Invert: image_ops.invert,
    Op.Rotate: image_ops.affine,
    Op.Posterize: image_ops.posterize,
    Op.Solarize: image_ops.solarize,
    Op.SolarizeAdd: image_ops.solarize_add,
    Op.Color: image_ops.color,
    Op.Contrast: image_ops.contrast,
    Op.Brightness: image_ops.brightness,
    Op.Sharpness: image_ops.sharpness,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class RandAugmentDraw:
    """What each sample goes through, in order."""

    ops_BN: NDArray[np.int64]
    """`Op` numbers, or `NOT_APPLIED`."""
    arguments_BN: NDArray[np.float64]
    """In the operation's own unit, see `op_argument`."""


_PER_LEVEL = {
    Op.Rotate: 30.0,
    Op.ShearX: 0.3,
    Op.ShearY: 0.3,
    Op.TranslateXRel: 0.45,
    Op.TranslateYRel: 0.45,
}
_ENHANCE = frozenset({Op.Color, Op.Contrast, Op.Brightness, Op.Sharpness})


def op_argument(op: Op, magnitude: float, *, sign: float, increasing: bool) -> float:
    """Turn a magnitude (0 to 10, or beyond) into the operation's argument.

    Degrees for Rotate, pixels per pixel for shears, a fraction of the side for translations, bits kept
    for Posterize, an 8-bit level for Solarize (threshold) and SolarizeAdd (amount), a blend factor for
    the enhancements, 0 where there is none. Posterize keeps at least one bit, where timm and
    TensorFlow reach 0 and a black image.
    """
    level = magnitude / 10.0
    if op in GEOMETRIC:
        return sign * level * _PER_LEVEL[op]
    if op in _ENHANCE:
        return max(0.1, 1.0 + sign * level * 0.9) if increasing else level * 1.8 + 0.1
    if op is Op.Posterize:
        bits = int(level * 4)
        return _clamp(4 - bits if increasing else bits, 1, 8)
    if op is Op.Solarize:
        threshold = int(level * 256)
        return _clamp(256 - threshold if increasing else threshold, 0, 256)
    return _clamp(int(level * 110), 0, 255) if op is Op.SolarizeAdd else 0.0


def _clamp(value: int, low: int, high: int) -> float:
    return float(max(low, min(value, high)))


@lru_cache(maxsize=64)
def _argument_table(magnitude: float, increasing: bool) -> NDArray[np.float64]:
    """Return arguments [op, sign], sign 0 negative and 1 positive."""
    rows = [[op_argument(op, magnitude, sign=s, increasing=increasing) for s in (-1.0, 1.0)] for op in Op]
    return np.array(rows, dtype=np.float64)


def draw_rand_augment(
    uniforms_BD: NDArray[np.float64], *, magnitude: float, probability: float, increasing: bool
) -> RandAugmentDraw:
    """Turn uniform numbers [B, N * DRAWS_PER_OP] into operations, drawn with replacement."""
    uniforms_BN3 = uniforms_BD.reshape(len(uniforms_BD), uniforms_BD.shape[1] // DRAWS_PER_OP, DRAWS_PER_OP)
    drawn_BN = (uniforms_BN3[..., 0] * len(Op)).astype(np.int64)
    signs_BN = (uniforms_BN3[..., 1] < 0.5).astype(np.int64)
    arguments_BN = _argument_table(magnitude, increasing)[drawn_BN, signs_BN]
    ops_BN = np.where(uniforms_BN3[..., 2] < probability, drawn_BN, NOT_APPLIED)
    return RandAugmentDraw(ops_BN=ops_BN, arguments_BN=arguments_BN)


def describe_op(op: int, argument: float) -> str:
    """Name a drawn operation and its argument, e.g. `Rotate -27`."""
    name = Op(op).name.removesuffix("Rel")
    return name if op in (Op.AutoContrast, Op.Equalize, Op.Invert) else f"{name} {argument:.3g}"


def apply_rand_augment(images_BCHW: Tensor, draw: RandAugmentDraw) -> Tensor:
    """Run the draw on float32 images in [0, 1], contiguous; the result is new unless N is 0.

    In each round the batch is sorted by operation, so that an operation is one call on a slice. The
    sorting is decided on the CPU and reaches the device in one copy.
    """
    num_ops = draw.ops_BN.shape[1]
    if num_ops == 0 or images_BCHW.shape[0] == 0:
        return images_BCHW
    height, width = int(images_BCHW.shape[2]), int(images_BCHW.shape[3])
    kernels_BN = np.where(np.isin(draw.ops_BN, list(GEOMETRIC)), int(Op.Rotate), draw.ops_BN)
    orders_NB = np.argsort(kernels_BN, axis=0, kind="stable").T
    plan_NB7 = to_device(_plan(draw, orders_NB, height, width), images_BCHW.device)
    sources_NB = plan_NB7[:, :, image_ops.NUM_PARAMETERS].long()
    images = images_BCHW
    for number in range(num_ops):
        images = images.index_select(0, sources_NB[number])
        kernels_B = kernels_BN[orders_NB[number], number]
        images = _run_sorted(images, kernels_B, plan_NB7[number, :, : image_ops.NUM_PARAMETERS])
    return images.index_select(0, sources_NB[num_ops])


def _plan(
    draw: RandAugmentDraw, orders_NB: NDArray[np.int64], height: int, width: int
) -> NDArray[np.float32]:
    """Return [N + 1, B, 7]: parameters in sorted order, then the row to take from the round before.

    The last round only puts the batch back in its own order. Row numbers are exact in float32.
    """
    num_ops, num_rows = orders_NB.shape
    plan_NB7 = np.zeros((num_ops + 1, num_rows, image_ops.NUM_PARAMETERS + 1), dtype=np.float32)
    place_B = np.arange(num_rows)  # where each sample stands after the round before
    for number, order_B in enumerate(orders_NB):
        pairs = zip(draw.ops_BN[order_B, number], draw.arguments_BN[order_B, number], strict=True)
        plan_NB7[number, :, :-1] = [_parameters(int(op), float(arg), height, width) for op, arg in pairs]
        plan_NB7[number, :, -1] = place_B[order_B]
        place_B = np.argsort(order_B)
    plan_NB7[num_ops, :, -1] = place_B
    return plan_NB7


def _run_sorted(images_BCHW: Tensor, kernels_B: NDArray[np.int64], parameters_B6: Tensor) -> Tensor:
    """Run each kernel once on its slice of a batch that is sorted by kernel."""
    kernels, starts = np.unique(kernels_B, return_index=True)
    stops = [*starts[1:].tolist(), len(kernels_B)]
    parts = [
        _ROW_OPS[kernel](images_BCHW[start:stop], parameters_B6[start:stop])
        for kernel, start, stop in zip(kernels.tolist(), starts.tolist(), stops, strict=True)
    ]
    return torch.cat(parts)


@lru_cache(maxsize=1024)
def _parameters(op: int, argument: float, height: int, width: int) -> tuple[float, ...]:
    """Convert an argument to what the row operation takes. Cached: few distinct ones are ever drawn."""
    if op in GEOMETRIC:
        return _grid_coefficients(Op(op), argument, height, width)
    first = {
        Op.Posterize: 2.0 ** (8 - argument),
        # Half a level lower, so that a level equal to the threshold is inverted whatever the rounding.
        Op.Solarize: (argument - 0.5) / 255,
        Op.SolarizeAdd: argument / 255,
    }.get(Op(op) if op != NOT_APPLIED else Op.Invert, argument)
    return (first, *[0.0] * (image_ops.NUM_PARAMETERS - 1))


def _grid_coefficients(op: Op, argument: float, height: int, width: int) -> tuple[float, ...]:
    """Return the coefficients of `image_ops.affine` for PIL's inverse map of an operation.

    PIL maps the output pixel's centre (x + 0.5, y + 0.5) to a source point, in pixels from the top
    left corner. Rotation is about the centre, counter-clockwise; shears keep the top left corner.
    """
    a, b, c, d, e, f = 1.0, 0.0, 0.0, 0.0, 1.0, 0.0
    if op is Op.Rotate:
        cosine, sine = math.cos(math.radians(argument)), math.sin(math.radians(argument))
        a, b, d, e = cosine, -sine, sine, cosine
        c = width / 2 - a * width / 2 - b * height / 2
        f = height / 2 - d * width / 2 - e * height / 2
    elif op is Op.ShearX:
        b = argument
    elif op is Op.ShearY:
        d = argument
    elif op is Op.TranslateXRel:
        c = argument * width
    else:
        f = argument * height
    to_x, to_y = 2.0 / width, 2.0 / height
    return (
        *(to_x * a, to_x * b, to_x * ((a + b) / 2 + c) - 1.0),
        *(to_y * d, to_y * e, to_y * ((d + e) / 2 + f) - 1.0),
    )
