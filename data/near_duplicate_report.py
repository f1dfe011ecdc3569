"""Near duplicates of a dataset: over the shards' indexes, as rows with names, and which of them to drop."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from data.duplicates import SplitShard, read_indexes
from data.errors import InputError
from data.near_duplicates import Ids, NearPairs, find_near_pairs
from data.shard_index import get_parquet, put_parquet
from data.sharding_config import DuplicatePolicy
from data.store import Store
from data.temporary_folder import temporary_folder

# Pairs that are kept, and that are listed by name; all are counted.
MAX_PAIRS = 1_000_000
MAX_LISTED = 100_000

_PAIR_SCHEMA = pa.schema(
    [
        ("split", pa.string()),
        ("name", pa.string()),
        ("shard", pa.string()),
        ("row", pa.int32()),  # in the shard's index
        ("twin_split", pa.string()),
        ("twin_name", pa.string()),
        ("twin_shard", pa.string()),
        ("twin_row", pa.int32()),
        ("distance", pa.uint8()),  # bits of 64 that differ
    ]
)


@dataclass(frozen=True, slots=True, kw_only=True)
class NearDuplicate:
    """An image, and the one before it that it looks like."""

    split: str
    name: str
    shard: str
    row: int
    twin_split: str
    twin_name: str
    twin_shard: str
    twin_row: int
    distance: int

    @property
    def is_leak(self) -> bool:
        """Whether the two are in different splits."""
        return self.split != self.twin_split

    @property
    def reason(self) -> str:
        """What it is called where it is dropped."""
        return "near_leak" if self.is_leak else "near_duplicate"

    @property
    def detail(self) -> str:
        """Say what it looks like."""
        return f"looks like {self.twin_split} image {self.twin_name!r} ({self.distance} of 64 bits differ)"


@dataclass(frozen=True, slots=True, kw_only=True)
class NearReport:
    """What was found."""

    listed: tuple[NearDuplicate, ...]
    """Pairs across splits first, then by distance and names; at most `MAX_LISTED`."""
    num_pairs: int
    num_leaks: int
    """Pairs across splits, of those that were kept."""
    dropped: tuple[NearDuplicate, ...]
    """Whose `name` must go so that no two alike are left, where that was asked for."""


def find_near_duplicates(
    dataset: Store, new: Sequence[SplitShard], *, known: Sequence[SplitShard] = (), config: DuplicatePolicy
) -> NearReport:
    """Compare the new shards' images with each other and with those known, by their perceptual hashes.

    Of two alike the known one comes first, then the one in eval (in train where `leak_policy` is
    `drop_eval`), then the one in the earlier shard: that one stays where the policy is to drop. Raises
    InputError for more pairs to drop than fit in memory, and `TemporaryFolderFullError`.
    """
    if config.near_duplicates == "off":
        return NearReport(listed=(), num_pairs=0, num_leaks=0, dropped=())
    is_dropping = config.near_duplicates == "drop"
    first_split = "train" if config.leak_policy == "drop_eval" else "eval"
    places = _Places([*known, *sorted(new, key=lambda shard: shard.split != first_split)])
    with temporary_folder("near-") as scratch:
        hashes, ids = _spill_hashes(dataset, places, scratch)
        first_new = int(places.starts[len(known)])
        pairs = find_near_pairs(
            hashes, ids, max_distance=config.near_duplicate_distance, scratch=scratch,
            first_new=first_new, max_pairs=MAX_PAIRS,
        )  # fmt: skip
    if is_dropping and pairs.num_found > len(pairs.first):
        raise InputError(
            f"{pairs.num_found} pairs of images look alike, too many to choose what to drop: these pictures "
            "are alike by nature; set near_duplicates to report, or lower near_duplicate_distance"
        )
    across = places.is_eval(pairs.first) != places.is_eval(pairs.second)
    best = np.lexsort((pairs.second, pairs.first, pairs.distance, ~across))[:MAX_LISTED]
    going = _dropped(pairs) if is_dropping else np.empty(0, np.int64)
    named = _name(dataset, places, pairs, np.concatenate([best, going]))
    listed = sorted(
        named[: len(best)], key=lambda pair: (not pair.is_leak, pair.distance, pair.name, pair.twin_name)
    )
    return NearReport(
        listed=tuple(listed),
        num_pairs=pairs.num_found,
        num_leaks=int(across.sum()),
        dropped=tuple(named[len(best) :]),
    )


def write_near_duplicates(dataset: Store, found: Iterable[NearDuplicate]) -> str:
    """Write pairs as `near-duplicates/HASH.parquet` and return that path."""
    rows = [{name: getattr(pair, name) for name in _PAIR_SCHEMA.names} for pair in found]
    return put_parquet(dataset, "near-duplicates", rows, _PAIR_SCHEMA)


def read_near_duplicates(dataset: Store, path: str, *, max_rows: int) -> list[NearDuplicate]:
    """Return the first pairs that `write_near_duplicates` wrote."""
    rows = get_parquet(dataset, path).slice(0, max_rows).to_pylist()
    return [NearDuplicate(**row) for row in rows]


class _Places:
    """Numbers all images of some shards, one after another."""

    def __init__(self, shards: Sequence[SplitShard]) -> None:
        self.shards = shards
        self.starts = np.cumsum([0, *(shard.info.num_samples for shard in shards)])
        self._shard_is_eval = np.array([shard.split == "eval" for shard in shards], bool)

    def shard_of(self, ids: Ids) -> NDArray[np.intp]:
        return np.searchsorted(self.starts, ids, side="right") - 1

    def is_eval(self, ids: Ids) -> NDArray[np.bool_]:
        return self._shard_is_eval[self.shard_of(ids)]


def _spill_hashes(dataset: Store, places: _Places, scratch: Path) -> tuple[NDArray[np.uint64], Ids]:
    """Write all hashes and their images' numbers to files; return them mapped into memory."""
    hashes_path, ids_path = scratch / "hashes", scratch / "ids"
    with hashes_path.open("wb") as hashes_file, ids_path.open("wb") as ids_file:
        tables = read_indexes(dataset, places.shards, ["perceptual_hash"])
        for start, table in zip(places.starts, tables, strict=False):
            column = table.column("perceptual_hash").combine_chunks()
            is_known = column.is_valid().to_numpy(zero_copy_only=False)
            # Not tofile: its OSError on a full disk has no errno.
            hashes_file.write(column.drop_null().to_numpy().data)
            ids_file.write((np.flatnonzero(is_known) + start).astype(np.int64).data)
    if hashes_path.stat().st_size == 0:
        return np.empty(0, np.uint64), np.empty(0, np.int64)
    return np.memmap(hashes_path, np.uint64, "r"), np.memmap(ids_path, np.int64, "r")


