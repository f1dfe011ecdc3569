"""From a decoded batch to what the model sees: flips, colours, RandAugment, erasing, Mixup and CutMix.

All randomness is drawn on the CPU, keyed by (seed, epoch, position), and moved in a few small copies:
a sample gets the same pixels at any world size and after any resume, on the CPU to the bit, and nothing
waits for the device. Colours and geometry work on bytes, with PIL's rounding; from the normalisation on
pixels are float32 until the very end, also under autocast.

Shape letters: B batch, C channels (RGB), H height, W width, K classes, D draws, L lanes.
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum, unique

import numpy as np
import torch
from kornia.geometry.transform import hflip
from numpy.typing import NDArray
from torch import Tensor

from data import image_ops
from data.boxes import ERASING_DRAWS, box_masks, draw_erasing_boxes
from data.errors import InputError
from data.mixup import MIX_DRAWS, MixDraw, draw_mix, mix
from data.normalize import denormalize, normalize, normalize_planes, to_planes
from data.rand_augment import (
    DRAWS_PER_OP,
    NOT_APPLIED,
    RandAugmentDraw,
    describe_op,
    draw_rand_augment,
    rand_augment_,
)
from data.randomness import uniforms
from data.transfer import to_device
from data.types import Batch

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
_NUM_CHANNELS = 3
_NUM_JITTERS = 3

__all__ = ["Augment", "AugmentConfig", "AugmentedBatch", "denormalize", "normalize"]


@unique
class AugmentStream(IntEnum):
    """What a number is drawn for, beside `data.randomness.Stream` (below 16). Never reuse or change."""

    FLIP = 16
    COLOR_JITTER = 17
    RAND_AUGMENT = 18
    RANDOM_ERASING = 19
    MIX = 20


_Draw = Callable[[AugmentStream, int], NDArray[np.float64]]
"""(stream, count) -> uniform numbers for the batch at hand, one row a sample or, for MIX, a lane."""


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """Which augmentations a training batch goes through; 0 turns one off."""

    flip_probability: float = 0.5
    """Horizontal flip."""
    color_jitter: float = 0.0
    """Brightness, contrast and saturation factors, in this order, uniform in [1 - x, 1 + x]."""
    randaugment_num_ops: int = 0
    randaugment_magnitude: float = 0.0
    """On a scale where 10 is timm's strongest; above it extrapolates (the CoAtNet paper: 15)."""
    randaugment_probability: float = 1.0
    """The chance that a drawn operation is applied: 1 in TensorFlow and the paper, 0.5 in timm."""
    randaugment_increasing: bool = False
    """timm's `inc`: every operation grows stronger with the magnitude, and 0 changes nothing it scales."""
    random_erasing_probability: float = 0.0
    """An erased box takes the mean colour."""
    mixup_alpha: float = 0.0
    cutmix_alpha: float = 0.0
    """With both alphas above 0 each lane of each batch takes one of the two, half and half."""

    def __post_init__(self) -> None:
        _check_range(self, "flip_probability", 0.0, 1.0)
        _check_range(self, "color_jitter", 0.0, 1.0)
        _check_range(self, "randaugment_num_ops", 0, 16)
        _check_range(self, "randaugment_magnitude", 0.0, 30.0)
        _check_range(self, "randaugment_probability", 0.0, 1.0)
        _check_range(self, "random_erasing_probability", 0.0, 1.0)
        _check_range(self, "mixup_alpha", 0.0, 100.0)
        _check_range(self, "cutmix_alpha", 0.0, 100.0)

    @property
    def mixes(self) -> bool:
        """Whether a sample needs partners in its lane."""
        return self.mixup_alpha > 0.0 or self.cutmix_alpha > 0.0


def _check_range(config: AugmentConfig, field: str, low: float, high: float) -> None:
    value = getattr(config, field)
    if not low <= value <= high:  # also catches NaN
        raise InputError(f"augment.{field} is {value}; allowed is {low} to {high}; change it in the config")


