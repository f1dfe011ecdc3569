"""Our device-side augmentation against kornia's and torchvision's, per sample, on real photographs.

kornia's RandAugment draws one set of operations a call, so a draw per sample means a call per sample;
its draw per batch is a row too, though it is not the same augmentation. torchvision's v2 draws once a call
as well; it runs on uint8 tensors and on PIL images, each per sample. All sides start from uint8
[B, H, W, C] and end with normalised float32 [B, C, H, W], on one thread: per core. What can be compared
is asserted first.
"""

import io
import itertools
from collections.abc import Callable
from dataclasses import dataclass, replace

import kornia
import numpy as np
import torch
import torchvision
from kornia.augmentation import Normalize, RandomCrop, RandomHorizontalFlip, RandomMixUpV2
from kornia.augmentation.auto import RandAugment
from kornia.geometry.transform import rotate
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2

from data.augment import IMAGENET_MEAN, IMAGENET_STD, Augment, AugmentConfig
from data.crop import DecodeConfig, draw_crops
from data.decode import decode_train
from data.normalize import to_planes
from data.rand_augment import Op, RandAugmentDraw, rand_augment_
from data.types import Batch
from tests.benchmarks.photos import png_files
from tests.benchmarks.session import Session

_BATCH_SIZE = 64
_SIZES_PX = (32, 224)
_NUM_OPS = 2
# The middle of each scale: ours goes to 10, theirs to 30. No operation's cost depends on it.
_MAGNITUDE, _PEER_MAGNITUDE = 5.0, 15
_PAD_PX = 4
_CPU = torch.device("cpu")
_REPEATS = 7


@dataclass(frozen=True, kw_only=True)
class Peer:
    """kornia's modules at their quickest setting: without the transformation matrices."""

    rand_augment: RandAugment
    flip: RandomHorizontalFlip
    normalize: Normalize
    mixup: RandomMixUpV2

    @classmethod
    def make(cls) -> "Peer":
        return cls(
            rand_augment=RandAugment(n=_NUM_OPS, m=_PEER_MAGNITUDE, transformation_matrix_mode="skip"),
            flip=RandomHorizontalFlip(p=0.5),
            normalize=Normalize(mean=torch.tensor(IMAGENET_MEAN), std=torch.tensor(IMAGENET_STD)),
            mixup=RandomMixUpV2(data_keys=["input", "class"]),
        )


def main() -> None:
    session = Session.from_arguments(
        "bench_augment", ("torch", "torchvision", "kornia", "pillow", "numpy"), num_threads=1
    )
    torch.set_num_threads(session.num_threads)
    torch.manual_seed(0)
    files = [path.read_bytes() for path in png_files(_BATCH_SIZE)]
    for size_px in _SIZES_PX:
        batch = make_batch(files, size_px)
        session.note(f"checks at {size_px} px", check_same(batch))
        _compare_size(session, batch, size_px)
        _compare_torchvision(session, batch, size_px)
    check_same_crop(files)
    session.compare(
        f"PNG decode + pad-{_PAD_PX} random crop, 32 px",
        _numbered(lambda number: crop_ours(files, number)),
        lambda: crop_peer(files),
        num_items=len(files),
        unit="images/s",
        peer_version=_peer_version(),
        repeats=_REPEATS,
    )
    session.write()


def _peer_version() -> str:
    return f"kornia {kornia.__version__}"


def _compare_size(session: Session, batch: Batch, size_px: int) -> None:
    peer = Peer.make()
    plain = AugmentConfig(
        flip_probability=0.0, randaugment_num_ops=_NUM_OPS, randaugment_magnitude=_MAGNITUDE
    )
    rows: list[tuple[str, AugmentConfig, Callable[[], object]]] = [
        (
            "RandAugment, a draw per sample",
            plain,
            lambda: peer_recipe(peer, batch, per_sample=True),
        ),
        (
            "RandAugment, kornia a draw per batch",
            plain,
            lambda: peer_recipe(peer, batch, per_sample=False),
        ),
        (
            "flip + RandAugment + Mixup, a draw per sample",
            replace(plain, flip_probability=0.5, mixup_alpha=0.8),
            lambda: peer_recipe(peer, batch, per_sample=True, flip=True, mixup=True),
        ),
        (
            "Mixup alone",
            AugmentConfig(flip_probability=0.0, mixup_alpha=0.8),
            lambda: peer_recipe(peer, batch, ops=False, mixup=True),
        ),
    ]
    for name, config, peer_call in rows:
        session.compare(
            f"{name}, {size_px} px, batch {_BATCH_SIZE}",
            ours_call(config, batch),
            peer_call,
            num_items=_BATCH_SIZE,
            unit="images/s",
            peer_version=_peer_version(),
            repeats=_REPEATS,
        )


