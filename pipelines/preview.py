"""What the model will see: original and augmented images side by side, with the drawn operations.

    python pipelines/preview.py --dataset s3://bucket/birds --config pipelines/configs/images.yaml

Writes a picture. The samples are the first ones of an epoch in training's own order, decoded, augmented
and drawn as training does; the trainer logs the same picture to MLflow at the start of each stage.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from data.augment import Augment
from data.errors import InputError
from data.loader import TrainLoader
from data.snapshot import load_snapshot
from infra.store import check_store, open_store
from pipelines.augmented_sheet import augmented_sheet
from pipelines.config import MainJobKeys, PhaseConfig, Recipe, Runtime
from pipelines.job import announce, run_main
from pipelines.mixture import check_stores, open_mixture
from pipelines.parse_config import parse_config


@dataclass(frozen=True, kw_only=True)
class PreviewConfig(MainJobKeys):
    """What to show, and where to write it."""

    dataset: str = ""
    """Where the snapshots are: s3://bucket/path, file:///path or a path."""
    snapshot: str = "HEAD"
    """A snapshot's id, or HEAD for the newest."""
    phase: Literal["pretrain", "finetune"] = "finetune"
    """Whose decoding and augmentation to show."""
    epoch: int = 0
    """Another epoch has other samples and draws."""
    num_images: int = 16
    """At most one global batch."""
    out: str = "build/preview.png"
    """The picture's file."""
    recipe: Recipe = field(default_factory=Recipe)
    runtime: Runtime = field(default_factory=Runtime)
    """The main job's; only `max_bad_samples` is used."""

    def __post_init__(self) -> None:
        if not self.dataset:
            raise InputError("dataset is empty: give --dataset; pipelines/shard.py create makes one")
        if self.num_images < 1:
            raise InputError(f"num_images is {self.num_images}; it must be at least 1")
        if self.epoch < 0:
            raise InputError(f"epoch is {self.epoch}; it must not be negative")


def main(argv: Sequence[str]) -> int:
    """Write the picture."""
    config = parse_config(PreviewConfig, argv, "Show original and augmented training images.")
    out = Path(config.out)
    picture = preview(config)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_bytes(picture)
    except OSError as error:
        raise InputError(f"{out} cannot be written ({error.strerror}): give --out another file") from None
    announce(f"written: {out}")
    return 0


def preview(config: PreviewConfig) -> bytes:
    """Return the contact sheet, a PNG file."""
    dataset = open_store(config.dataset)
    check_store(dataset, writable=False)
    snapshot = load_snapshot(dataset, config.snapshot)
    phase: PhaseConfig = getattr(config.recipe, config.phase)
    check_stores(phase.mixture)
    order = phase.order(config.recipe.seed)
    loader = TrainLoader(
        store=dataset,
        snapshot=snapshot,
        split="train",
        order=order,
        decode=phase.decode,
        rank=0,
        world_size=1,
        cache=None,
        mixture=open_mixture(phase.mixture),
        missing_shards=phase.missing_shards,
        max_bad_samples=config.runtime.max_bad_samples,
    )
    model = config.recipe.model_config(len(snapshot.classes))
    augment = Augment(
        phase.augment,
        num_classes=len(snapshot.classes),
        seed=config.recipe.seed,
        mean=model.mean,
        std=model.std,
    )
    return augmented_sheet(
        loader,
        augment,
        model,
        lane_size=order.lane_size,
        num_images=config.num_images,
        epoch=config.epoch,
    )


if __name__ == "__main__":
    run_main(main)