@dataclass(frozen=True, slots=True, kw_only=True)
class AugmentedBatch:
    """One rank's part of a global batch, on the device, ready for the model."""

    images_BCHW: Tensor
    """float32 or the dtype asked for, normalised, channels_last."""
    targets_BK: Tensor
    """float32 class probabilities, before label smoothing; a padded row has class 0."""
    weights_B: Tensor
    """float32, as in the batch."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Draws:
    """Everything random about one batch, on the CPU."""

    flips_B: NDArray[np.bool_]
    jitters_BD: NDArray[np.float64] | None
    rand_augment: RandAugmentDraw | None
    erased_B4: NDArray[np.int64] | None
    mix: MixDraw | None


class Augment:
    """Augments the batches of one training stage. Holds no state: equal inputs give equal pixels."""

    def __init__(
        self,
        config: AugmentConfig,
        *,
        num_classes: int,
        seed: int,
        mean: tuple[float, ...] = IMAGENET_MEAN,
        std: tuple[float, ...] = IMAGENET_STD,
    ) -> None:
        """`mean` and `std` are what the model expects of inputs in [0, 1]."""
        self.config = config
        self._mean = mean
        self._std = std
        self._num_classes = num_classes
        self._seed = seed

    @torch.no_grad()
    def __call__(
        self, batch: Batch, *, lane_size: int, device: torch.device, dtype: torch.dtype = torch.float32
    ) -> AugmentedBatch:
        """Return the augmented batch on `device`, images in `dtype`.

        `batch` may be on the device already, but `positions_B` on the CPU saves a wait. Mixup partners
        stay within runs of `lane_size` samples. Raises InputError if the batch is not whole lanes, or
        if lanes of one sample should be mixed.
        """
        _check_batch(batch, lane_size, self.config.mixes)
        draws = self._draw(batch, lane_size)
        weights_B = batch.weights_B.to(device, non_blocking=True)
        # A row of weight 0 may hold any label; it must not reach the one-hot scatter.
        labels_B = batch.labels_B.to(device, non_blocking=True).masked_fill(weights_B <= 0, 0)
        targets_BK = torch.zeros(len(labels_B), self._num_classes, device=device)
        targets_BK.scatter_(1, labels_B.unsqueeze(1), 1.0)
        with torch.autocast(device.type, enabled=False):
            planes = self._augment_bytes(batch.images_BHWC.to(device, non_blocking=True), draws)
            images = self._to_floats(planes, draws, dtype)
            if draws.mix is not None:
                images, targets_BK = mix(images, targets_BK, weights_B, draws.mix)
        images = images.to(dtype=dtype, memory_format=torch.channels_last)
        return AugmentedBatch(images_BCHW=images, targets_BK=targets_BK, weights_B=weights_B)

    def describe(self, batch: Batch, *, lane_size: int) -> list[str]:
        """Return one caption a sample: what `__call__` does to it, in order; #n is row n of the batch."""
        _check_batch(batch, lane_size, self.config.mixes)
        draws = self._draw(batch, lane_size)
        weights = batch.weights_B.tolist()
        return [", ".join(_caption(draws, weights, row)) or "unchanged" for row in range(len(weights))]

    def _draw(self, batch: Batch, lane_size: int) -> _Draws:
        config = self.config
        size = (int(batch.images_BHWC.shape[1]), int(batch.images_BHWC.shape[2]))
        positions_B = batch.positions_B.cpu().numpy()

        def draw(stream: AugmentStream, count: int) -> NDArray[np.float64]:
            # A lane's mixing is keyed by its first sample.
            keys = positions_B[::lane_size] if stream is AugmentStream.MIX else positions_B
            return uniforms(self._seed, batch.epoch, keys, stream, count)

        return _Draws(
            flips_B=draw(AugmentStream.FLIP, 1)[:, 0] < config.flip_probability,
            jitters_BD=_draw_jitters(config, draw) if config.color_jitter > 0.0 else None,
            rand_augment=_draw_ops(config, draw) if config.randaugment_num_ops > 0 else None,
            erased_B4=_draw_erased(config, draw, size) if config.random_erasing_probability > 0.0 else None,
            mix=_draw_mix(config, draw, lane_size, size) if config.mixes else None,
        )

    def _augment_bytes(self, images_BHWC: Tensor, draws: _Draws) -> Tensor:
        """Flip, jitter and RandAugment; uint8 BHWC to uint8 BCHW, contiguous."""
        images = _flip(to_planes(images_BHWC), draws.flips_B)
        if draws.jitters_BD is not None:
            images = _jitter(images, draws.jitters_BD)
        return images if draws.rand_augment is None else rand_augment_(images, draws.rand_augment)

    def _to_floats(self, images_BCHW: Tensor, draws: _Draws, dtype: torch.dtype) -> Tensor:
        """Normalise and erase. What still has boxes to come stays contiguous and float32: a mask over
        channels_last is several times slower."""
        if draws.erased_B4 is None and draws.mix is None:
            return normalize_planes(images_BCHW, self._mean, self._std, dtype, torch.channels_last)
        images = normalize_planes(images_BCHW, self._mean, self._std, torch.float32, torch.contiguous_format)
        if draws.erased_B4 is not None:
            boxes_B4 = to_device(draws.erased_B4, images.device)
            images.masked_fill_(box_masks(boxes_B4, images.shape[2], images.shape[3]), 0.0)
        return images


