"""Find what would fail before anything is written. Every finding is an `InputError` in one line."""

import os
import shutil
from pathlib import Path

from data.corpus_listing import CorpusListing
from data.errors import InputError
from data.split import SPLITS
from data.store import Store
from infra.store import check_store, open_store
from infra.tracking import check_tracking
from pipelines.config import Runtime

_MIN_FREE_BYTES = 1024**3


def check_services(runtime: Runtime, corpus: Store) -> str:
    """Check the store, the corpus, MLflow and the disk; return MLflow's URI."""
    check_store(corpus, writable=False)
    check_store(open_store(runtime.root))
    tracking_uri = os.environ.get("MLFLOW_TRACKING_URI", "")
    if not tracking_uri:
        raise InputError(
            "MLFLOW_TRACKING_URI is not set: start the local stack (make demo) and source its "
            "credentials.env, or name your MLflow server"
        )
    check_tracking(tracking_uri)
    _check_disk(Path(runtime.cache_dir))
    return tracking_uri


def check_images(name: str, listing: CorpusListing, global_batch_size: int) -> None:
    """Check that the images listed for a phase are enough to train and to evaluate on."""
    if len(listing.classes) < 2:
        raise InputError(
            f"{name} has the classes {list(listing.classes)}; a classifier needs at least two classes"
        )
    num_labels = sum(listing.counts[split, label] for split in SPLITS for label in listing.classes)
    if num_labels > sum(listing.totals[split].num_images for split in SPLITS):
        raise InputError(
            f"{name} has images with several labels, and training takes one an image: leave one each (a "
            "dataset of several can be made with shard.py), or set corpus_options.label_separator"
        )
    for label in listing.classes:
        if not listing.counts["train", label]:
            raise InputError(
                f"class {label!r} of {name} has no image for training ({listing.counts['eval', label]} for "
                "evaluation): add images or leave the class out"
            )
    num_train = listing.totals["train"].num_images
    if not listing.totals["eval"].num_images:
        raise InputError(
            f"{name} has no image for evaluation: add a test/, val/ or eval/ folder, or more images, or "
            "raise recipe.shard.eval_fraction"
        )
    if num_train < global_batch_size:
        raise InputError(
            f"{name} has {num_train} images for training, recipe.{name}.global_batch_size is "
            f"{global_batch_size}: lower it or add images"
        )


def _check_disk(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"runtime.cache_dir {folder} cannot be made ({error.strerror}): name another folder"
        ) from None
    free = shutil.disk_usage(folder).free
    if free < _MIN_FREE_BYTES:
        raise InputError(
            f"runtime.cache_dir {folder} has {free / 1e6:.0f} MB free, at least "
            f"{_MIN_FREE_BYTES / 1e6:.0f} MB are needed: free some or name another folder"
        )
