"""Write a snapshot's card beside it, and log it to MLflow where there is one."""

import os
from dataclasses import asdict, dataclass, replace

import numpy as np
import PIL
import pyarrow as pa
import simplejpeg

from data.adopt import AdoptOptions
from data.card import Provenance, card_path, write_card
from data.shard_write import SHARD_FORMAT_VERSION
from data.sharding_config import ShardingConfig
from data.snapshot import SNAPSHOT_FORMAT, Snapshot, load_snapshot
from data.store import ImageSource, Store
from infra.tracking import RunRef, Tracker, check_tracking, find_or_create_run
from pipelines.fingerprint import plain
from pipelines.job import code_version

_ARTIFACT = "dataset_card.html"
_EXPERIMENT = "coatnet-datasets"


@dataclass(frozen=True, kw_only=True)
class CardSource:
    """Where a snapshot's images come from."""

    uri: str
    """Of the corpus."""
    images: ImageSource
    """Where its images are read."""
    config: ShardingConfig | AdoptOptions


def publish_card(dataset: Store, snapshot: Snapshot, source: CardSource, run: RunRef | None) -> None:
    """Write the card beside the snapshot, and to a run if one is given, which stays open."""
    versions = {
        "version of the code": code_version(),
        "version of the snapshot format": SNAPSHOT_FORMAT,
        "version of the shard format": str(SHARD_FORMAT_VERSION),
        "version of Pillow": PIL.__version__,
        "version of simplejpeg": simplejpeg.__version__,
        "version of pyarrow": pa.__version__,
        "version of numpy": np.__version__,
    }
    provenance = Provenance(corpus=source.uri, config=plain(asdict(source.config)), versions=versions)
    text = write_card(dataset, snapshot, provenance, corpus=source.images, limits=source.config.limits)
    if run is not None:
        tracker = Tracker(run)
        tracker.log_text(_ARTIFACT, text)
        tracker.close()


def check_card_tracking() -> str | None:
    """Return the MLflow server that MLFLOW_TRACKING_URI names, or None; InputError if it does not answer."""
    uri = os.environ.get("MLFLOW_TRACKING_URI")
    if uri:
        check_tracking(uri)
    return uri or None


def publish_card_in_own_run(
    tracking_uri: str | None, dataset: Store, snapshot: Snapshot, source: CardSource
) -> None:
    """Write the card; with an MLflow server also a run of the snapshot's own, with its config and counts."""
    if tracking_uri is None:
        publish_card(dataset, snapshot, source, None)
        return
    run = find_or_create_run(
        tracking_uri=tracking_uri,
        experiment=_EXPERIMENT,
        identity={"coatnet.snapshot": snapshot.id},
        name=f"snapshot {snapshot.id}",
        tags={"coatnet.dataset": dataset.uri, "code.version": code_version()},
    )
    publish_card(dataset, snapshot, source, run)
    tracker = Tracker(run)
    tracker.log_params(plain(asdict(source.config)))
    tracker.log_dataset(snapshot_id=snapshot.id, name=dataset.uri, uri=dataset.uri, context="sharding")
    for name in ("samples", "rejects", "near_duplicates"):
        tracker.log_metrics(
            0, {f"{name}/{key}": value for key, value in snapshot.stats.get(name, {}).items()}
        )
    tracker.finish()


def publish_missing_card(tracking_uri: str | None, dataset: Store, source: CardSource) -> None:
    """Write HEAD's card where there is none: whoever committed it was stopped before that."""
    head = load_snapshot(dataset, "HEAD")
    if not dataset.exists(card_path(head)):
        told_later = replace(source, uri=f"{source.uri} (so says a later command)")
        publish_card_in_own_run(tracking_uri, dataset, head, told_later)