def _dropped(pairs: NearPairs) -> NDArray[np.intp]:
    """Return the pairs whose second image goes: at most one for each image.

    An image stays if none that it is like stays before it. One with the same hash as an earlier image goes
    anyway: either that one stays, or what made it go is before both.
    """
    gone: dict[int, int] = {}
    by_second = np.lexsort((pairs.first, pairs.second))
    columns = (pairs.first[by_second], pairs.second[by_second], pairs.distance[by_second], by_second)
    for first, second, distance, pair in zip(*(column.tolist() for column in columns), strict=True):
        if distance == 0 or first not in gone:
            gone.setdefault(second, pair)
    return np.array(sorted(gone.values()), np.int64)


def _name(dataset: Store, places: _Places, pairs: NearPairs, chosen: NDArray[np.intp]) -> list[NearDuplicate]:
    """Look the chosen pairs' images up in the indexes; each index is read once."""
    ids = np.unique(np.concatenate([pairs.first[chosen], pairs.second[chosen]]))
    names: dict[int, str] = {}
    found = places.shard_of(ids)
    numbers = np.unique(found).tolist()
    tables = read_indexes(dataset, [places.shards[number] for number in numbers], ["name"])
    for number, table in zip(numbers, tables, strict=True):
        inside = ids[found == number]
        rows = pa.array(inside - places.starts[number])
        names.update(zip(inside.tolist(), table.column("name").take(rows).to_pylist(), strict=True))

    def side(image: int) -> dict[str, Any]:
        number = int(places.shard_of(np.array([image]))[0])
        shard, row = places.shards[number], image - int(places.starts[number])
        return {"split": shard.split, "name": names[image], "shard": shard.info.path, "row": row}

    return [
        NearDuplicate(
            **side(second),
            **{f"twin_{key}": value for key, value in side(first).items()},
            distance=distance,
        )
        for first, second, distance in zip(
            pairs.first[chosen].tolist(),
            pairs.second[chosen].tolist(),
            pairs.distance[chosen].tolist(),
            strict=True,
        )
    ]
