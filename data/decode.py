"""Image bytes to a square uint8 image, written into its row of the batch.

JPEG goes through libjpeg-turbo at the smallest DCT scale that still covers the crop; everything
else, and any JPEG that it refuses, through Pillow. Both free the interpreter lock while they work.
Resizing is bilinear with antialias. Shape letters: H height, W width, C channels (RGB).
"""

import io
import math
import struct
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps

from data.crop import CropBox, DecodeConfig, eval_box, random_pad_offset, random_resized_box
from data.jpeg_decode import Pixels, decode_jpeg, upright_size
from data.jpeg_header import JPEG_SIGNATURE, read_jpeg_header

__all__ = ["BadSampleError", "DecodeConfig", "decode_eval", "decode_train"]

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
# PNG specification (W3C, third edition), sections 5.3 and 11.2.1.
_PNG_HEADER_START = b"\0\0\0\rIHDR"
_PNG_HEADER = struct.Struct(">II5B")  # width, height, depth, colour type, compression, filter, interlace
_PNG_CHUNK = struct.Struct(">I4s")
_PNG_PLAIN_KIND = [8, 2, 0, 0, 0]
_PNG_FIRST_CHUNK = 33
_MAX_PLAIN_PNG_PIXELS = 50_000_000


class BadSampleError(ValueError):
    """The bytes are not an image that can be decoded."""


def decode_train(image_bytes: bytes, draws: Sequence[float], config: DecodeConfig, out_HWC: Pixels) -> None:
    """Decode a random crop into `out_HWC`, uint8 [S, S, 3] with S = config.image_size_px.

    `draws` are this sample's row of `data.crop.draw_crops`. Raises `BadSampleError`. Only decoding can
    fail so: what fails in cropping and resizing, such as torch out of memory, is no fault of the image.
    """
    if config.crop_mode == "random_pad":
        with _bad_bytes():
            pixels_HWC = _decode_whole(image_bytes)
        _padded_crop(pixels_HWC, draws, config, out_HWC)
        return
    with _bad_bytes():
        cropped_HWC = _jpeg_crop(image_bytes, draws, config)
        image = _open_with_pillow(image_bytes) if cropped_HWC is None else None
    if cropped_HWC is not None:
        _resize_array(cropped_HWC, out_HWC)
    elif image is not None:
        _resize_pillow(image, random_resized_box(image.height, image.width, draws, config), out_HWC)


def decode_eval(image_bytes: bytes, config: DecodeConfig, out_HWC: Pixels) -> None:
    """Decode the evaluation view into `out_HWC`, uint8 [S, S, 3]. Raises `BadSampleError`, as above."""
    with _bad_bytes():
        image = _open_for_eval(image_bytes, config)
    _resize_pillow(image, eval_box(image.height, image.width, config), out_HWC)


@contextmanager
def _bad_bytes() -> Generator[None]:
    """Turn what decoders raise on hostile bytes, many types that mean the same, into `BadSampleError`."""
    try:
        yield
    except MemoryError:
        raise
    except Exception as error:
        raise BadSampleError(f"{type(error).__name__}: {error}") from error


def _open_with_pillow(image_bytes: bytes) -> Image.Image:
    """Return the decoded image, upright, RGB."""
    if image_bytes.startswith(_PNG_SIGNATURE):
        plain = _open_plain_png(image_bytes)
        if plain is not None:
            return plain
    image: Image.Image = Image.open(io.BytesIO(image_bytes))
    image.load()
    if "exif" in image.info:
        image = ImageOps.exif_transpose(image)
    return image if image.mode == "RGB" else image.convert("RGB")


def _open_plain_png(png_bytes: bytes) -> Image.Image | None:
    """Decode a PNG of 8-bit RGB without interlace or EXIF; None for any other.

    For such files this does what `Image.open` does, with the same C decoder, in about half the time
    of a 32-pixel image. It leaves out the chunks' CRCs: the reader has checked the whole file's.
    """
    if png_bytes[8:16] != _PNG_HEADER_START:
        return None
    width, height, *kind = _PNG_HEADER.unpack_from(png_bytes, 16)
    if kind != _PNG_PLAIN_KIND or not 0 < width * height <= _MAX_PLAIN_PNG_PIXELS:
        return None
    parts: list[bytes] = []
    offset = _PNG_FIRST_CHUNK
    while True:
        size_bytes, name = _PNG_CHUNK.unpack_from(png_bytes, offset)
        if name == b"IDAT":
            parts.append(png_bytes[offset + 8 : offset + 8 + size_bytes])
        elif name == b"IEND":
            return Image.frombytes("RGB", (width, height), b"".join(parts), "zip", "RGB", 0)
        elif name == b"eXIf":
            return None
        offset += 12 + size_bytes  # Length, name, content, CRC.


def _resize_pillow(image: Image.Image, box: tuple[float, float, float, float], out_HWC: Pixels) -> None:
    """Resize a box (top, left, height, width) of an image into `out_HWC`.

    Where the antialias filter reaches over the box's edge it sees the image, as after a resize of
    the whole image; torchvision crops first. The two differ in the outermost pixels only.
    """
    top, left, height, width = box
    out_height, out_width = out_HWC.shape[:2]
    if (height, width) == (out_height, out_width) == (image.height, image.width):
        out_HWC[...] = np.asarray(image)
        return
    resized = image.resize(
        (out_width, out_height), Image.Resampling.BILINEAR, box=(left, top, left + width, top + height)
    )
    out_HWC[...] = np.asarray(resized)


