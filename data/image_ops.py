"""Image operations on rows of a batch, one argument per row, following PIL's formulas.

Every operation is exact per row: its bits do not depend on which rows share the call or on the number
of threads. Kornia's functions serve where they are so by construction. Its contrast is not: its float
mean over pixels was seen to change with the batch at 2 threads. Convolutions (its sharpness) and matrix
products (`affine_grid`) leave the kernel, so the order of additions, to oneDNN and MKL, which promise
nothing; written out here, they are faster on small groups too.
Nothing here reads a tensor's value on the host, so a GPU is never waited for.

Shape letters: R rows, C channels (RGB), H height, W width. Images are float32 in [0, 1], contiguous;
they are never changed in place. One 8-bit level is 1/255.
"""

from collections.abc import Callable

import torch
from kornia.enhance import adjust_brightness_accumulative
from kornia.enhance import equalize as kornia_equalize
from kornia.enhance import solarize as kornia_solarize
from torch import Tensor
from torch.nn.functional import grid_sample

FILL = 128 / 255
"""What a geometric operation leaves behind (timm's `_FILL`, TensorFlow's `replace_value`)."""

NUM_PARAMETERS = 6
"""Columns of the parameters: six for `affine`, the first alone for the others."""

RowOp = Callable[[Tensor, Tensor], Tensor]
"""(images_RCHW, parameters_R6) -> images_RCHW."""


def luma(images_RCHW: Tensor) -> Tensor:
    """Return ITU-R 601-2 luma [R, 1, H, W], PIL's mode `L` before it rounds."""
    red, green, blue = images_RCHW.unbind(1)
    return (red * 0.299 + green * 0.587 + blue * 0.114).unsqueeze(1)


def _per_row(parameters_R6: Tensor) -> Tensor:
    return parameters_R6[:, 0].view(-1, 1, 1, 1)


def _blend(degenerate: Tensor, images_RCHW: Tensor, factor: Tensor) -> Tensor:
    """Return degenerate + (images - degenerate) * factor, clamped: PIL's `Image.blend`."""
    return (images_RCHW - degenerate).mul_(factor).add_(degenerate).clamp_(0.0, 1.0)


def identity(images_RCHW: Tensor, parameters_R6: Tensor) -> Tensor:
    """Return the rows as they are."""
    del parameters_R6
    return images_RCHW


def auto_contrast(images_RCHW: Tensor, parameters_R6: Tensor) -> Tensor:
    """Stretch each channel to the full range (`ImageOps.autocontrast`); a flat channel stays."""
    del parameters_R6
    low = images_RCHW.amin((2, 3), keepdim=True)
    span = images_RCHW.amax((2, 3), keepdim=True) - low
    flat = span <= 0
    stretched = (images_RCHW - low.masked_fill(flat, 0.0)) / span.masked_fill(flat, 1.0)
    return stretched.clamp_(0.0, 1.0)


def equalize(images_RCHW: Tensor, parameters_R6: Tensor) -> Tensor:
    """Flatten each channel's histogram of 8-bit levels (`ImageOps.equalize`)."""
    del parameters_R6
    return kornia_equalize(images_RCHW)


def invert(images_RCHW: Tensor, parameters_R6: Tensor) -> Tensor:
    """Return 1 - image (`ImageOps.invert`)."""
    del parameters_R6
    return 1.0 - images_RCHW


def posterize(images_RCHW: Tensor, parameters_R6: Tensor) -> Tensor:
    """Round 8-bit levels down to multiples of the step 2**(8 - bits) (`ImageOps.posterize`)."""
    step = _per_row(parameters_R6)
    return (images_RCHW * 255.0).floor_().div_(step).floor_().mul_(step).div_(255.0)


def solarize(images_RCHW: Tensor, parameters_R6: Tensor) -> Tensor:
    """Invert what reaches the threshold (`ImageOps.solarize`), given in [0, 1]."""
    return kornia_solarize(images_RCHW, parameters_R6[:, 0])


