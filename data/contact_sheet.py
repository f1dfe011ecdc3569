"""A picture of what the model will see: each original beside its augmented self, with a caption."""

import io
import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from data.errors import InputError

_MIN_TILE_PX = 128
_MARGIN_PX = 10
_GAP_PX = 4
_FONT_SIZE_PX = 12
_LINE_PX = 15
_MAX_LINES = 5
_BACKGROUND = (255, 255, 255)
_INK = (32, 32, 32)


def contact_sheet(
    originals_BHWC: Tensor, augmented_BHWC: Tensor, captions: Sequence[str], *, num_columns: int = 4
) -> bytes:
    """Return a PNG with one pair (original, augmented) a sample; below it #row and its caption.

    Both are uint8 [B, H, W, 3], of any two sizes; small ones are enlarged by a whole factor without
    smoothing, so that a 32 px image shows its pixels. Raises InputError where the counts differ or
    there is nothing to show.
    """
    counts = (len(originals_BHWC), len(augmented_BHWC), len(captions))
    if len(set(counts)) != 1 or counts[0] == 0:
        raise InputError(
            f"a contact sheet of {counts} originals, augmented images, captions; needed: the same, >= 1"
        )
    lefts = [_enlarge(image) for image in originals_BHWC.cpu().numpy()]
    rights = [_enlarge(image) for image in augmented_BHWC.cpu().numpy()]
    font = ImageFont.load_default(_FONT_SIZE_PX)
    cell_width = lefts[0].width + _GAP_PX + rights[0].width
    texts = [_wrap(f"#{row} {caption}", cell_width, font) for row, caption in enumerate(captions)]
    tile_height = max(lefts[0].height, rights[0].height)
    cell_height = tile_height + _GAP_PX + _LINE_PX * max(map(len, texts))
    num_columns = min(num_columns, counts[0])
    num_rows = math.ceil(counts[0] / num_columns)
    size = (
        num_columns * (cell_width + _MARGIN_PX) + _MARGIN_PX,
        num_rows * (cell_height + _MARGIN_PX) + _MARGIN_PX,
    )
    sheet = Image.new("RGB", size, _BACKGROUND)
    pen = ImageDraw.Draw(sheet)
    for number, (left, right, lines) in enumerate(zip(lefts, rights, texts, strict=True)):
        x = _MARGIN_PX + (number % num_columns) * (cell_width + _MARGIN_PX)
        y = _MARGIN_PX + (number // num_columns) * (cell_height + _MARGIN_PX)
        sheet.paste(left, (x, y))
        sheet.paste(right, (x + left.width + _GAP_PX, y))
        for line_number, line in enumerate(lines):
            pen.text((x, y + tile_height + _GAP_PX + line_number * _LINE_PX), line, fill=_INK, font=font)
    return _to_png(sheet)


def _enlarge(image_HWC: NDArray[np.uint8]) -> Image.Image:
    image = Image.fromarray(image_HWC)
    factor = max(1, math.ceil(_MIN_TILE_PX / max(image.size)))
    return image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)


def _wrap(caption: str, width_px: int, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> list[str]:
    """Break a caption at spaces, at most `_MAX_LINES` lines; what does not fit ends in an ellipsis."""
    lines = [""]
    for word in caption.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and font.getlength(longer) > width_px:
            lines.append(word)
        else:
            lines[-1] = longer
    if len(lines) > _MAX_LINES:
        lines = [*lines[: _MAX_LINES - 1], lines[_MAX_LINES - 1] + " ..."]
    return lines


def _to_png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()
