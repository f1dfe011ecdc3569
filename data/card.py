"""The dataset card: one static page that shows what a snapshot holds, written beside it."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from data.card_sample import sample_snapshot
from data.card_sections import (
    class_pictures,
    class_sizes,
    duplicates,
    head,
    image_sizes,
    left_out,
    parent_diff,
    provenance,
    shard_sizes,
)
from data.html_page import page
from data.image_check import ImageLimits, quiet_pillow
from data.quarantine import picture_quarantine
from data.snapshot import Snapshot, load_snapshot
from data.store import ImageSource, ObjectNotFoundError, Store


@dataclass(frozen=True, slots=True, kw_only=True)
class Provenance:
    """Where a snapshot's images come from; kept beside it, not in it: its id is of the content alone."""

    corpus: str
    config: Mapping[str, Any]
    """Plain values."""
    versions: Mapping[str, str]
    """Of the code and of the formats."""


def card_path(snapshot: Snapshot) -> str:
    """Return where a snapshot's card is, in the dataset."""
    return f"cards/{snapshot.id}.html"


def write_card(
    dataset: Store, snapshot: Snapshot, source: Provenance, *, corpus: ImageSource, limits: ImageLimits
) -> str:
    """Write where a snapshot comes from, pictures of its rejects and its card; return the page.

    What is there already stays. `corpus` is the store of the images that the snapshot brought.
    """
    try:
        return dataset.get(card_path(snapshot)).decode()
    except ObjectNotFoundError:
        content = {"corpus": source.corpus, "config": source.config, "versions": source.versions}
        # Where it is there already, only the card was lost.
        dataset.put_if_absent(
            _provenance_path(snapshot.id), json.dumps(content, indent=1, sort_keys=True).encode()
        )
        if snapshot.quarantine_path is not None:
            picture_quarantine(dataset, snapshot.quarantine_path, corpus=corpus, limits=limits)
        text = make_card(dataset, snapshot)
        dataset.put(card_path(snapshot), text.encode())
        return text


def make_card(dataset: Store, snapshot: Snapshot) -> str:
    """Return the card of a snapshot as HTML in one file.

    Time and memory are bounded whatever the dataset's size: numbers come from the snapshot, sizes from the
    indexes of a few dozen shards, pictures from a few hundred images. The same snapshot gives the same page.
    """
    sample = sample_snapshot(dataset, dict(snapshot.splits))
    parent = load_snapshot(dataset, snapshot.parent) if snapshot.parent else None
    with quiet_pillow():
        sections = [
            head(snapshot),
            class_pictures(dataset, snapshot, sample),
            class_sizes(snapshot),
            image_sizes(sample),
            left_out(dataset, snapshot),
            duplicates(dataset, snapshot),
            shard_sizes(snapshot),
            parent_diff(snapshot, parent),
            provenance(snapshot, read_provenance(dataset, snapshot.id)),
        ]
    return page(f"Dataset card {snapshot.id}", [section for section in sections if section])


def _provenance_path(snapshot_id: str) -> str:
    return f"cards/{snapshot_id}.json"


def read_provenance(dataset: Store, snapshot_id: str) -> dict[str, Any]:
    """Return the fields of the snapshot's `Provenance`; nothing where its card was not written."""
    try:
        return json.loads(dataset.get(_provenance_path(snapshot_id)))
    except ObjectNotFoundError:
        return {}
