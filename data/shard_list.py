"""The shards of a snapshot as Parquet: a hundred thousand of them are a few megabytes."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields

import pyarrow as pa

from data.arrow import Table
from data.shard_index import parquet_bytes, parquet_table
from data.split import SPLITS
from data.store import Store, StoreError
from data.types import ShardInfo

# An append adds a list. A long chain of small ones would be slow to open, and a list is cheap to write again.
_MAX_LISTS = 32

SHARD_LIST_SCHEMA = pa.schema(
    [
        ("split", pa.string()),
        ("path", pa.string()),
        ("index_path", pa.string()),
        ("num_samples", pa.int64()),
        ("size_bytes", pa.int64()),
        ("crc32c", pa.uint32()),
        ("sha256", pa.string()),
        ("index_sha256", pa.string()),
    ]
)

Shards = Mapping[str, Sequence[ShardInfo]]
"""By split."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardList:
    """One Parquet file of shards."""

    path: str
    sha256: str
    num_shards: Mapping[str, int]
    """By split."""


def write_shard_list(dataset: Store, shards: Shards) -> ShardList:
    """Write `shard_lists/HASH.parquet`."""
    rows = [{"split": split, **asdict(shard)} for split in SPLITS for shard in shards.get(split, ())]
    content = parquet_bytes(rows, SHARD_LIST_SCHEMA)
    sha256 = hashlib.sha256(content).hexdigest()
    path = f"shard_lists/{sha256[:16]}.parquet"
    dataset.put(path, content)
    num_shards = {split: len(shards.get(split, ())) for split in SPLITS}
    return ShardList(path=path, sha256=sha256, num_shards=num_shards)


def extend_shard_lists(
    dataset: Store, lists: Sequence[ShardList], known: Shards, new: Shards
) -> tuple[ShardList, ...]:
    """Return the lists of a snapshot that has `new` shards after those of its parent's `lists`.

    The parent's files are named again, not written again, up to a number; then all become one.
    """
    if len(lists) < _MAX_LISTS:
        return (*lists, write_shard_list(dataset, new))
    every = {split: (*known.get(split, ()), *new.get(split, ())) for split in SPLITS}
    return (write_shard_list(dataset, every),)


def read_shard_lists(dataset: Store, lists: Iterable[ShardList]) -> dict[str, tuple[ShardInfo, ...]]:
    """Return the shards by split, in the order of the lists. Raises `StoreError` for a damaged list."""
    found: dict[str, list[ShardInfo]] = {split: [] for split in SPLITS}
    names = [field.name for field in fields(ShardInfo)]
    for one in lists:
        table = _read(dataset, one)
        columns = [table.column(name).to_pylist() for name in ("split", *names)]
        for split, *values in zip(*columns, strict=True):
            found[split].append(ShardInfo(**dict(zip(names, values, strict=True))))
    return {split: tuple(shards) for split, shards in found.items()}


def _read(dataset: Store, one: ShardList) -> Table:
    content = dataset.get(one.path)
    if hashlib.sha256(content).hexdigest() != one.sha256:
        raise StoreError(
            f"{dataset.uri}/{one.path} is damaged: its content does not have the hash its snapshot names; "
            "restore it, or create the dataset anew elsewhere"
        )
    return parquet_table(content)
