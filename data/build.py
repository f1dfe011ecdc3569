"""From a corpus to a committed snapshot: list, plan, write, find duplicates, commit."""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from data.corpus import CorpusListing, list_records, make_listing
from data.deduplicate import Written, deduplicate, read_indexes
from data.duplicates import LeakPolicy
from data.errors import InputError
from data.image_check import ImageLimits
from data.quarantine import write_quarantine
from data.shard_plan import ShardPlan, plan_shards
from data.shard_write import ShardResult
from data.snapshot import (
    Snapshot,
    SnapshotConflictError,
    commit_snapshot,
    list_snapshots,
    load_chain,
    load_snapshot,
    new_records,
    remember_rejects,
    write_outcomes,
)
from data.store import Store
from data.types import Record, ShardInfo

RunAll = Callable[[list[ShardPlan]], list[ShardResult]]
"""Runs `write_shard` on every plan, in any place and order, and returns all results, in any order."""

_MAX_COMMIT_TRIES = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardingConfig:
    """How a corpus becomes shards; all of it changes the result."""

    classes: tuple[str, ...] | None = None
    """Take only these, in this order; None takes all, sorted."""
    max_train_per_class: int | None = None
    """Take at most so many training images of each class, chosen by a hash; None takes all."""
    eval_fraction: float = 0.1
    """Share of the images put into eval by their key; unused where the corpus has split folders."""
    shard_size_bytes: int = 64 * 2**20
    """Size of a tar, about."""
    seed: int = 0
    """Decides the split of an image and its place in the shards."""
    limits: ImageLimits = field(default_factory=ImageLimits)
    max_reject_fraction: float = 0.05
    """A build with a larger share of unusable images than this stops; an append never does."""
    leak_policy: LeakPolicy = "error"
    """What a build does with the same image in train and eval: stop, or drop the train one."""

    def __post_init__(self) -> None:
        if self.classes is not None and (not self.classes or len(set(self.classes)) < len(self.classes)):
            raise InputError(f"classes is {self.classes}: give different names, or null for all")
        if self.max_train_per_class is not None and self.max_train_per_class < 1:
            raise InputError(f"max_train_per_class is {self.max_train_per_class}: give at least 1, or null")
        if not 0 <= self.eval_fraction < 1:
            raise InputError(f"eval_fraction is {self.eval_fraction}: give 0 or more, below 1")
        if self.shard_size_bytes < 1:
            raise InputError(f"shard_size_bytes is {self.shard_size_bytes}: give at least 1")
        if not 0 <= self.max_reject_fraction <= 1:
            raise InputError(f"max_reject_fraction is {self.max_reject_fraction}: give 0 to 1")
        if self.leak_policy not in ("error", "drop_train"):
            raise InputError(f"leak_policy is {self.leak_policy!r}: give 'error' or 'drop_train'")


def list_for_build(corpus: Store, config: ShardingConfig) -> CorpusListing:
    """List what `build_snapshot` would take, with the split of each record."""
    return list_records(
        corpus,
        classes=config.classes,
        max_per_class=config.max_train_per_class,
        seed=config.seed,
        eval_fraction=config.eval_fraction,
    )


def plan_build(listing: CorpusListing, config: ShardingConfig) -> list[ShardPlan]:
    """Return the shards that `build_snapshot` would write.

    Raises `InputError` for a class without a train image and for no eval image (unless `eval_fraction` is 0).
    """
    plans = _plan(listing.records, listing.classes, config)
    planned = Counter(
        (plan.split, label) for plan in plans for record in plan.records for label in record.labels
    )
    _check_counts(planned, listing.classes, needs_eval=config.eval_fraction > 0)
    return plans


def list_for_append(corpus: Store, config: ShardingConfig) -> CorpusListing:
    """List what `append_snapshot` would look at; the corpus may be empty, and classes may be missing."""
    listing = list_records(
        corpus,
        max_per_class=config.max_train_per_class,
        seed=config.seed,
        eval_fraction=config.eval_fraction,
        allow_empty=True,
    )
    if config.classes is None:
        return listing
    wanted = set(config.classes)
    return make_listing((r for r in listing.records if wanted.issuperset(r.labels)), config.classes)


def build_snapshot(
    corpus: Store,
    dataset: Store,
    config: ShardingConfig,
    run_all: RunAll,
    *,
    listing: CorpusListing | None = None,
) -> Snapshot:
    """Shard a corpus into a snapshot without a parent; the same input gives the same snapshot.

    Raises `InputError` for what `list_records` refuses, a class without a train image, no eval
    image (unless `eval_fraction` is 0), too many unusable images, and a leak (by policy).
    Nothing is committed then.
    """
    listing = listing or list_for_build(corpus, config)
    plans = plan_build(listing, config)
    results = run_all(plans)
    _check_rejects(results, len(listing.records), config.max_reject_fraction)
    written = deduplicate(results, listing.records, dataset, known=(), leak_policy=config.leak_policy)
    counts = _named_counts(written.label_counts, listing.classes)
    _check_counts(counts, listing.classes, needs_eval=config.eval_fraction > 0)
    return _commit_root(dataset, _describe(None, listing, listing.classes, written, dataset))


