"""From a corpus to a first snapshot: list, plan, write, find duplicates, commit; `data.append` goes on."""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, replace

from data.corpus_listing import CorpusListing
from data.deduplicate import Written, deduplicate
from data.errors import InputError
from data.lease import building
from data.left_out import UNKNOWN_LABEL, left_out_rows, num_left_out
from data.list_corpus import list_for_build, local_folder
from data.listing import CorpusReader
from data.near_duplicate_drop import NearDuplicates, settle_near_duplicates
from data.outcomes import write_outcomes
from data.quarantine import rejects_of, write_quarantine
from data.retirement import retired_ids
from data.shard_plan import ShardPlans
from data.shard_write import CODECS, SHARD_FORMAT_VERSION, ShardResult
from data.sharding_config import ShardingConfig
from data.snapshot import (
    Snapshot,
    SnapshotConflictError,
    SnapshotHeader,
    commit_snapshot,
    list_live_snapshots,
    load_snapshot,
    make_snapshot,
    snapshot_numbers,
)
from data.store import ObjectNotFoundError, Store
from data.types import Reject, ShardInfo

RunAll = Callable[[ShardPlans], Iterable[ShardResult]]
"""Runs `write_shard` on every plan, in any place and order, and gives all results, in any order.

Plans are made as they are taken, so no more should be taken than are worked on.
"""

MAX_COMMIT_TRIES = 64


def plan_build(listing: CorpusListing, config: ShardingConfig) -> ShardPlans:
    """Return the shards that `build_snapshot` would write.

    Raises `InputError` for a class without a train image and for no eval image (unless `eval_fraction` is 0).
    """
    check_counts(listing.counts, listing.classes, needs_eval=config.eval_fraction > 0)
    return ShardPlans(listing, classes=listing.classes, shard_size_bytes=config.shard_size_bytes)


def build_snapshot(
    corpus: Store | CorpusReader,
    dataset: Store,
    config: ShardingConfig,
    run_all: RunAll,
    *,
    listing: CorpusListing | None = None,
) -> Snapshot:
    """Shard a corpus into a snapshot without a parent; the same input gives the same snapshot.

    A finished build is recognised by the listing's digest, and by the folder where that is local: its
    snapshot is returned, and nothing is read. Raises `InputError` for what `list_for_build` refuses, a class
    without a train image, no eval image (unless `eval_fraction` is 0), too many unusable images, a leak (by
    policy), and a dataset that holds another snapshot which is live. Nothing is committed then.
    """
    listing = listing or list_for_build(corpus, config)
    plans = plan_build(listing, config)
    record, folder = _build_record_path(listing, config), local_folder(corpus)
    with building(dataset) as lease:
        if (finished := _finished_build(dataset, record, folder)) is not None:
            return finished
        _refuse_another_root(dataset, listing.digest, record)
        check_rejects((), listing.num_images, config.max_reject_fraction, listing)  # known before the work
        results = list(run_all(plans))
        check_rejects(_rejects(results), listing.num_images, config.max_reject_fraction, listing)
        written = deduplicate(results, listing, dataset, known={}, leak_policy=config.leak_policy)
        written, near = settle_near_duplicates(written, listing, dataset, known={}, config=config)
        counts = named_counts(written.label_counts, listing.classes)
        check_counts(counts, listing.classes, needs_eval=config.eval_fraction > 0)
        described = describe_snapshot(None, 1, listing, listing.classes, written, near, dataset, folder)
        lease.check()
        snapshot = _commit_root(dataset, described)
        dataset.put(record, json.dumps({"snapshot": snapshot.id}).encode())
    return snapshot


def _build_record_path(listing: CorpusListing, config: ShardingConfig) -> str:
    """Name all that the snapshot depends on."""
    identity = [SHARD_FORMAT_VERSION, CODECS, listing.digest, asdict(config)]
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
    return f"builds/{digest[:32]}.json"


def _finished_build(dataset: Store, record_path: str, folder: str) -> Snapshot | None:
    snapshot_id = _recorded_snapshot(dataset, record_path)
    if snapshot_id is None or snapshot_id in retired_ids(dataset):
        return None
    try:
        snapshot = load_snapshot(dataset, snapshot_id)
    except InputError:
        return None  # it was removed since
    return snapshot if snapshot.listed_in == folder else None  # else the bytes must tell


def _recorded_snapshot(dataset: Store, record_path: str) -> str | None:
    """Return the snapshot that a build ended with; None without a record, or for a damaged one."""
    try:
        return str(json.loads(dataset.get(record_path))["snapshot"])
    except (ObjectNotFoundError, ValueError, KeyError, TypeError):
        return None


def _refuse_another_root(dataset: Store, listing_digest: str, record_path: str) -> None:
    """Refuse, before the work, what `_commit_root` would: live snapshots whose root is not this build's.

    A root of the same listing that no record names may be this very build's, stopped before its record.
    """
    live = list_live_snapshots(dataset)
    if not live:
        return
    same = {header.id for header in live if header.parent is None and header.listing_digest == listing_digest}
    others = (info.path for info in dataset.list("builds") if info.path != record_path)
    if not same or same & {_recorded_snapshot(dataset, path) for path in others}:
        raise _would_hide(dataset, live[-1])