def _compare_torchvision(session: Session, batch: Batch, size_px: int) -> None:
    """torchvision has no SolarizeAdd and no Invert, and draws Identity instead: it does a little less."""
    ops = v2.RandAugment(_NUM_OPS, _PEER_MAGNITUDE, interpolation=v2.InterpolationMode.BILINEAR, fill=128)
    config = AugmentConfig(
        flip_probability=0.0, randaugment_num_ops=_NUM_OPS, randaugment_magnitude=_MAGNITUDE
    )
    images_CHW = list(batch.images_BHWC.permute(0, 3, 1, 2).contiguous())
    pictures = [Image.fromarray(image) for image in batch.images_BHWC.numpy()]
    peers: dict[str, Callable[[], object]] = {
        "tensors": lambda: _torchvision_input(torch.stack([ops(image) for image in images_CHW])),
        "PIL images": lambda: _torchvision_input(
            torch.stack([v2.functional.pil_to_tensor(ops(picture)) for picture in pictures])
        ),
    }
    for kind, peer_call in peers.items():
        session.compare(
            f"RandAugment, a draw per sample, torchvision on {kind}, {size_px} px, batch {_BATCH_SIZE}",
            ours_call(config, batch),
            peer_call,
            num_items=_BATCH_SIZE,
            unit="images/s",
            peer_version=f"torchvision {torchvision.__version__}",
            repeats=_REPEATS,
        )


@torch.no_grad()
def _torchvision_input(images_BCHW: Tensor) -> Tensor:
    """Normalise the whole batch at once, which is torchvision's quickest way."""
    images = v2.functional.to_dtype(images_BCHW, torch.float32, scale=True)
    return v2.functional.normalize_image(images, list(IMAGENET_MEAN), list(IMAGENET_STD), inplace=True)


def _numbered(call: Callable[[int], object]) -> Callable[[], object]:
    """Return a call that gets another number each time, so that ours draws anew."""
    numbers = itertools.count()
    return lambda: call(next(numbers))


def make_batch(files: list[bytes], size_px: int) -> Batch:
    """Decode the photographs, resized to `size_px`; every image is a class of its own."""
    images = [
        np.asarray(Image.open(io.BytesIO(content)).convert("RGB").resize((size_px, size_px)))
        for content in files
    ]
    return Batch(
        images_BHWC=torch.from_numpy(np.stack(images)),
        labels_B=torch.arange(len(files)),
        weights_B=torch.ones(len(files)),
        positions_B=torch.arange(len(files)),
        keys=tuple(str(number) for number in range(len(files))),
        epoch=0,
        step=0,
    )


def _augment(config: AugmentConfig) -> Augment:
    return Augment(config, num_classes=_BATCH_SIZE, seed=0)


def ours_call(config: AugmentConfig, batch: Batch) -> Callable[[], object]:
    augment = _augment(config)
    return _numbered(
        lambda epoch: augment(replace(batch, epoch=epoch), lane_size=len(batch.keys), device=_CPU)
    )


@torch.no_grad()
def peer_recipe(
    peer: Peer,
    batch: Batch,
    *,
    ops: bool = True,
    per_sample: bool = False,
    flip: bool = False,
    mixup: bool = False,
) -> Tensor:
    """Do with kornia what our `Augment` does; flips draw per sample within one call."""
    images = _to_float(batch.images_BHWC)
    if flip:
        images = peer.flip(images)
    if ops and per_sample:
        images = torch.cat([peer.rand_augment(image) for image in images.split(1)])
    elif ops:
        images = peer.rand_augment(images)
    images = peer.normalize(images)
    return peer.mixup(images, batch.labels_B)[0] if mixup else images


def _to_float(images_BHWC: Tensor) -> Tensor:
    return images_BHWC.permute(0, 3, 1, 2).contiguous().float().div_(255.0)