def _jpeg_crop(image_bytes: bytes, draws: Sequence[float], config: DecodeConfig) -> Pixels | None:
    """Decode a random crop, at least as large as it will be; None if this path cannot."""
    header = read_jpeg_header(image_bytes) if image_bytes.startswith(JPEG_SIGNATURE) else None
    if header is None:
        return None
    height, width = full_size = upright_size(header)
    box = random_resized_box(height, width, draws, config)
    size = config.image_size_px
    decoded = decode_jpeg(
        image_bytes,
        header,
        min_height=min(height, math.ceil(height * size / box[2])),
        min_width=min(width, math.ceil(width * size / box[3])),
        end_row=box[0] + box[2],
    )
    if decoded is None:
        return None
    top, left, crop_height, crop_width = _scale_box(box, full_size, (decoded.height, decoded.width))
    return decoded.pixels_HWC[top : top + crop_height, left : left + crop_width]


def _scale_box(box: CropBox, full_size: tuple[int, int], size: tuple[int, ...]) -> CropBox:
    """Map a box onto a smaller decode; edges move by at most half a pixel of the smaller image."""
    (top, left, height, width), (full_height, full_width) = box, full_size
    first_row = min(round(top * size[0] / full_height), size[0] - 1)
    first_column = min(round(left * size[1] / full_width), size[1] - 1)
    end_row = max(round((top + height) * size[0] / full_height), first_row + 1)
    end_column = max(round((left + width) * size[1] / full_width), first_column + 1)
    return first_row, first_column, end_row - first_row, end_column - first_column


def _resize_array(pixels_HWC: Pixels, out_HWC: Pixels) -> None:
    """Resize with torch's uint8 kernel, straight into `out_HWC`: a quarter of Pillow's time (AVX2).

    The batch axis must be torch's own, and there before the axes are permuted: by its stride torch sees
    channels_last. Without it the result comes in planes, and copying that costs more than the resize.
    """
    if pixels_HWC.shape == out_HWC.shape:
        out_HWC[...] = pixels_HWC
        return
    source_1HWC = torch.from_numpy(np.ascontiguousarray(pixels_HWC)).unsqueeze(0)
    resized_1CHW = torch.nn.functional.interpolate(
        source_1HWC.permute(0, 3, 1, 2), size=out_HWC.shape[:2], mode="bilinear", antialias=True
    )
    out_HWC[...] = resized_1CHW.permute(0, 2, 3, 1).numpy()[0]


def _decode_whole(image_bytes: bytes) -> Pixels:
    """Decode every pixel, upright: uint8 [H, W, 3]."""
    if image_bytes.startswith(JPEG_SIGNATURE):
        header = read_jpeg_header(image_bytes)
        decoded = decode_jpeg(image_bytes, header) if header is not None else None
        if decoded is not None:
            return decoded.pixels_HWC
    return np.asarray(_open_with_pillow(image_bytes))


def _open_for_eval(image_bytes: bytes, config: DecodeConfig) -> Image.Image:
    """Return the upright image, a JPEG at a scale that still has all the pixels evaluation needs."""
    if image_bytes.startswith(JPEG_SIGNATURE):
        header = read_jpeg_header(image_bytes)
        if header is not None:
            height, width = upright_size(header)
            _, _, crop_height, crop_width = eval_box(height, width, config)
            size = config.image_size_px
            decoded = decode_jpeg(
                image_bytes,
                header,
                min_height=min(height, math.ceil(height * size / crop_height)),
                min_width=min(width, math.ceil(width * size / crop_width)),
            )
            if decoded is not None:
                return Image.fromarray(np.ascontiguousarray(decoded.pixels_HWC))
    return _open_with_pillow(image_bytes)


def _padded_crop(pixels_HWC: Pixels, draws: Sequence[float], config: DecodeConfig, out_HWC: Pixels) -> None:
    """Shift an image within its padding, at its own size, then resize it to `out_HWC`."""
    height, width, _ = pixels_HWC.shape
    down, right = random_pad_offset(draws, config.pad_px)
    if config.pad_mode == "reflect":
        rows_H, columns_W = _reflected(height, down), _reflected(width, right)
        shifted_HWC = pixels_HWC.take(rows_H, axis=0).take(columns_W, axis=1)
    else:
        shifted_HWC = np.zeros_like(pixels_HWC)
        source = pixels_HWC[max(down, 0) : max(height + down, 0), max(right, 0) : max(width + right, 0)]
        top, left = min(max(-down, 0), height), min(max(-right, 0), width)
        shifted_HWC[top : top + source.shape[0], left : left + source.shape[1]] = source
    if shifted_HWC.shape == out_HWC.shape:
        out_HWC[...] = shifted_HWC
    else:
        _resize_pillow(Image.fromarray(shifted_HWC), (0, 0, height, width), out_HWC)


@lru_cache(maxsize=4096)
def _reflected(size: int, shift: int) -> NDArray[np.int64]:
    """Return the source index of each pixel of a line moved by `shift`, mirrored about its end pixels."""
    period = max(1, 2 * (size - 1))
    folded = np.abs(np.arange(shift, shift + size) % period)
    return np.minimum(folded, period - folded) if size > 1 else np.zeros(1, dtype=np.int64)
