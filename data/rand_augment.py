"""RandAugment drawn for each sample, run once per kind of operation.

Cubuk et al., "RandAugment: Practical automated data augmentation with a reduced search space", 2019.
The operations and their scale are those of timm's `rand_augment_ops` (`_RAND_TRANSFORMS`, and
`_RAND_INCREASING_TRANSFORMS` for `increasing`); a magnitude above 10 continues the line, as in the
TensorFlow implementation the CoAtNet paper used (2 operations, magnitude 15).

Images are 8-bit levels throughout, as in timm. Shape letters: B batch, R rows of it, N operations per
sample, C channels, H height, W width.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from functools import lru_cache
from itertools import groupby

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from data import image_ops
from data.normalize import rows_per_call
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

_ROW_OPS: dict[int, Callable[[Tensor], Tensor]] = {
    Op.AutoContrast: image_ops.auto_contrast,
    Op.Equalize: image_ops.equalize,
    Op.Invert: image_ops.invert,
}
_FACTOR_OPS: dict[int, Callable[[Tensor, Tensor], Tensor]] = {
    Op.Posterize: image_ops.posterize,
    Op.Color: image_ops.color,
    Op.Contrast: image_ops.contrast,
    Op.Brightness: image_ops.brightness,
    Op.Sharpness: image_ops.sharpness,
}

_LEVEL_OPS: dict[int, Callable[[Tensor, int], Tensor]] = {
    Op.Solarize: image_ops.solarize,
    Op.SolarizeAdd: image_ops.solarize_add,
}

_Kernel = tuple[int, float]
"""Rows with the same one run together: an operation, and its argument where all of them must share it."""


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


def rand_augment_(images_BCHW: Tensor, draw: RandAugmentDraw) -> Tensor:
    """Run the draw on uint8 images, contiguous, in place; return them.

    In each round the rows of a kernel are one call, or several of as many rows as the cache holds. What
    runs together is decided on the CPU and reaches the device in one copy.
    """
    if draw.ops_BN.shape[1] == 0 or images_BCHW.shape[0] == 0:
        return images_BCHW
    device = images_BCHW.device
    plan = _plan(draw, rows_per_call(images_BCHW))
    rows_NB = to_device(plan.rows_NB, device)
    factors_NB = to_device(plan.factors_NB, device)
    # With results kept for a `torch.cat` a look-up takes 2.4 times as long (docs/decisions/0014).
    for number, calls in enumerate(plan.calls_N):
        factors_B = factors_NB[number]
        for kernel, place in calls:
            if place.stop - place.start == 1:
                row = int(plan.rows_NB[number, place.start])
                image = images_BCHW.narrow(0, row, 1)
                image.copy_(_run(kernel, image, factors_B.narrow(0, row, 1)))
            else:
                rows = rows_NB[number, place]
                parts = (values.index_select(0, rows) for values in (images_BCHW, factors_B))
                images_BCHW.index_copy_(0, rows, _run(kernel, *parts))
    return images_BCHW


def _run(kernel: _Kernel, images_RCHW: Tensor, factors_R: Tensor) -> Tensor:
    op, argument = kernel
    height, width = int(images_RCHW.shape[2]), int(images_RCHW.shape[3])
    if op == Op.TranslateXRel:
        return image_ops.translate(images_RCHW, argument * width, 3)
    if op == Op.TranslateYRel:
        return image_ops.translate(images_RCHW, argument * height, 2)
    if op in GEOMETRIC:
        points = _sampling_points(Op(op), argument, height, width, images_RCHW.device)
        return image_ops.sample(images_RCHW, *points)
    if op in _LEVEL_OPS:
        return _LEVEL_OPS[op](images_RCHW, int(argument))
    if op in _ROW_OPS:
        return _ROW_OPS[op](images_RCHW)
    return _FACTOR_OPS[op](images_RCHW, factors_R.view(-1, 1, 1, 1))


@dataclass(frozen=True, slots=True)
class _Plan:
    """A draw, sorted; rounds first."""

    rows_NB: NDArray[np.int64]
    """The batch's rows, those of one kernel beside each other."""
    factors_NB: NDArray[np.float32]
    calls_N: list[list[tuple[_Kernel, slice]]]
    """What is run on which piece of `rows_NB`."""