def _would_hide(dataset: Store, live: SnapshotHeader) -> InputError:
    return InputError(
        f"{dataset.uri} holds snapshot {live.id}, made of other images or with other options; a "
        "new first one would hide it: add new images with append, or give another --dataset"
    )


def _commit_root(dataset: Store, snapshot: Snapshot) -> Snapshot:
    """Commit under the next free number, or return the same snapshot if it is there already.

    Raises `InputError` where another one is live: as HEAD the new one would hide it and its appends.
    """
    for _ in range(MAX_COMMIT_TRIES):
        number = max(snapshot_numbers(dataset), default=0) + 1
        live = list_live_snapshots(dataset)
        for other in live:
            if other.content_sha256 == snapshot.content_sha256:
                return replace(snapshot, number=other.number, listed_in=other.listed_in)
        if live:
            raise _would_hide(dataset, live[-1])
        try:
            return commit_snapshot(dataset, replace(snapshot, number=number))
        except SnapshotConflictError:
            continue
    raise SnapshotConflictError(f"{dataset.uri}: {MAX_COMMIT_TRIES} other writers committed first; try again")


def _rejects(results: Iterable[ShardResult]) -> list[Reject]:
    return [reject for result in results for reject in result.rejects]


def named_counts(counts: Counter[tuple[str, int]], classes: Sequence[str]) -> Counter[tuple[str, str]]:
    """Return samples by split and class name."""
    return Counter({(split, classes[label]): count for (split, label), count in counts.items()})


def check_counts(counts: Counter[tuple[str, str]], classes: Iterable[str], *, needs_eval: bool) -> None:
    """Refuse classes that cannot be learnt, and a dataset that cannot be evaluated."""
    for name in classes:
        if not counts["train", name]:
            raise InputError(
                f"class {name!r} has no usable image for training ({counts['eval', name]} for eval): "
                "add images or leave the class out"
            )
    if needs_eval and not any(split == "eval" and count for (split, _), count in counts.items()):
        raise InputError(
            "no image for eval: add a test/, val/ or eval/ folder or more images, or set eval_fraction to 0"
        )


def check_rejects(
    rejects: Sequence[Reject], num_records: int, max_fraction: float, listing: CorpusListing | None = None
) -> None:
    """Refuse a corpus of which too much is unusable, with the top reasons; what a listing left out counts."""
    left_out = num_left_out(listing) if listing else 0
    if len(rejects) + left_out <= max_fraction * num_records:
        return
    reasons = Counter(reject.reason for reject in rejects)
    examples = list(rejects)
    if listing and left_out:
        reasons[UNKNOWN_LABEL] = left_out
        examples += rejects_of(left_out_rows(listing).sort_by("key").slice(0, 1))
    example = min(examples, key=lambda reject: reject.key)
    top = ", ".join(f"{count} {reason}" for reason, count in reasons.most_common(3))
    raise InputError(
        f"{reasons.total()} of {num_records} images cannot be used ({top}), allowed are {max_fraction:.1%}; "
        f"e.g. {example.path!r}: {example.detail}; mend them or raise max_reject_fraction"
    )


def describe_snapshot(
    parent: Snapshot | None,
    number: int,
    listing: CorpusListing,
    classes: tuple[str, ...],
    written: Written,
    near: NearDuplicates,
    dataset: Store,
    listed_in: str = "",
) -> Snapshot:
    """Write the listing, the quarantine and the shard list; return the snapshot, not committed yet."""
    rejects, left_out = written.rejects, left_out_rows(listing)
    counts = Counter(reject.reason for reject in rejects)
    if left_out.num_rows:
        counts[UNKNOWN_LABEL] = left_out.num_rows
    return make_snapshot(
        dataset,
        parent,
        written.shards,
        number=number,
        classes=classes,
        stats={**_stats(parent, classes, written, counts), "near_duplicates": near.counts},
        listing_digest=listing.digest,
        listing_paths=write_outcomes(dataset, listing, {reject.key: reject.reason for reject in rejects}),
        quarantine_path=write_quarantine(dataset, rejects, left_out) if counts else None,
        near_duplicates_path=near.path,
        listed_in=listed_in,
    )


def _stats(
    parent: Snapshot | None, classes: Sequence[str], written: Written, rejects: Counter[str]
) -> dict[str, dict[str, int]]:
    before: Mapping[str, Mapping[str, int]] = parent.stats if parent else {}

    def grown(kind: str, split: str, shards: Iterable[ShardInfo]) -> int:
        field = "num_samples" if kind == "samples" else "size_bytes"
        return before.get(kind, {}).get(split, 0) + sum(getattr(shard, field) for shard in shards)

    by_class = {
        split: {
            name: before.get(split, {}).get(name, 0) + written.label_counts[split, label]
            for label, name in enumerate(classes)
        }
        for split in written.shards
    }
    totals = {
        kind: {split: grown(kind, split, shards) for split, shards in written.shards.items()}
        for kind in ("samples", "size_bytes")
    }
    return {**totals, "rejects": dict(sorted(rejects.items())), **by_class}
