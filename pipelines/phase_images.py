"""What a training phase learns from: a corpus that is sharded for it, or a dataset that exists."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from data.corpus_listing import CorpusListing
from data.errors import InputError
from data.list_corpus import list_for_build
from data.retirement import check_live
from data.snapshot import Snapshot, load_snapshot
from data.split import SPLITS
from infra.store import check_store, open_store
from pipelines.config import PhaseConfig, Recipe
from pipelines.corpus import Corpus
from pipelines.dataset_ref import DatasetRef
from pipelines.job import announce
from pipelines.mixture import check_mixture
from pipelines.session import Session
from pipelines.stage import Stage
from pipelines.stages import pinned_stage


@dataclass(frozen=True, kw_only=True)
class PhaseImages:
    """A phase's images, before they are sharded if they must be."""

    classes: tuple[str, ...]
    num_images: Mapping[str, int]
    """By split."""
    counts: Mapping[tuple[str, str], int]
    """By split and class; an image of several counts in each."""
    source: CorpusListing | DatasetRef

    @staticmethod
    def of_listing(listing: CorpusListing) -> "PhaseImages":
        """Return what a build would take."""
        return PhaseImages(
            classes=listing.classes,
            num_images={split: listing.totals[split].num_images for split in SPLITS},
            counts=listing.counts,
            source=listing,
        )

    @staticmethod
    def of_snapshot(snapshot: Snapshot, uri: str) -> "PhaseImages":
        """Return what a snapshot of the dataset at `uri` has."""
        splits = [split for split in SPLITS if split in snapshot.splits]
        return PhaseImages(
            classes=snapshot.classes,
            num_images={split: snapshot.stats["samples"].get(split, 0) for split in SPLITS},
            counts={(split, label): n for split in splits for label, n in snapshot.stats[split].items()},
            source=DatasetRef.of(snapshot, uri),
        )

    def stage(self, session: Session, corpus: Corpus | None, phase: PhaseConfig) -> Stage:
        """Describe the stage that gives the dataset."""
        if isinstance(self.source, DatasetRef):
            return pinned_stage(self.source)
        assert corpus is not None, "what was listed came from a corpus"
        return session.shard(corpus, self.source, session.recipe.sharding(phase))


def list_images(name: str, recipe: Recipe, phase: PhaseConfig, corpus: Corpus) -> PhaseImages:
    """List a phase's part of the corpus. Raises InputError where it does not do."""
    return _checked(
        name, phase, PhaseImages.of_listing(list_for_build(corpus.source, recipe.sharding(phase)))
    )


def pin_images(name: str, phase: PhaseConfig) -> PhaseImages:
    """Find the snapshot of a phase's dataset. Raises InputError where it is not there, or does not do."""
    for option in ("classes", "max_train_per_class"):
        if getattr(phase, option) is not None:
            raise InputError(
                f"recipe.{name}.{option} is {getattr(phase, option)} beside a dataset, which is taken whole: "
                "set it to null, or name a corpus instead"
            )
    if "://" not in phase.dataset and not Path(phase.dataset).expanduser().is_absolute():
        raise InputError(
            f"recipe.{name}.dataset is {phase.dataset!r}: a submitted job and its workers would look for it "
            "in their own folders; give an absolute path, or a URI"
        )
    store = open_store(phase.dataset)
    check_store(store, writable=False)
    snapshot = load_snapshot(store, phase.snapshot)
    check_live(store, snapshot.id)
    if any(source.snapshot == snapshot.id for source in phase.mixture):
        raise InputError(
            f"recipe.{name}.mixture names snapshot {snapshot.id}, its own: leave it out there, as the "
            "phase's own images take what the weights leave of 1"
        )
    images = _checked(name, phase, PhaseImages.of_snapshot(snapshot, store.uri))
    announce(f"{name}: snapshot {snapshot.id} of {store.uri}")
    return images


def _checked(name: str, phase: PhaseConfig, images: PhaseImages) -> PhaseImages:
    check_images(name, images, phase.global_batch_size)
    check_mixture(name, phase.mixture, classes=images.classes, num_lanes=phase.num_lanes)
    return images


def check_images(name: str, images: PhaseImages, global_batch_size: int) -> None:
    """Check that the images are enough to train and to evaluate on."""
    is_pinned = isinstance(images.source, DatasetRef)
    if len(images.classes) < 2:
        raise InputError(
            f"{name} has the classes {list(images.classes)}; a classifier needs at least two classes"
        )
    num_labels = sum(images.counts.get((split, label), 0) for split in SPLITS for label in images.classes)
    if num_labels > sum(images.num_images.values()):
        how = "make a dataset of one each" if is_pinned else "or set corpus_options.label_separator"
        raise InputError(
            f"{name} has images with several labels, and training takes one an image: leave one each, {how}"
        )
    more = "append some with pipelines/shard.py" if is_pinned else "add images"
    for label in images.classes:
        num_train, num_eval = (images.counts.get((split, label), 0) for split in ("train", "eval"))
        if not num_train:
            raise InputError(
                f"class {label!r} of {name} has no image for training ({num_eval} for evaluation): {more}"
                f"{'' if is_pinned else ' or leave the class out'}"
            )
    if not images.num_images["eval"]:
        how = (
            more
            if is_pinned
            else ("add a test/, val/ or eval/ folder, or more images, or raise recipe.shard.eval_fraction")
        )
        raise InputError(f"{name} has no image for evaluation: {how}")
    if (num_train := images.num_images["train"]) < global_batch_size:
        raise InputError(
            f"{name} has {num_train} images for training, recipe.{name}.global_batch_size is "
            f"{global_batch_size}: lower it or {more}"
        )
