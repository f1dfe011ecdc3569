"""Crops lie where torchvision's would, pixels agree with Pillow, odd files are decoded or refused."""

import io
import math
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, ImageOps, PngImagePlugin

from data.crop import (
    NUM_CROP_DRAWS,
    DecodeConfig,
    draw_crops,
    eval_box,
    random_pad_offset,
    random_resized_box,
)
from data.decode import BadSampleError, decode_eval, decode_train
from data.errors import InputError
from tests.small_dataset import encode, picture

DRAWS = draw_crops(0, 0, np.arange(200))


def train(content: bytes, draws: list[float], config: DecodeConfig) -> NDArray[np.uint8]:
    out_HWC = np.full((config.image_size_px, config.image_size_px, 3), 77, dtype=np.uint8)
    decode_train(content, draws, config, out_HWC)
    return out_HWC


def evaluate(content: bytes, config: DecodeConfig) -> NDArray[np.uint8]:
    out_HWC = np.full((config.image_size_px, config.image_size_px, 3), 77, dtype=np.uint8)
    decode_eval(content, config, out_HWC)
    return out_HWC


def distance(left: NDArray[np.uint8], right: NDArray[np.uint8]) -> float:
    return float(np.abs(left.astype(int) - right.astype(int)).mean())


@settings(deadline=None, max_examples=200)
@given(
    height=st.integers(1, 3000),
    width=st.integers(1, 3000),
    position=st.integers(0, 199),
    scale=st.sampled_from([(0.08, 1.0), (0.5, 0.6), (1.0, 1.0)]),
    ratio=st.sampled_from([(3 / 4, 4 / 3), (1.0, 1.0), (2.0, 3.0)]),
)
def test_a_crop_lies_inside_its_image(
    height: int, width: int, position: int, scale: tuple[float, float], ratio: tuple[float, float]
) -> None:
    config = DecodeConfig(image_size_px=32, crop_scale=scale, crop_ratio=ratio)
    top, left, crop_height, crop_width = random_resized_box(height, width, DRAWS[position], config)
    assert 0 <= top <= top + crop_height <= height
    assert 0 <= left <= left + crop_width <= width
    assert crop_height >= 1
    assert crop_width >= 1


def test_crop_box_is_torchvisions() -> None:
    """The first try of `RandomResizedCrop.get_params` (0.20), worked by hand from the same numbers."""
    draws = [0.25, 0.999999] + [0.5, 0.5] * 10
    # area = 0.54 * 500 * 375; ratio = exp(0) = 1; side = round(318.198) = 318
    assert random_resized_box(375, 500, draws, DecodeConfig(image_size_px=224)) == (14, 182, 318, 318)


def test_a_try_that_does_not_fit_gives_way_to_the_next() -> None:
    draws = [0.0, 0.0, 1.0, 0.99, *([0.1, 0.5] * 9)]  # the whole area, wide: does not fit a square
    assert random_resized_box(100, 100, draws, DecodeConfig(image_size_px=8))[2:] == (41, 41)
    # Nothing fits a strip: the largest centred crop of an allowed ratio.
    assert random_resized_box(10, 100, draws, DecodeConfig(image_size_px=8)) == (0, 43, 10, 13)
    assert random_resized_box(100, 10, draws, DecodeConfig(image_size_px=8)) == (43, 0, 13, 10)


def test_areas_and_ratios_are_spread_as_configured() -> None:
    config = DecodeConfig(image_size_px=32)
    boxes = [random_resized_box(1000, 1000, d, config) for d in draw_crops(1, 0, np.arange(4000))]
    areas = np.array([h * w / 1e6 for _, _, h, w in boxes])
    ratios = np.array([math.log(w / h) for _, _, h, w in boxes])
    assert areas.min() > 0.079
    # Uniform, but large areas fit a square only at some ratios: the integral gives 0.478.
    assert abs(areas.mean() - 0.478) < 0.015
    assert abs(ratios.mean()) < 0.01
    assert abs(ratios).max() < math.log(4 / 3) + 0.01