def _jitter(images_BCHW: Tensor, jitters_BD: NDArray[np.float64]) -> Tensor:
    """Change brightness, contrast and saturation, in this order."""
    factors_BD = to_device(jitters_BD.astype(np.float32), images_BCHW.device)
    factors_BD111 = factors_BD.view(-1, _NUM_JITTERS, 1, 1, 1)
    images = image_ops.brightness(images_BCHW, factors_BD111[:, 0])
    images = image_ops.contrast(images, factors_BD111[:, 1])
    return image_ops.color(images, factors_BD111[:, 2])


def _draw_jitters(config: AugmentConfig, draw: _Draw) -> NDArray[np.float64]:
    return 1.0 + (draw(AugmentStream.COLOR_JITTER, _NUM_JITTERS) * 2.0 - 1.0) * config.color_jitter


def _draw_ops(config: AugmentConfig, draw: _Draw) -> RandAugmentDraw:
    return draw_rand_augment(
        draw(AugmentStream.RAND_AUGMENT, config.randaugment_num_ops * DRAWS_PER_OP),
        magnitude=config.randaugment_magnitude,
        probability=config.randaugment_probability,
        increasing=config.randaugment_increasing,
    )


def _draw_erased(config: AugmentConfig, draw: _Draw, size: tuple[int, int]) -> NDArray[np.int64]:
    uniforms_BD = draw(AugmentStream.RANDOM_ERASING, ERASING_DRAWS)
    probability = config.random_erasing_probability
    return draw_erasing_boxes(uniforms_BD, probability=probability, height=size[0], width=size[1])


def _draw_mix(config: AugmentConfig, draw: _Draw, lane_size: int, size: tuple[int, int]) -> MixDraw:
    return draw_mix(
        draw(AugmentStream.MIX, MIX_DRAWS),
        lane_size=lane_size,
        mixup_alpha=config.mixup_alpha,
        cutmix_alpha=config.cutmix_alpha,
        height=size[0],
        width=size[1],
    )


def _check_batch(batch: Batch, lane_size: int, mixes: bool) -> None:
    shape = tuple(batch.images_BHWC.shape)
    if batch.images_BHWC.dtype != torch.uint8 or len(shape) != 4 or shape[3] != _NUM_CHANNELS:
        raise InputError(
            f"a batch's images are {batch.images_BHWC.dtype} {shape}; needed is uint8 [B, H, W, 3]"
        )
    if lane_size < 1 or shape[0] % lane_size != 0:
        raise InputError(f"lane_size is {lane_size}; the batch of {shape[0]} images must be whole lanes")
    if mixes and lane_size < 2:
        raise InputError(
            "lane_size is 1, but Mixup and CutMix need a partner in the lane; "
            "use fewer lanes, a larger global batch, or alphas of 0"
        )


def _flip(images_BCHW: Tensor, flips_B: NDArray[np.bool_]) -> Tensor:
    """Mirror the chosen rows left to right, in place, as bytes: four times less to move than floats."""
    if not flips_B.any():
        return images_BCHW
    rows = to_device(np.flatnonzero(flips_B), images_BCHW.device)
    return images_BCHW.index_copy_(0, rows, hflip(images_BCHW.index_select(0, rows)))


def _caption(draws: _Draws, weights: list[float], row: int) -> list[str]:
    parts = ["flip"] if draws.flips_B[row] else []
    if draws.jitters_BD is not None:
        parts.append("jitter " + " ".join(f"{factor:.2f}" for factor in draws.jitters_BD[row]))
    if draws.rand_augment is not None:
        ops, arguments = draws.rand_augment.ops_BN[row], draws.rand_augment.arguments_BN[row]
        parts += [
            describe_op(int(o), float(a)) for o, a in zip(ops, arguments, strict=True) if o != NOT_APPLIED
        ]
    if draws.erased_B4 is not None and draws.erased_B4[row].any():
        parts.append("erased")
    if draws.mix is not None:
        partner = int(draws.mix.partners_B[row])
        if weights[row] > 0 and weights[partner] > 0:
            name = "CutMix" if draws.mix.is_cutmix_B[row] else "Mixup"
            share = draws.mix.lambdas_B[row]
            parts.append(f"{name} {share:.0%} + {1.0 - share:.0%} of #{partner}")
    return parts
