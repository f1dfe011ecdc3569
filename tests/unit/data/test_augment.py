"""A sample's pixels depend on the sample, the seed, the epoch and its position, and on nothing else."""

import dataclasses
from collections.abc import Iterator

import pytest
import torch

from data.augment import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    Augment,
    AugmentConfig,
    AugmentedBatch,
    denormalize,
    normalize,
)
from data.errors import InputError
from data.types import Batch

CPU = torch.device("cpu")
SINGLE = AugmentConfig(
    color_jitter=0.4, randaugment_num_ops=2, randaugment_magnitude=9.0, random_erasing_probability=0.3
)
MIXED = dataclasses.replace(SINGLE, mixup_alpha=0.8, cutmix_alpha=1.0)


def make_batch(num: int, height: int, width: int, *, epoch: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(1)
    coarse = torch.rand(num, 3, 6, 6, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear")
    return Batch(
        images_BHWC=(smooth * 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous(),
        labels_B=torch.arange(num) % 10,
        weights_B=torch.ones(num),
        positions_B=torch.arange(num) * 37 + 5,
        keys=tuple(map(str, range(num))),
        epoch=epoch,
        step=0,
    )


def take(batch: Batch, rows: list[int]) -> Batch:
    return dataclasses.replace(
        batch,
        images_BHWC=batch.images_BHWC[rows],
        labels_B=batch.labels_B[rows],
        weights_B=batch.weights_B[rows],
        positions_B=batch.positions_B[rows],
        keys=tuple(batch.keys[row] for row in rows),
    )


def run(config: AugmentConfig, batch: Batch, *, lane_size: int = 4, seed: int = 0) -> AugmentedBatch:
    return Augment(config, num_classes=10, seed=seed)(batch, lane_size=lane_size, device=CPU)


@pytest.fixture(autouse=True)
def _restore_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(("num", "height", "width"), [(24, 32, 32), (24, 45, 29), (8, 200, 190)])
def test_pixels_do_not_depend_on_the_rest_of_the_batch(num: int, height: int, width: int) -> None:
    """Bit for bit, at 1 and 2 threads, alone, in pairs and in odd company.

    Guards against draws in batch order, rows mixed up by the grouping, and arithmetic whose order
    depends on the batch; `test_image_ops` looks at each operation alone.
    At 200 x 190 one image is larger than the block that threads share.
    """
    batch = make_batch(num, height, width)
    torch.set_num_threads(1)
    whole = run(SINGLE, batch).images_BCHW
    for num_threads in (1, 2):
        torch.set_num_threads(num_threads)
        assert torch.equal(run(SINGLE, batch).images_BCHW, whole)
        for rows in ([0], [num - 1], [7, 3], list(range(2, num - 3)), list(range(num - 1, -1, -1))):
            some = run(SINGLE, take(batch, rows), lane_size=1).images_BCHW
            assert torch.equal(some, whole[rows])


@pytest.mark.parametrize("num_threads", [1, 2])
def test_a_lane_does_not_depend_on_the_other_lanes(num_threads: int) -> None:
    """Another world size gives each rank other lanes: pixels and targets must stay."""
    batch = make_batch(24, 33, 31)
    whole = run(MIXED, batch)
    torch.set_num_threads(num_threads)
    for lane in range(6):
        rows = list(range(lane * 4, lane * 4 + 4))
        alone = run(MIXED, take(batch, rows))
        assert torch.equal(alone.images_BCHW, whole.images_BCHW[rows])
        assert torch.equal(alone.targets_BK, whole.targets_BK[rows])


def test_seed_epoch_and_position_matter() -> None:
    batch = make_batch(24, 16, 16)
    base = run(SINGLE, batch).images_BCHW
    moved = dataclasses.replace(batch, positions_B=batch.positions_B + 1)
    for other in (
        run(SINGLE, batch, seed=1),
        run(SINGLE, make_batch(24, 16, 16, epoch=1)),
        run(SINGLE, moved),
    ):
        differs = (other.images_BCHW != base).flatten(1).any(1)
        assert differs.float().mean() > 0.9
    assert torch.equal(run(SINGLE, batch).images_BCHW, base)


def test_off_is_the_evaluation_transform() -> None:
    batch = make_batch(8, 20, 24)
    config = AugmentConfig(flip_probability=0.0)
    result = run(config, batch)
    assert torch.equal(result.images_BCHW, normalize(batch.images_BHWC, IMAGENET_MEAN, IMAGENET_STD))
    assert torch.equal(result.targets_BK, torch.eye(10)[:8])


def test_flips_are_flips_and_fair() -> None:
    batch = make_batch(1000, 4, 6)
    config = AugmentConfig()
    pixels = denormalize(run(config, batch).images_BCHW, IMAGENET_MEAN, IMAGENET_STD)
    kept = (pixels == batch.images_BHWC).flatten(1).all(1)
    flipped = (pixels == batch.images_BHWC.flip(2)).flatten(1).all(1)
    assert (kept | flipped).all()
    assert 430 < int(flipped.sum()) < 570


def test_inputs_are_left_alone() -> None:
    batch = make_batch(8, 16, 16)
    images, labels = batch.images_BHWC.clone(), batch.labels_B.clone()
    run(MIXED, batch)
    assert torch.equal(batch.images_BHWC, images)
    assert torch.equal(batch.labels_B, labels)


def test_padding_pollutes_nothing() -> None:
    """A weight-0 row may hold any label and any pixels; the others come out as without partners there."""
    batch = make_batch(8, 16, 16)
    weights = torch.tensor([1.0, 1, 1, 0, 0, 0, 0, 0])
    labels = torch.where(weights > 0, batch.labels_B, -1)
    padded = dataclasses.replace(batch, weights_B=weights, labels_B=labels)
    other = dataclasses.replace(padded, images_BHWC=batch.images_BHWC.clone())
    other.images_BHWC[3:] = 255
    first, second = run(MIXED, padded), run(MIXED, other)
    assert torch.equal(first.images_BCHW[:3], second.images_BCHW[:3])
    assert torch.equal(first.targets_BK[:3], second.targets_BK[:3])
    assert torch.equal(first.weights_B, weights)


@pytest.mark.parametrize("autocast", [False, True])
def test_bf16_output_is_the_rounded_float32(autocast: bool) -> None:
    """Under autocast too: intermediate pixels in bf16 would lose levels."""
    batch = make_batch(12, 24, 24)
    full = run(MIXED, batch).images_BCHW
    augment = Augment(MIXED, num_classes=10, seed=0)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        half = augment(batch, lane_size=4, device=CPU, dtype=torch.bfloat16)
    assert half.images_BCHW.dtype == torch.bfloat16
    assert half.targets_BK.dtype == torch.float32
    assert torch.equal(half.images_BCHW, full.bfloat16())
    assert half.images_BCHW.is_contiguous(memory_format=torch.channels_last)


def test_captions_tell_what_was_done() -> None:
    batch = make_batch(16, 16, 16)
    weights = batch.weights_B.clone()
    weights[0] = 0
    captions = Augment(MIXED, num_classes=10, seed=0).describe(
        dataclasses.replace(batch, weights_B=weights), lane_size=4
    )
    assert len(captions) == 16
    assert all("jitter" in caption for caption in captions)
    assert "Mix" not in captions[0].replace("Mixup", "Mix")
    assert all("% of #" in caption for caption in captions[4:])
    plain = AugmentConfig(flip_probability=0.0)
    assert Augment(plain, num_classes=10, seed=0).describe(batch, lane_size=4) == ["unchanged"] * 16


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("flip_probability", 1.5),
        ("color_jitter", -0.1),
        ("randaugment_num_ops", -1),
        ("randaugment_magnitude", float("nan")),
        ("randaugment_probability", 2.0),
        ("random_erasing_probability", -1.0),
        ("mixup_alpha", -0.2),
        ("cutmix_alpha", float("inf")),
    ],
)
def test_bad_config_is_named(field: str, value: object) -> None:
    with pytest.raises(InputError, match=rf"augment\.{field} is .*allowed") as caught:
        AugmentConfig(**{field: value})  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


def test_bad_batches_are_refused() -> None:
    batch = make_batch(8, 8, 8)
    with pytest.raises(InputError, match="lane_size is 3"):
        run(SINGLE, batch, lane_size=3)
    with pytest.raises(InputError, match="need a partner"):
        run(MIXED, batch, lane_size=1)
    with pytest.raises(InputError, match="uint8"):
        run(SINGLE, dataclasses.replace(batch, images_BHWC=batch.images_BHWC.float()))