def test_no_crop_is_a_pure_resize() -> None:
    config = DecodeConfig(image_size_px=32, crop_scale=(1, 1), crop_ratio=(1, 1))
    square = picture(32, 32, 1)
    np.testing.assert_array_equal(train(encode(square, "png"), DRAWS[0], config), square)
    wide = picture(40, 61, 2)
    resized = np.asarray(Image.fromarray(wide).resize((32, 32), Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(train(encode(wide, "png"), DRAWS[0], config), resized)


@pytest.mark.parametrize("extension", ["png", "jpg"])
@pytest.mark.parametrize(("height", "width"), [(500, 375), (800, 1200), (50, 40)])
def test_pixels_agree_with_pillow(extension: str, height: int, width: int) -> None:
    """Whole decode, crop, antialiased resize in Pillow. DCT scaling moves edges by half a pixel at most,
    on pictures with slopes of up to 4 levels a pixel."""
    config = DecodeConfig(image_size_px=64)
    content = encode(picture(height, width, 3), extension)
    whole = Image.open(io.BytesIO(content))
    for draws in DRAWS[:20]:
        top, left, crop_height, crop_width = random_resized_box(height, width, draws, config)
        crop = whole.crop((left, top, left + crop_width, top + crop_height))
        expected = np.asarray(crop.resize((64, 64), Image.Resampling.BILINEAR))
        assert distance(train(content, draws, config), expected) < 2.5


def test_large_jpeg_is_decoded_small() -> None:
    """A crop of a 2000-pixel photo to 32 pixels must not cost a whole decode: 1/8 scale is enough."""
    import simplejpeg

    content = encode(picture(1600, 2000, 5), "jpg")
    sizes: list[tuple[int, ...]] = []
    real = simplejpeg.decode_jpeg

    def spy(*args: object, **kwargs: object) -> NDArray[np.uint8]:
        pixels = real(*args, **kwargs)
        sizes.append(pixels.shape)
        return pixels

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(simplejpeg, "decode_jpeg", spy)
        config = DecodeConfig(image_size_px=32, crop_scale=(0.9, 1.0))
        train(content, DRAWS[0], config)
        evaluate(content, DecodeConfig(image_size_px=32))
    assert sizes == [(200, 250, 3), (200, 250, 3)]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("extension", ["png", "jpg"])
def test_exif_orientation_is_honoured(orientation: int, extension: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    pixels = picture(60, 40, 7)
    content = encode(pixels, extension, exif=exif)
    upright = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(content))))
    plain = encode(upright, "png")
    config = DecodeConfig(image_size_px=32)
    assert distance(train(content, DRAWS[3], config), train(plain, DRAWS[3], config)) < 1.5
    assert distance(evaluate(content, config), evaluate(plain, config)) < 0.5
    padded = DecodeConfig(image_size_px=32, crop_mode="random_pad")
    assert distance(train(content, DRAWS[3], padded), train(plain, DRAWS[3], padded)) < 0.5


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P", "1", "I;16", "CMYK"])
def test_other_modes_become_rgb(mode: str) -> None:
    image = Image.fromarray(picture(20, 20, 1))
    image = image.convert("L").convert("I").convert("I;16") if mode == "I;16" else image.convert(mode)
    stream = io.BytesIO()
    image.save(stream, "JPEG" if mode == "CMYK" else "PNG")
    config = DecodeConfig(image_size_px=16)
    assert train(stream.getvalue(), DRAWS[0], config).shape == (16, 16, 3)
    assert evaluate(stream.getvalue(), config).std() > 0


def test_the_short_way_through_png_is_pillows() -> None:
    """Several IDAT chunks, other chunks, every row filter; interlaced files take the long way."""
    config = DecodeConfig(image_size_px=48, eval_crop="squash")
    noisy = np.random.default_rng(0).integers(0, 256, (48, 48, 3), dtype=np.uint8)
    text = PngImagePlugin.PngInfo()
    text.add_text("comment", "IDAT IEND eXIf")
    for pixels in (picture(48, 48, 1), noisy):
        content = encode(pixels, "png", pnginfo=text)
        data = content.index(b"IDAT", content.index(b"eXIf") + 4)
        size = int.from_bytes(content[data - 4 : data], "big")
        stream = content[data + 4 : data + 4 + size]
        chunks = b"".join(
            len(part).to_bytes(4, "big") + b"IDAT" + part + zlib.crc32(b"IDAT" + part).to_bytes(4, "big")
            for part in (stream[:50], b"", stream[50:])
        )
        split = content[: data - 4] + chunks + content[data + 8 + size :]
        np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(split))), pixels)
        np.testing.assert_array_equal(evaluate(split, config), pixels)


