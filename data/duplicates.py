"""Find images that stand in a dataset twice, over the shard indexes alone."""

import binascii
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from data.arrow import Table
from data.errors import InputError
from data.shard_index import read_index
from data.sharding_config import LeakPolicy
from data.spool import Spool
from data.store import Store
from data.types import ShardInfo

_PRINT_SCHEMA: Any = pa.schema(
    [
        ("high", pa.uint64()),  # the first 16 bytes of an image's sha256
        ("low", pa.uint64()),
        ("shard", pa.int32()),  # the place in the list of all shards looked at
        ("row", pa.int32()),
    ]
)
_HEX_PER_PRINT = 32
_NUM_READ_THREADS = 8
_READ_AHEAD = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitShard:
    """A shard and the split it belongs to."""

    split: str
    info: ShardInfo


@dataclass(frozen=True, slots=True, kw_only=True)
class Removal:
    """One sample that must go."""

    split: str
    shard_path: str
    name: str
    labels: tuple[int, ...]
    reason: str
    """`duplicate` (the same bytes in the same split) or `leak` (in the other one)."""
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Findings:
    """What a look over the indexes found."""

    removals: list[Removal]
    """Sorted by name."""
    label_counts: Counter[tuple[str, int]]
    """Samples of the new shards that stay, by split and class index."""
    relabelled: Counter[tuple[int, int]]
    """Samples that go because `known` has them with another label, by the new and the known class index;
    only those with one label each."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Place:
    shard: int
    split: str
    shard_path: str
    name: str
    labels: tuple[int, ...]


def find_duplicates(
    dataset: Store,
    new: Sequence[SplitShard],
    *,
    known: Sequence[SplitShard] = (),
    leak_policy: LeakPolicy,
) -> Findings:
    """Return the samples of `new` to remove so that no image bytes come twice.

    Within a split the lowest name stays; a sample that `known` has already goes. A sample whose
    twin in the other split is known goes as a leak. Of twins in both splits of `new` the one of the
    split that the policy drops goes; with `error` they are an `InputError` that names up to five pairs.

    Every index is read once, and those with a repeated image once more. Memory grows with the repeated
    images only: 24 bytes an image are sorted on disk.
    """
    shards = [*new, *known]
    prints, counts = _scan(dataset, shards, len(new))
    repeated = _repeated(prints, len(new))
    removals: list[Removal] = []
    relabelled: Counter[tuple[int, int]] = Counter()
    leaks: list[tuple[_Place, _Place]] = []
    for group in _places(dataset, shards, repeated):
        found, leak = _judge(group, len(new), leak_policy)
        removals += found
        relabelled.update(_other_labels(group, len(new)))
        leaks += leak
    if leaks and leak_policy == "error":
        _raise_leaks(leaks)
    counts.subtract((removal.split, label) for removal in removals for label in removal.labels)
    removals.sort(key=lambda removal: removal.name)
    return Findings(removals=removals, label_counts=counts, relabelled=relabelled)


def read_indexes(dataset: Store, shards: Sequence[SplitShard], columns: Sequence[str]) -> Iterator[Table]:
    """Yield the shards' indexes in order, some ahead in threads."""

    def read(shard: SplitShard) -> Table:
        return read_index(dataset, shard.info).select(list(columns)).combine_chunks()

    with ThreadPoolExecutor(_NUM_READ_THREADS) as pool:
        for first in range(0, len(shards), _READ_AHEAD):
            yield from pool.map(read, shards[first : first + _READ_AHEAD])


def _scan(
    dataset: Store, shards: Sequence[SplitShard], num_new: int
) -> tuple[Spool, Counter[tuple[str, int]]]:
    """Return all images' prints, and how often the first `num_new` shards have each label."""
    spool = Spool(_PRINT_SCHEMA, ("high", "low", "shard", "row"))
    counts: Counter[tuple[str, int]] = Counter()
    for number, table in enumerate(read_indexes(dataset, shards, ["sha256", "labels"])):
        if number < num_new:
            times = np.bincount(table.column("labels").combine_chunks().flatten().to_numpy())
            split = shards[number].split
            counts.update({(split, label): int(times[label]) for label in np.flatnonzero(times).tolist()})
        prints = _first_bytes(table.column("sha256"))
        columns = [
            pa.array(prints[:, 0]),
            pa.array(prints[:, 1]),
            pa.array(np.full(len(prints), number, dtype=np.int32)),
            pa.array(np.arange(len(prints), dtype=np.int32)),
        ]
        spool.add(pa.RecordBatch.from_arrays(columns, schema=_PRINT_SCHEMA))
    return spool, counts


