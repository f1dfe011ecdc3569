"""Adopt WebDataset tars where they lie: list, scan, index, deduplicate, commit; no image is copied."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Literal, get_args

import pyarrow as pa

from data.adopt_scan import ScannedTar, TarPlan
from data.arrow import RecordBatch, Table
from data.build import MAX_COMMIT_TRIES, check_counts, check_rejects, describe_snapshot, named_counts
from data.collect import is_ours
from data.corpora.labels import split_of_path
from data.corpora.webdataset_tars import SampleLabels
from data.corpus_listing import CorpusListing
from data.deduplicate import deduplicate
from data.errors import InputError
from data.image_check import ImageLimits
from data.lease import Lease, building
from data.list_corpus import collect
from data.listing import LISTING_SCHEMA
from data.near_duplicate_drop import settle_near_duplicates
from data.shard_index import get_parquet, put_index
from data.shard_write import ShardResult
from data.sharding_config import DuplicatePolicy
from data.snapshot import (
    Snapshot,
    SnapshotConflictError,
    check_head,
    commit_snapshot,
    head_and_next_number,
    list_live_snapshots,
    snapshot_numbers,
)
from data.store import ObjectInfo, Store
from data.types import Reject

ScanAll = Callable[[Sequence[TarPlan]], Sequence[ScannedTar]]
"""Runs `scan_tar` on every plan, in any place, and returns the results in the plans' order."""
SplitChoice = Literal["auto", "train", "eval"]


@dataclass(frozen=True, kw_only=True)
class AdoptOptions(DuplicatePolicy):
    """Which tars, and what in them is what."""

    tars: str = "*.tar"
    """Which objects below the dataset, as a pattern like 'train/*.tar'; `*` also stands for `/`."""
    eval_tars: str = ""
    """Which of them, or which others, are for evaluation, as such a pattern."""
    split: SplitChoice = "auto"
    """Of the other tars. auto: eval where the last word of the path that names a split is test, val, dev or
    eval; else train."""
    label: str = "cls"
    """Where a sample's label is: cls, the member of that name; or json:FIELD, a field of its .json (a.b: b
    inside a)."""
    image_extension: str = ""
    """Which member is the image where samples have several, for example jpg."""
    limits: ImageLimits = field(default_factory=ImageLimits)
    max_reject_fraction: float = 0.05
    """With a larger share of unusable samples than this, nothing is adopted."""

    def __post_init__(self) -> None:
        DuplicatePolicy.__post_init__(self)
        SampleLabels(source=self.label)
        if self.limits.max_side_px is not None:
            raise InputError(
                "limits.max_side_px is set: an adopted image cannot be scaled; leave it out, or create a "
                "dataset from these tars"
            )
        if not self.tars:
            raise InputError("tars is empty: give a pattern such as *.tar")
        if self.split not in get_args(SplitChoice):
            raise InputError(f"split is {self.split!r}: give one of {', '.join(get_args(SplitChoice))}")
        if not 0 <= self.max_reject_fraction <= 1:
            raise InputError(f"max_reject_fraction is {self.max_reject_fraction}: give 0 to 1")


def plan_tars(dataset: Store, options: AdoptOptions) -> list[TarPlan]:
    """List the tars to adopt that HEAD does not have yet, sorted by path; their content is not looked at.

    Raises `InputError` where the patterns match no tar, or one that was adopted has changed since.
    """
    parent, _ = _parent(dataset)
    known = _adopted_sizes(parent)
    found = [info for info in dataset.list() if _is_wanted(info.path, options)]
    if not found:
        raise InputError(
            f"no tar in {dataset.uri} matches {options.tars!r}: --dataset is the folder they lie below, "
            "--tars a pattern of their paths from there"
        )
    for info in found:
        if known.get(info.path, info.size_bytes) != info.size_bytes:
            raise InputError(
                f"{dataset.uri}/{info.path} has {info.size_bytes} bytes, {known[info.path]} when adopted; "
                "adopted tars must not change; restore it, and give the new one another name"
            )
    return [_plan(info, options) for info in found if info.path not in known]


def adopt_tars(
    dataset: Store,
    options: AdoptOptions,
    scan_all: ScanAll,
    *,
    plans: Sequence[TarPlan],
    classes: Sequence[str] | None,
) -> Snapshot | None:
    """Index tars as shards of a new snapshot, after HEAD where there is one; None where that adds no sample.

    `classes` gives the names of numeric labels by place; None takes the labels as names. An image that the
    dataset has already, or that comes twice, is left out of the index, and one that looks like another where
    the policy is to drop: it stays in the tar, and nothing reads it. Raises `InputError` for a tar that
    cannot be adopted, a label that `classes` has not, a new class without a train image, too many unusable
    samples, a leak (by policy). Nothing is committed then.
    """
    with building(dataset) as lease:
        scanned = scan_all(plans)
        num_samples = sum(one.num_samples + len(one.rejects) for one in scanned)
        rejects = [reject for one in scanned for reject in one.rejects]
        check_rejects(rejects, num_samples, options.max_reject_fraction)
        for _ in range(MAX_COMMIT_TRIES):
            try:
                return _adopt_once(dataset, options, scanned, classes, lease)
            except SnapshotConflictError:
                continue
    raise SnapshotConflictError(f"{dataset.uri}: {MAX_COMMIT_TRIES} other writers committed first; try again")