def append_snapshot(
    parent: Snapshot, corpus: Store, dataset: Store, config: ShardingConfig, run_all: RunAll
) -> Snapshot | None:
    """Append the corpus's new images to `parent`; None where that adds no sample.

    New is a (path, size, etag) that no snapshot of the chain has processed; the key gets a hash
    of them, so a file uploaded again under its name is another sample. New classes go to the end.
    An image whose bytes the chain has is put aside as `duplicate`, or as `leak` if it would be in
    the other split; so is a new train image that is also a new eval image. Unusable images never
    stop an append, as they would stop every later one too: the quarantine and the stats tell.
    Where nothing is left, the rejects are remembered and not read again.

    If another append was committed first, this one is done again on top of it. Raises
    `InputError` for a new class without a usable train image, `SnapshotConflictError` where HEAD
    does not descend from `parent` or conflicts do not end.
    """
    listing = list_for_append(corpus, config)
    for _ in range(_MAX_COMMIT_TRIES):
        try:
            return _append_once(parent, listing, dataset, config, run_all)
        except SnapshotConflictError:
            head = load_snapshot(dataset, "HEAD")
            if parent.id not in {ancestor.id for ancestor in load_chain(dataset, head)}:
                raise
            parent = head
    raise SnapshotConflictError(
        f"{dataset.uri}: {_MAX_COMMIT_TRIES} other writers committed first; try again"
    )


def _commit_root(dataset: Store, snapshot: Snapshot) -> Snapshot:
    """Commit under the next free number, or return the same snapshot if it is there already."""
    for _ in range(_MAX_COMMIT_TRIES):
        existing = list_snapshots(dataset)
        for other in existing:
            if other.content_sha256 == snapshot.content_sha256:
                return other
        number = existing[-1].number + 1 if existing else 1
        try:
            return commit_snapshot(dataset, replace(snapshot, number=number))
        except SnapshotConflictError:
            continue
    raise SnapshotConflictError(
        f"{dataset.uri}: {_MAX_COMMIT_TRIES} other writers committed first; try again"
    )


def _append_once(
    parent: Snapshot, listing: CorpusListing, dataset: Store, config: ShardingConfig, run_all: RunAll
) -> Snapshot | None:
    fresh = [replace(r, key=_upload_key(r)) for r in new_records(dataset, parent, listing)]
    if not fresh:
        return None
    added = sorted({label for record in fresh for label in record.labels} - set(parent.classes))
    classes = (*parent.classes, *added)
    results = run_all(_plan(fresh, classes, config))
    known = [
        index for split, shards in parent.splits.items() for index in read_indexes(dataset, split, shards)
    ]
    written = deduplicate(results, fresh, dataset, known=known, leak_policy="drop_train")
    if not any(written.shards.values()):
        remember_rejects(dataset, parent, fresh, {reject.key: reject.reason for reject in written.rejects})
        return None
    _check_counts(_named_counts(written.label_counts, classes), added, needs_eval=False)
    fresh_listing = make_listing(fresh, classes)
    return commit_snapshot(dataset, _describe(parent, fresh_listing, classes, written, dataset))


def _plan(records: Iterable[Record], classes: Sequence[str], config: ShardingConfig) -> list[ShardPlan]:
    return plan_shards(
        records,
        classes=classes,
        seed=config.seed,
        shard_size_bytes=config.shard_size_bytes,
        eval_fraction=config.eval_fraction,
    )


def _upload_key(record: Record) -> str:
    identity = json.dumps([record.path, record.size_bytes, record.etag])
    return f"{record.path}@{hashlib.sha256(identity.encode()).hexdigest()[:8]}"


def _named_counts(counts: Counter[tuple[str, int]], classes: Sequence[str]) -> Counter[tuple[str, str]]:
    return Counter({(split, classes[label]): count for (split, label), count in counts.items()})


def _check_counts(counts: Counter[tuple[str, str]], classes: Iterable[str], *, needs_eval: bool) -> None:
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


def _check_rejects(results: Iterable[ShardResult], num_records: int, max_fraction: float) -> None:
    rejects = [reject for result in results for reject in result.rejects]
    if len(rejects) <= max_fraction * num_records:
        return
    reasons = Counter(reject.reason for reject in rejects).most_common(3)
    example = min(rejects, key=lambda reject: reject.key)
    raise InputError(
        f"{len(rejects)} of {num_records} images cannot be used "
        f"({', '.join(f'{count} {reason}' for reason, count in reasons)}), allowed are {max_fraction:.1%}; "
        f"e.g. {example.path!r}: {example.detail}; mend them or raise max_reject_fraction"
    )


def _describe(
    parent: Snapshot | None,
    listing: CorpusListing,
    classes: tuple[str, ...],
    written: Written,
    dataset: Store,
) -> Snapshot:
    """Write the listing and the quarantine, and return the snapshot, not committed yet."""
    reasons = {reject.key: reject.reason for reject in written.rejects}
    shards = {
        split: (*(parent.splits[split] if parent else ()), *new) for split, new in written.shards.items()
    }
    return Snapshot(
        number=parent.number + 1 if parent else 1,
        parent=parent.id if parent else None,
        classes=classes,
        splits=shards,
        stats=_stats(parent, classes, shards, written),
        listing_digest=listing.digest,
        listing_path=write_outcomes(dataset, listing.records, reasons),
        quarantine_path=write_quarantine(dataset, written.rejects) if written.rejects else None,
    )


def _stats(
    parent: Snapshot | None,
    classes: Sequence[str],
    shards: Mapping[str, Sequence[ShardInfo]],
    written: Written,
) -> dict[str, dict[str, int]]:
    by_class = {
        split: {
            name: (parent.stats[split].get(name, 0) if parent else 0) + written.label_counts[split, label]
            for label, name in enumerate(classes)
        }
        for split in shards
    }
    return {
        "samples": {split: sum(shard.num_samples for shard in found) for split, found in shards.items()},
        "size_bytes": {split: sum(shard.size_bytes for shard in found) for split, found in shards.items()},
        "rejects": dict(sorted(Counter(reject.reason for reject in written.rejects).items())),
        **by_class,
    }