def _first_bytes(hex_strings: Any) -> NDArray[np.uint64]:
    """Return the first 16 bytes of each hash: uint64 [N, 2]."""
    text = "".join(value[:_HEX_PER_PRINT] for value in hex_strings.to_pylist())
    return np.frombuffer(binascii.unhexlify(text), dtype=">u8").reshape(-1, 2).astype(np.uint64)


def _repeated(prints: Spool, num_new: int) -> Table:
    """Return (group, shard, row) of the images that come more than once and are not all known."""
    found: list[Table] = [_no_places()]
    next_group = 0
    for part in prints.parts():
        high, low = part.column("high").to_numpy(), part.column("low").to_numpy()
        starts = np.flatnonzero(np.concatenate([[True], (high[1:] != high[:-1]) | (low[1:] != low[:-1])]))
        sizes = np.diff(np.concatenate([starts, [len(high)]]))
        is_new = part.column("shard").to_numpy() < num_new
        has_new = np.logical_or.reduceat(is_new, starts)
        chosen = np.repeat((sizes > 1) & has_new, sizes)
        groups = next_group + np.repeat(np.arange(len(starts)), sizes)
        next_group += len(starts)
        columns = [groups[chosen], *(part.column(name).to_numpy()[chosen] for name in ("shard", "row"))]
        found.append(pa.table(dict(zip(("group", "shard", "row"), columns, strict=True))))
    return pa.concat_tables(found)


def _no_places() -> Table:
    return pa.table(
        {
            "group": pa.array([], pa.int64()),
            "shard": pa.array([], pa.int32()),
            "row": pa.array([], pa.int32()),
        }
    )


def _places(dataset: Store, shards: Sequence[SplitShard], repeated: Table) -> Iterator[list[_Place]]:
    """Yield the places of each group, by name; each shard with a repeated image is read once."""
    rows = repeated.sort_by("shard").to_pylist()
    by_shard = [(number, list(found)) for number, found in groupby(rows, key=lambda row: row["shard"])]
    tables = read_indexes(dataset, [shards[number] for number, _ in by_shard], ["name", "labels"])
    groups: defaultdict[int, list[_Place]] = defaultdict(list)
    for (number, found), table in zip(by_shard, tables, strict=True):
        taken = table.take(pa.array([row["row"] for row in found])).to_pylist()
        for row, image in zip(found, taken, strict=True):
            place = _Place(
                shard=number, split=shards[number].split, shard_path=shards[number].info.path,
                name=image["name"], labels=tuple(image["labels"]),
            )  # fmt: skip
            groups[row["group"]].append(place)
    for places in groups.values():
        yield sorted(places, key=lambda place: place.name)


def _judge(
    group: list[_Place], num_new: int, leak_policy: LeakPolicy
) -> tuple[list[Removal], list[tuple[_Place, _Place]]]:
    """Return what of one image's places must go, and its (train, eval) pair if it is a leak."""
    fresh = [place for place in group if place.shard < num_new]
    known = [place for place in group if place.shard >= num_new]
    if known:
        return [_removal(place, known[0]) for place in fresh], []
    train = [place for place in fresh if place.split == "train"]
    evaluation = [place for place in fresh if place.split == "eval"]
    if not (train and evaluation):
        return [_removal(place, fresh[0]) for place in fresh[1:]], []
    kept, dropped = (train, evaluation) if leak_policy == "drop_eval" else (evaluation, train)
    removals = [_removal(place, kept[0]) for place in (*kept[1:], *dropped)]
    return removals, [(train[0], evaluation[0])]


def _other_labels(group: list[_Place], num_new: int) -> list[tuple[int, int]]:
    """Return (new label, known label) of one image's new places that are known with another one."""
    known = next((place for place in group if place.shard >= num_new), None)
    if known is None or len(known.labels) != 1:
        return []
    labels = [place.labels for place in group if place.shard < num_new and place.labels != known.labels]
    return [(new[0], known.labels[0]) for new in labels if len(new) == 1]


def _removal(place: _Place, twin: _Place) -> Removal:
    other_label = "" if place.labels == twin.labels else f", which has another label {list(twin.labels)}"
    return Removal(
        split=place.split,
        shard_path=place.shard_path,
        name=place.name,
        labels=place.labels,
        reason="duplicate" if place.split == twin.split else "leak",
        detail=f"same bytes as {twin.split} image {twin.name!r}{other_label}",
    )


def _raise_leaks(leaks: list[tuple[_Place, _Place]]) -> None:
    leaks = sorted(leaks, key=lambda pair: pair[0].name)
    pairs = "; ".join(f"{train.name!r} = {evaluation.name!r}" for train, evaluation in leaks[:5])
    more = f" and {len(leaks) - 5} more" if len(leaks) > 5 else ""
    raise InputError(
        f"{len(leaks)} images stand in both train and eval: {pairs}{more}; remove one of each pair, "
        "or set leak_policy to drop_train or drop_eval"
    )