def _adopt_once(
    dataset: Store,
    options: AdoptOptions,
    scanned: Sequence[ScannedTar],
    names: Sequence[str] | None,
    lease: Lease,
) -> Snapshot | None:
    parent, number = _parent(dataset)
    known = _adopted_sizes(parent)
    fresh = [one for one in scanned if one.path not in known]  # another writer may have been first
    listing = collect(CorpusListing(0), _batches(dataset, fresh, names), None)
    before = parent.classes if parent else ()
    added = sorted(set(names or listing.classes) - set(before), key=_by_number_or_name)
    if names:
        added = [name for name in names if name not in before]
    classes = (*before, *added)
    results = [_index(dataset, one, names, classes) for one in fresh]
    splits = parent.splits if parent else {}
    written = deduplicate(results, listing, dataset, known=splits, leak_policy=options.leak_policy)
    written, near = settle_near_duplicates(written, listing, dataset, known=splits, config=options)
    if not any(written.shards.values()):
        return None
    check_counts(named_counts(written.label_counts, classes), added, needs_eval=False)
    snapshot = describe_snapshot(parent, number, listing, classes, written, near, dataset)
    lease.check()
    check_head(dataset, parent)
    return commit_snapshot(dataset, snapshot)


def _parent(dataset: Store) -> tuple[Snapshot | None, int]:
    """Return HEAD, None where no snapshot is live, and the number of the next one."""
    number = max(snapshot_numbers(dataset), default=0) + 1  # first: whoever commits from now on takes it
    return head_and_next_number(dataset) if list_live_snapshots(dataset) else (None, number)


def _adopted_sizes(parent: Snapshot | None) -> dict[str, int]:
    shards = (shard for found in parent.splits.values() for shard in found) if parent else ()
    return {shard.path: shard.size_bytes for shard in shards if shard.is_adopted}


def _is_wanted(path: str, options: AdoptOptions) -> bool:
    patterns = [pattern for pattern in (options.tars, options.eval_tars) if pattern]
    return not is_ours(path) and any(fnmatchcase(path, pattern) for pattern in patterns)


def _plan(info: ObjectInfo, options: AdoptOptions) -> TarPlan:
    return TarPlan(
        path=info.path,
        size_bytes=info.size_bytes,
        etag=info.etag,
        split=_split(info.path, options),
        labels=SampleLabels(source=options.label),
        image_extension=options.image_extension,
        limits=options.limits,
    )


def _split(path: str, options: AdoptOptions) -> str:
    if options.eval_tars and fnmatchcase(path, options.eval_tars):
        return "eval"
    if options.split != "auto":
        return options.split
    return split_of_path(path) or "train"


def _batches(
    dataset: Store, scanned: Iterable[ScannedTar], names: Sequence[str] | None
) -> Iterator[RecordBatch]:
    """Yield what each tar holds as rows of a corpus listing."""
    for one in scanned:
        rows = [
            {
                "key": row["name"], "path": one.path, "offset": row["offset"], "size_bytes": row["size"],
                "etag": one.etag, "labels": [_class_name(one, label, names) for label in row["labels"]],
                "split": one.split,
            }
            for row in _table(dataset, one).select(["name", "offset", "size", "labels"]).to_pylist()
        ]  # fmt: skip
        rows += [_rejected_row(one, reject) for reject in one.rejects]
        yield pa.RecordBatch.from_pylist(rows, schema=LISTING_SCHEMA)


def _rejected_row(one: ScannedTar, reject: Reject) -> dict[str, object]:
    return {
        "key": reject.key, "path": one.path, "offset": None, "size_bytes": 0, "etag": one.etag, "labels": [],
        "split": one.split,
    }  # fmt: skip


def _index(
    dataset: Store, one: ScannedTar, names: Sequence[str] | None, classes: Sequence[str]
) -> ShardResult:
    place = {name: number for number, name in enumerate(classes)}
    rows = _table(dataset, one).to_pylist()
    for row in rows:
        row["labels"] = [place[_class_name(one, label, names)] for label in row["labels"]]
    info = None
    if rows:
        info = put_index(
            dataset, f"indexes/{one.split}", rows, path=one.path, size_bytes=one.size_bytes,
            crc32c=one.crc32c, sha256=one.sha256,
        )  # fmt: skip
    return ShardResult(
        info=info, split=one.split, rejects=one.rejects, num_images=len(rows) + len(one.rejects),
        listed_bytes=one.size_bytes,
    )  # fmt: skip


def _table(dataset: Store, one: ScannedTar) -> Table:
    return get_parquet(dataset, one.table_path)


def _class_name(one: ScannedTar, label: str, names: Sequence[str] | None) -> str:
    """Name a label's class: with a list a number is a place in it, also where the names are numbers."""
    if names is None:
        return label
    if _is_number(label):
        digits = label.lstrip("0") or "0"
        if len(digits) <= len(str(len(names))) and int(digits) < len(names):
            return names[int(digits)]
    elif label in names:
        return label
    raise InputError(
        f"tar {one.path!r} has the label {label[:200]!r}; with {len(names)} classes a label is a name of "
        f"them or 0 to {len(names) - 1}: correct the classes file, or --label"
    )


def _is_number(label: str) -> bool:
    return label.isascii() and label.isdigit()


def _by_number_or_name(name: str) -> tuple[int, str, str]:
    """Sort numbers as numbers: a label's place is then the number itself where none is missing."""
    if not _is_number(name):
        return -1, name, ""
    digits = name.lstrip("0")  # not `int`: it refuses thousands of digits; `name` tells "1" from "01"
    return len(digits), digits, name
