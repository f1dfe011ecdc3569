"""A decode that ends below the crop has the pixels of a whole one, at every scale."""

import numpy as np
import pytest
import simplejpeg
from numpy.typing import NDArray

from data.crop import DecodeConfig, draw_crops
from data.decode import BadSampleError, decode_train
from data.jpeg_decode import ScaledPixels, decode_jpeg
from data.jpeg_header import read_jpeg_header
from tests.small_dataset import encode

HEIGHT, WIDTH = 203, 150


def noisy_jpeg(**options: object) -> bytes:
    """Noise of both scales: a wrong row, or colour taken from the wrong one, shows."""
    rng = np.random.default_rng(3)
    coarse = np.kron(rng.integers(0, 200, (51, 38, 3)), np.ones((4, 4, 1)))[:HEIGHT, :WIDTH]
    noise = rng.integers(0, 55, (HEIGHT, WIDTH, 3))
    return encode((coarse + noise).astype(np.uint8), "jpg", quality=92, **options)


def decode(content: bytes, **options: int) -> ScaledPixels:
    header = read_jpeg_header(content)
    assert header is not None
    decoded = decode_jpeg(content, header, **options)
    assert decoded is not None
    return decoded


@pytest.mark.parametrize("subsampling", [0, 1, 2])
@pytest.mark.parametrize("factor", [1, 2, 4, 8])
@pytest.mark.parametrize("restart", [0, 5])
def test_rows_above_the_end_are_those_of_the_whole_image(subsampling: int, factor: int, restart: int) -> None:
    content = noisy_jpeg(subsampling=subsampling, restart_marker_blocks=restart)
    minima = {"min_height": -(-HEIGHT // factor), "min_width": -(-WIDTH // factor)}
    whole = decode(content, **minima)
    assert (
        (whole.height, whole.width)
        == whole.pixels_HWC.shape[:2]
        == (-(-HEIGHT // factor), -(-WIDTH // factor))
    )
    for end_row in (1, 15, 16, 17, 64, 100, 160, 180, HEIGHT):
        part = decode(content, **minima, end_row=end_row)
        assert (part.height, part.width) == (whole.height, whole.width)
        num_rows = -(-end_row // factor)
        np.testing.assert_array_equal(part.pixels_HWC[:num_rows], whole.pixels_HWC[:num_rows])
        assert end_row > 150 or len(part.pixels_HWC) < whole.height


def test_progressive_files_are_decoded_in_full() -> None:
    assert len(decode(noisy_jpeg(progressive=True), end_row=10).pixels_HWC) == HEIGHT


def test_a_file_without_its_end_is_broken_whatever_the_crop_needs() -> None:
    """Of a cut decode libjpeg-turbo's warnings cannot be told from those of a truncated file."""
    content = noisy_jpeg()
    config = DecodeConfig(image_size_px=16, crop_scale=(0.08, 0.1))
    out_HWC: NDArray[np.uint8] = np.zeros((16, 16, 3), dtype=np.uint8)
    for draws in draw_crops(0, 0, np.arange(30)):
        decode_train(content, draws, config, out_HWC)
        with pytest.raises(BadSampleError):
            decode_train(content[: len(content) * 3 // 4], draws, config, out_HWC)


def test_crops_do_not_depend_on_where_decoding_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """The cut is worth its trouble only if it happens, and must not change a pixel."""
    content = noisy_jpeg()
    config = DecodeConfig(image_size_px=32)
    rows: list[int] = []
    real = simplejpeg.decode_jpeg

    def spy(*args: object, **kwargs: object) -> NDArray[np.uint8]:
        pixels = real(*args, **kwargs)
        rows.append(len(pixels))
        return pixels

    monkeypatch.setattr(simplejpeg, "decode_jpeg", spy)
    for draws in draw_crops(0, 0, np.arange(60)):
        cut, whole = (np.zeros((32, 32, 3), dtype=np.uint8) for _ in range(2))
        decode_train(content, draws, config, cut)
        # A fill byte before the end marker hides it from the check, and no decoder minds it.
        decode_train(content[:-2] + b"\xff" + content[-2:] + b"\xff", draws, config, whole)
        np.testing.assert_array_equal(cut, whole)
    assert sum(a < b for a, b in zip(rows[::2], rows[1::2], strict=True)) > 20
