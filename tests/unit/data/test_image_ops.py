"""Each operation against PIL, or its exact formula, at three magnitudes.

Colours are PIL's to the bit. Geometry samples in float32 where PIL has float64, and rounds where PIL cuts
off: a level apart is agreement.
"""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, ImageEnhance, ImageOps

from data import image_ops
from data.rand_augment import GEOMETRIC, Op, RandAugmentDraw, op_argument, rand_augment_

MAGNITUDES = (3.0, 9.0, 15.0)


def photos(num_images: int, height: int, width: int) -> NDArray[np.uint8]:
    """Return smooth colour fields plus noise, with dark, bright and full-range ones."""
    rng = np.random.default_rng(7)
    coarse = rng.uniform(0, 255, (num_images, 5, 5, 3))
    images = [
        np.asarray(Image.fromarray(c.astype(np.uint8)).resize((width, height), Image.Resampling.BICUBIC))
        for c in coarse
    ]
    noisy = np.stack(images).astype(float) + rng.normal(0, 12, (num_images, height, width, 3))
    gains = np.linspace(0.4, 1.0, num_images)[:, None, None, None]
    return np.clip(noisy * gains + 10, 0, 255).astype(np.uint8)


def same_op(num_images: int, op: Op, argument: float) -> RandAugmentDraw:
    ops_BN = np.full((num_images, 1), int(op), dtype=np.int64)
    return RandAugmentDraw(ops_BN=ops_BN, arguments_BN=np.full(ops_BN.shape, argument))


def run_op(images_BHWC: NDArray[np.uint8], op: Op, argument: float) -> NDArray[np.int64]:
    """Run one operation through the grouping code; the result is in levels, BHWC."""
    images = torch.from_numpy(images_BHWC).permute(0, 3, 1, 2).contiguous()
    done = rand_augment_(images.clone(), same_op(len(images), op, argument))
    return done.permute(0, 2, 3, 1).numpy().astype(np.int64)


def pil_op(image: Image.Image, op: Op, argument: float) -> Image.Image:
    """Do what timm's functions of the same name do, bilinear, filled with 128."""
    bilinear, fill = Image.Resampling.BILINEAR, (128, 128, 128)

    def warp(*matrix: float) -> Image.Image:
        return image.transform(image.size, Image.Transform.AFFINE, matrix, resample=bilinear, fillcolor=fill)

    table = {
        Op.AutoContrast: lambda: ImageOps.autocontrast(image),
        Op.Equalize: lambda: ImageOps.equalize(image),
        Op.Invert: lambda: ImageOps.invert(image),
        Op.Rotate: lambda: image.rotate(argument, resample=bilinear, fillcolor=fill),
        Op.Posterize: lambda: ImageOps.posterize(image, int(argument)),
        Op.Solarize: lambda: ImageOps.solarize(image, int(argument)),
        Op.SolarizeAdd: lambda: image.point(
            [min(255, i + int(argument)) if i < 128 else i for i in range(256)] * 3
        ),
        Op.Color: lambda: ImageEnhance.Color(image).enhance(argument),
        Op.Contrast: lambda: ImageEnhance.Contrast(image).enhance(argument),
        Op.Brightness: lambda: ImageEnhance.Brightness(image).enhance(argument),
        Op.Sharpness: lambda: ImageEnhance.Sharpness(image).enhance(argument),
        Op.ShearX: lambda: warp(1, argument, 0, 0, 1, 0),
        Op.ShearY: lambda: warp(1, 0, 0, argument, 1, 0),
        Op.TranslateXRel: lambda: warp(1, 0, argument * image.size[0], 0, 1, 0),
        Op.TranslateYRel: lambda: warp(1, 0, 0, 0, 1, argument * image.size[1]),
    }
    return table[op]()


COLOUR_OPS = [op for op in Op if op not in GEOMETRIC]


@pytest.mark.parametrize("increasing", [False, True])
@pytest.mark.parametrize("magnitude", MAGNITUDES)
@pytest.mark.parametrize("op", COLOUR_OPS)
def test_colour_ops_are_pils(op: Op, magnitude: float, increasing: bool) -> None:
    images = photos(4, 36, 45)
    for sign in (-1.0, 1.0):
        argument = op_argument(op, magnitude, sign=sign, increasing=increasing)
        expected = np.stack([np.asarray(pil_op(Image.fromarray(i), op, argument)) for i in images])
        np.testing.assert_array_equal(run_op(images, op, argument), expected)


@pytest.mark.parametrize("magnitude", MAGNITUDES)
@pytest.mark.parametrize("op", [Op.Rotate, Op.ShearX, Op.ShearY, Op.TranslateXRel, Op.TranslateYRel])
@pytest.mark.parametrize("sign", [-1.0, 1.0])
def test_geometric_ops_agree_with_pil(op: Op, magnitude: float, sign: float) -> None:
    """Also not square. At most 0.3% of pixels may differ: on the very edge float32 decides otherwise."""
    images = photos(3, 36, 45)
    argument = op_argument(op, magnitude, sign=sign, increasing=False)
    expected = np.stack([np.asarray(pil_op(Image.fromarray(i), op, argument)) for i in images])
    far = np.abs(run_op(images, op, argument) - expected).max(-1) > 1.01
    assert far.mean() <= 0.003