@pytest.mark.parametrize("extension", ["png", "jpg"])
@pytest.mark.parametrize("crop_mode", ["random_resized", "random_pad"])
def test_broken_bytes_are_a_bad_sample(extension: str, crop_mode: str) -> None:
    config = DecodeConfig(image_size_px=16, crop_mode=crop_mode)  # type: ignore[arg-type]
    whole = encode(picture(64, 64, 1), extension)
    for content in (b"", b"no image", whole[:30], whole[: len(whole) // 2], whole[:8] + b"\xff" * 400):
        with pytest.raises(BadSampleError):
            train(content, DRAWS[0], config)
        with pytest.raises(BadSampleError):
            evaluate(content, config)


@pytest.mark.parametrize("extension", ["png", "jpg"])
@pytest.mark.parametrize("crop_mode", ["random_resized", "random_pad"])
def test_a_fault_in_resizing_is_not_the_images(extension: str, crop_mode: str) -> None:
    """torch out of memory once passed for a bad sample; here the batch cannot be written to."""
    config = DecodeConfig(image_size_px=16, crop_mode=crop_mode)  # type: ignore[arg-type]
    out_HWC = np.zeros((16, 16, 3), dtype=np.uint8)
    out_HWC.flags.writeable = False
    content = encode(picture(64, 64, 1), extension)
    with pytest.raises(ValueError, match="read-only") as in_training:
        decode_train(content, DRAWS[0], config, out_HWC)
    with pytest.raises(ValueError, match="read-only") as in_evaluation:
        decode_eval(content, config, out_HWC)
    assert not isinstance(in_training.value, BadSampleError)
    assert not isinstance(in_evaluation.value, BadSampleError)


@settings(deadline=None, max_examples=40)
@given(data=st.data(), pad_px=st.integers(0, 9), pad_mode=st.sampled_from(["reflect", "zero"]))
def test_random_pad_is_pad_then_crop(data: st.DataObject, pad_px: int, pad_mode: str) -> None:
    height, width = data.draw(st.integers(10, 20)), data.draw(st.integers(10, 20))
    draws = data.draw(st.sampled_from(DRAWS))
    pixels = picture(height, width, 4)
    config = DecodeConfig(image_size_px=16, crop_mode="random_pad", pad_px=pad_px, pad_mode=pad_mode)  # type: ignore[arg-type]
    widths = ((pad_px, pad_px), (pad_px, pad_px), (0, 0))
    padded = np.pad(pixels, widths, mode="reflect" if pad_mode == "reflect" else "constant")
    down, right = random_pad_offset(draws, pad_px)
    crop = padded[pad_px + down :][:height, pad_px + right :][:, :width]
    expected = np.asarray(Image.fromarray(np.ascontiguousarray(crop)).resize((16, 16), 2))
    np.testing.assert_array_equal(train(encode(pixels, "png"), draws, config), expected)


def test_random_pad_wider_than_the_image() -> None:
    """Nothing left of the image, or several reflections: no index error."""
    image = np.full((3, 1, 3), 200, np.uint8)
    for pad_mode, level in (("reflect", 200), ("zero", 0)):
        config = DecodeConfig(image_size_px=4, crop_mode="random_pad", pad_px=40, pad_mode=pad_mode)  # type: ignore[arg-type]
        outside = [draws for draws in DRAWS if max(map(abs, random_pad_offset(draws, 40))) >= 3]
        assert outside
        for draws in outside:
            np.testing.assert_array_equal(
                train(encode(image, "png"), draws, config), np.full((4, 4, 3), level)
            )


def test_random_pad_offsets_are_uniform() -> None:
    offsets = np.array([random_pad_offset(draws, 2) for draws in draw_crops(0, 0, np.arange(5000))])
    for axis in (0, 1):
        counts = np.bincount(offsets[:, axis] + 2, minlength=5)
        assert len(counts) == 5
        assert abs(counts - 1000).max() < 130


@pytest.mark.parametrize(("height", "width"), [(48, 64), (64, 48), (333, 500), (32, 32)])
def test_eval_is_resize_then_centre_crop(height: int, width: int) -> None:
    """torchvision: Resize(round(32 / 0.875)) of the short side, CenterCrop(32)."""
    pixels = picture(height, width, 9)
    short = round(32 / 0.875)
    new_height = short if height <= width else int(short * height / width)
    new_width = short if width <= height else int(short * width / height)
    resized = np.asarray(Image.fromarray(pixels).resize((new_width, new_height), Image.Resampling.BILINEAR))
    top, left = round((new_height - 32) / 2), round((new_width - 32) / 2)
    expected = resized[top : top + 32, left : left + 32]
    assert distance(evaluate(encode(pixels, "png"), DecodeConfig(image_size_px=32)), expected) < 0.6


def test_eval_without_a_crop_changes_nothing() -> None:
    pixels = picture(32, 32, 3)
    for choices in ({"eval_crop_fraction": 1.0}, {"eval_crop": "squash"}):
        config = DecodeConfig(image_size_px=32, **choices)  # type: ignore[arg-type]
        np.testing.assert_array_equal(evaluate(encode(pixels, "png"), config), pixels)


@settings(deadline=None, max_examples=200)
@given(height=st.integers(1, 4000), width=st.integers(1, 4000), fraction=st.floats(0.3, 1.0))
def test_eval_box_lies_inside(height: int, width: int, fraction: float) -> None:
    config = DecodeConfig(image_size_px=48, eval_crop_fraction=fraction)
    top, left, crop_height, crop_width = eval_box(height, width, config)
    assert min(top, left) >= 0
    assert top + crop_height <= height
    assert left + crop_width <= width
    assert min(crop_height, crop_width) > 0


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"image_size_px": 0}, "image_size_px is 0"),
        ({"crop_mode": "centre"}, "crop_mode is 'centre'; choose random_resized or random_pad"),
        ({"crop_scale": (0.5, 0.2)}, "crop_scale is"),
        ({"crop_ratio": (0.0, 1.0)}, "crop_ratio is"),
        ({"pad_px": -1}, "pad_px is -1"),
        ({"eval_crop_fraction": 0.0}, "eval_crop_fraction is 0"),
    ],
)
def test_bad_configuration_is_refused(choices: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        DecodeConfig(**{"image_size_px": 32, **choices})  # type: ignore[arg-type]


def test_draws_have_the_documented_number() -> None:
    assert len(DRAWS[0]) == NUM_CROP_DRAWS