def check_same(batch: Batch) -> dict[str, float]:
    """Assert that what can be made to draw the same gives the same; return the differences."""
    peer = Peer.make()
    flipped = _augment(AugmentConfig(flip_probability=1.0))(batch, lane_size=1, device=_CPU).images_BCHW
    kornia_flipped = peer.normalize(RandomHorizontalFlip(p=1.0)(_to_float(batch.images_BHWC)))
    found = {"flip and normalise": float((flipped - kornia_flipped).abs().max())}
    found["Mixup"] = _mixup_difference(peer, batch)
    for name, difference in found.items():
        assert difference < 1e-4, f"{name} differs by {difference:.2g}"
    found["rotation by 12 degrees, away from the edges"] = _rotation_difference(batch)
    return {name: float(f"{difference:.2g}") for name, difference in found.items()}


def _mixup_difference(peer: Peer, batch: Batch) -> float:
    """Mix by kornia with the partners and shares that our soft targets name."""
    plain = _augment(AugmentConfig(flip_probability=0.0))(batch, lane_size=1, device=_CPU).images_BCHW
    config = AugmentConfig(flip_probability=0.0, mixup_alpha=0.8)
    mixed = _augment(config)(batch, lane_size=_BATCH_SIZE, device=_CPU)
    shares = mixed.targets_BK.clone()
    own = shares.diagonal().clone()
    shares.fill_diagonal_(0.0)
    params = {"mixup_pairs": shares.argmax(1), "mixup_lambdas": 1.0 - own}
    return float((mixed.images_BCHW - peer.mixup.apply_transform(plain, params)).abs().max())


def _rotation_difference(batch: Batch) -> float:
    images = _to_float(batch.images_BHWC)
    draw = RandAugmentDraw(
        ops_BN=np.full((len(images), 1), int(Op.Rotate)), arguments_BN=np.full((len(images), 1), 12.0)
    )
    margin = images.shape[2] // 4
    inside = (..., slice(margin, -margin), slice(margin, -margin))
    theirs = rotate(images, torch.full((len(images),), 12.0))
    ours = rand_augment_(to_planes(batch.images_BHWC), draw).float() / 255.0
    difference = float((ours - theirs)[inside].abs().max())
    assert difference < 0.51 / 255, f"rotation differs by {difference:.2g}"
    return difference


def crop_ours(files: list[bytes], epoch: int) -> Tensor:
    config = DecodeConfig(image_size_px=32, crop_mode="random_pad", pad_px=_PAD_PX)
    draws_BD = draw_crops(0, epoch, np.arange(len(files)))
    images_BHWC = np.empty((len(files), 32, 32, 3), dtype=np.uint8)
    for row, content in enumerate(files):
        decode_train(content, draws_BD[row], config, images_BHWC[row])
    return _to_float(torch.from_numpy(images_BHWC))


_KORNIA_CROP = RandomCrop((32, 32), padding=_PAD_PX, padding_mode="reflect")


def crop_peer(files: list[bytes]) -> Tensor:
    """Decode by Pillow; kornia then draws a crop per sample in one call."""
    images = [np.asarray(Image.open(io.BytesIO(content)).convert("RGB")) for content in files]
    with torch.no_grad():
        return _KORNIA_CROP(_to_float(torch.from_numpy(np.stack(images))))


def check_same_crop(files: list[bytes]) -> None:
    """Assert that each of kornia's crops is one that ours may draw."""
    config = DecodeConfig(image_size_px=32, crop_mode="random_pad", pad_px=_PAD_PX)
    num_places = 2 * _PAD_PX + 1
    out_HWC = np.empty((32, 32, 3), dtype=np.uint8)
    for content, crop in zip(files[:4], crop_peer(files)[:4], strict=True):
        theirs_HWC = (crop * 255.0).round().to(torch.uint8).permute(1, 2, 0).numpy()
        matches = 0
        for down, right in itertools.product(range(num_places), repeat=2):
            decode_train(content, [(down + 0.5) / num_places, (right + 0.5) / num_places], config, out_HWC)
            matches += int(np.array_equal(out_HWC, theirs_HWC))
        assert matches == 1, f"{matches} of our crops equal kornia's"


if __name__ == "__main__":
    main()