def test_rotation_by_a_right_angle_is_exact() -> None:
    images = photos(2, 16, 16)
    np.testing.assert_allclose(run_op(images, Op.Rotate, 90.0), np.rot90(images, axes=(1, 2)), atol=0.01)


def test_translation_by_whole_pixels_is_exact() -> None:
    images = photos(2, 16, 20)
    moved = run_op(images, Op.TranslateXRel, 5 / 20)
    np.testing.assert_allclose(moved[:, :, :15], images[:, :, 5:], atol=0.01)
    np.testing.assert_allclose(moved[:, :, 15:], 128, atol=0.01)


@pytest.mark.parametrize("op", list(Op))
@pytest.mark.parametrize("magnitude", [0.0, 10.0, 30.0])
def test_values_stay_in_range_for_flat_and_extreme_images(op: Op, magnitude: float) -> None:
    """Guards against NaN from a flat channel (0 / 0) and a magnitude past an operation's range."""
    images = np.stack([np.zeros((8, 8, 3)), np.full((8, 8, 3), 255), np.full((8, 8, 3), 77)]).astype(np.uint8)
    for increasing in (False, True):
        result = run_op(images, op, op_argument(op, magnitude, sign=1.0, increasing=increasing))
        assert np.isfinite(result).all()
        assert result.min() >= 0.0
        assert result.max() <= 255.0


@pytest.mark.parametrize("op", [Op.Solarize, Op.Posterize, Op.SolarizeAdd])
def test_every_level_counts(op: Op) -> None:
    """A threshold or step off by one level would show in a ramp of all 256."""
    ramp = np.broadcast_to(np.arange(256, dtype=np.uint8)[None, None, :, None], (1, 2, 256, 3)).copy()
    for argument in {
        Op.Solarize: (0, 1, 128, 255, 256),
        Op.Posterize: (1, 4, 8),
        Op.SolarizeAdd: (0, 55, 255),
    }[op]:
        expected = np.asarray(pil_op(Image.fromarray(ramp[0]), op, argument))
        np.testing.assert_allclose(run_op(ramp, op, argument)[0], expected, atol=0.01)


def test_sharpness_leaves_tiny_images_alone() -> None:
    images = photos(1, 2, 9)
    np.testing.assert_allclose(run_op(images, Op.Sharpness, 1.9), images, atol=0.01)


@pytest.mark.parametrize("op", [Op.Rotate, Op.ShearX, Op.ShearY, Op.TranslateXRel, Op.TranslateYRel])
def test_no_movement_is_the_image(op: Op) -> None:
    images = photos(2, 7, 11)
    np.testing.assert_array_equal(run_op(images, op, 0.0), images)


@settings(deadline=None, max_examples=100)
@given(offset_px=st.floats(-14, 14), dim=st.sampled_from([2, 3]))
def test_translation_is_sampling(offset_px: float, dim: int) -> None:
    """Shifts past the image, by halves and by whole pixels, against a gather of every pixel."""
    images = torch.from_numpy(photos(2, 9, 12)).permute(0, 3, 1, 2).contiguous()
    size = images.shape[dim]
    place = np.arange(size) + offset_px
    inside = (place >= -0.5) & (place < size - 0.5)
    low = np.floor(place).astype(int)
    share = torch.tensor(place - low).view(-1, 1) if dim == 2 else torch.tensor(place - low)
    first, second = (
        images.index_select(dim, torch.tensor(np.clip(low + step, 0, size - 1))).double() for step in (0, 1)
    )
    expected = first + (second - first) * share
    expected.index_fill_(dim, torch.tensor(np.flatnonzero(~inside)), image_ops.FILL)
    difference = (image_ops.translate(images, offset_px, dim).double() - expected).abs().max()
    assert difference <= 0.501


@pytest.mark.parametrize(
    ("op", "expected"),
    [
        (Op.Rotate, 45.0),
        (Op.Posterize, 6.0),
        (Op.Solarize, 256.0),
        (Op.SolarizeAdd, 165.0),
        (Op.Color, 2.8),
        (Op.ShearX, 0.45),
        (Op.TranslateYRel, 0.675),
    ],
)
def test_magnitude_15_extrapolates(op: Op, expected: float) -> None:
    """The paper's magnitude; timm clips to 10 unless told otherwise."""
    assert math.isclose(op_argument(op, 15.0, sign=1.0, increasing=False), expected)


@pytest.mark.parametrize("op", list(Op))
def test_bits_do_not_depend_on_the_batch_or_the_threads(op: Op) -> None:
    """Kornia's contrast fails this: at 2 threads a large image alone is summed in two halves."""
    images = torch.from_numpy(photos(8, 200, 190)).permute(0, 3, 1, 2).contiguous()
    argument = op_argument(op, 9.0, sign=1.0, increasing=False)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        whole = rand_augment_(images.clone(), same_op(8, op, argument))
        torch.set_num_threads(2)
        assert torch.equal(rand_augment_(images.clone(), same_op(8, op, argument)), whole)
        for row in range(8):
            alone = rand_augment_(images[row : row + 1].clone(), same_op(1, op, argument))
            assert torch.equal(alone[0], whole[row])
    finally:
        torch.set_num_threads(before)