def solarize_add(images_RCHW: Tensor, parameters_R6: Tensor) -> Tensor:
    """Brighten levels below 128 by an amount given in [0, 1].

    Kornia's `additions` shifts the bright half too and then inverts it: another operation.
    """
    brighter = (images_RCHW + _per_row(parameters_R6)).clamp_(max=1.0)
    return torch.where(images_RCHW < 127.5 / 255, brighter, images_RCHW)


def color(images_RCHW: Tensor, parameters_R6: Tensor) -> Tensor:
    """Blend with the image's luma (`ImageEnhance.Color`); factor 1 changes nothing."""
    return _blend(luma(images_RCHW), images_RCHW, _per_row(parameters_R6))


def contrast(images_RCHW: Tensor, parameters_R6: Tensor) -> Tensor:
    """Blend with the mean luma, rounded to a level (`ImageEnhance.Contrast`).

    The mean is a sum of whole levels in float64, exact whatever the order of addition.
    """
    levels = (luma(images_RCHW) * 255.0).round_()
    num_pixels = levels.shape[2] * levels.shape[3]
    total = levels.sum((2, 3), keepdim=True, dtype=torch.float64)
    mean = (total / num_pixels + 0.5).floor_().div_(255.0).to(images_RCHW.dtype)
    return _blend(mean, images_RCHW, _per_row(parameters_R6))


def brightness(images_RCHW: Tensor, parameters_R6: Tensor) -> Tensor:
    """Multiply by the factor (`ImageEnhance.Brightness`)."""
    return adjust_brightness_accumulative(images_RCHW, parameters_R6[:, 0])


def sharpness(images_RCHW: Tensor, parameters_R6: Tensor) -> Tensor:
    """Blend with the smoothed image (`ImageEnhance.Sharpness`, kernel [1 1 1; 1 5 1; 1 1 1] / 13).

    The outermost pixels stay, as in PIL; so does an image under 3 pixels high or wide.
    """
    height, width = images_RCHW.shape[2:]
    if min(height, width) < 3:
        return images_RCHW
    center = images_RCHW[:, :, 1:-1, 1:-1]
    rows = images_RCHW[:, :, :-2] + images_RCHW[:, :, 1:-1] + images_RCHW[:, :, 2:]
    box = rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:]
    smooth = (center * 4.0).add_(box).div_(13.0)
    sharpened = images_RCHW.clone()
    sharpened[:, :, 1:-1, 1:-1] = _blend(smooth, center, _per_row(parameters_R6))
    return sharpened


def affine(images_RCHW: Tensor, parameters_R6: Tensor) -> Tensor:
    """Sample at (a x + b y + c, d x + e y + f), bilinearly, x and y being output pixel indices.

    The result is in `grid_sample`'s coordinates: -1 and 1 are the image's outer edges. As in
    `Image.transform`, a point outside the edges takes `FILL` and one inside never blends with it.
    """
    height, width = images_RCHW.shape[2:]
    device, dtype = images_RCHW.device, images_RCHW.dtype
    x_1W = torch.arange(width, device=device, dtype=dtype).view(1, 1, width)
    y_H1 = torch.arange(height, device=device, dtype=dtype).view(1, height, 1)
    a, b, c, d, e, f = parameters_R6.view(-1, 6, 1, 1).unbind(1)
    source_x_RHW = a * x_1W + (b * y_H1 + c)
    source_y_RHW = d * x_1W + (e * y_H1 + f)
    grid_RHW2 = torch.stack((source_x_RHW, source_y_RHW), dim=-1)
    sampled = grid_sample(images_RCHW, grid_RHW2, mode="bilinear", padding_mode="border", align_corners=False)
    outside_RHW = torch.maximum(source_x_RHW.abs_(), source_y_RHW.abs_()) > 1.0
    return sampled.masked_fill_(outside_RHW.unsqueeze(1), FILL)