def _plan(draw: RandAugmentDraw, max_rows: int) -> _Plan:
    num_rows, num_ops = draw.ops_BN.shape
    rows_NB = np.empty((num_ops, num_rows), dtype=np.int64)
    factors_NB = np.zeros((num_ops, num_rows), dtype=np.float32)
    calls_N: list[list[tuple[_Kernel, slice]]] = []
    for number in range(num_ops):
        drawn = list(zip(draw.ops_BN[:, number].tolist(), draw.arguments_BN[:, number].tolist(), strict=True))
        kernels = [_kernel(op, argument) for op, argument in drawn]
        for row in range(num_rows):
            factors_NB[number, row] = _factor(*drawn[row])
        order = sorted(range(num_rows), key=kernels.__getitem__)
        rows_NB[number] = order
        calls_N.append(_calls([kernels[row] for row in order], max_rows))
    return _Plan(rows_NB, factors_NB, calls_N)


def _kernel(op: int, argument: float) -> _Kernel:
    return (op, argument if op in GEOMETRIC or op in _LEVEL_OPS else 0.0)


def _factor(op: int, argument: float) -> float:
    return 2.0 ** (8 - argument) if op == Op.Posterize else argument


def _calls(kernels: list[_Kernel], max_rows: int) -> list[tuple[_Kernel, slice]]:
    """Return where each run of equal kernels lies, cut after `max_rows`."""
    found: list[tuple[_Kernel, slice]] = []
    start = 0
    for kernel, run in groupby(kernels):
        stop = start + len(list(run))
        if kernel[0] != NOT_APPLIED:
            found += [(kernel, slice(at, min(at + max_rows, stop))) for at in range(start, stop, max_rows)]
        start = stop
    return found


@lru_cache(maxsize=12)
def _sampling_points(
    op: Op, argument: float, height: int, width: int, device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    """Return what `image_ops.sample` takes. Cached: a magnitude has only six, at 16 bytes a pixel."""
    a, b, c, d, e, f = _inverse_map(op, argument, height, width)
    with torch.inference_mode(False):
        x_W = torch.arange(width, device=device, dtype=torch.float64) + 0.5
        y_H1 = torch.arange(height, device=device, dtype=torch.float64).unsqueeze(1) + 0.5
        source_x_HW = (a * x_W + (b * y_H1 + c)) * (2.0 / width) - 1.0
        source_y_HW = (d * x_W + (e * y_H1 + f)) * (2.0 / height) - 1.0
        inside_HW = (torch.maximum(source_x_HW.abs(), source_y_HW.abs()) <= 1.0).float()
        rest_HW = (1.0 - inside_HW) * image_ops.FILL + 0.5
        return torch.stack((source_x_HW, source_y_HW), 2).float().unsqueeze(0), inside_HW, rest_HW


def _inverse_map(op: Op, argument: float, height: int, width: int) -> tuple[float, ...]:
    """Return the coefficients of PIL's inverse map of an operation.

    It maps the output pixel's centre (x + 0.5, y + 0.5) to a source point (a x + b y + c,
    d x + e y + f), in pixels from the top left corner. Rotation is about the centre,
    counter-clockwise; shears keep the top left corner.
    """
    if op is Op.Rotate:
        cosine, sine = math.cos(math.radians(argument)), math.sin(math.radians(argument))
        c = width / 2 - cosine * width / 2 + sine * height / 2
        f = height / 2 - sine * width / 2 - cosine * height / 2
        return cosine, -sine, c, sine, cosine, f
    if op is Op.ShearX:
        return 1.0, argument, 0.0, 0.0, 1.0, 0.0
    return 1.0, 0.0, 0.0, argument, 1.0, 0.0
