"""Read a snapshot's objects again and compare them with what the snapshot and the indexes say."""

import hashlib
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import google_crc32c

from data.retirement import damaged_entries
from data.shard_index import is_named_by_content, parquet_table
from data.snapshot import Snapshot, load_chain, seen_paths
from data.store import ObjectNotFoundError, Store
from data.temporary_folder import temporary_folder
from data.types import ShardInfo

_CHUNK_BYTES = 2**20
_MISSING = "is missing"
_OTHER_BYTES = "holds other bytes than were written (sha256)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Damage:
    """One object that is not what it should be."""

    path: str
    problem: str


def verify_shard(shard: ShardInfo, *, dataset: Store) -> tuple[Damage, ...]:
    """Read a tar and its index whole; return what is wrong with them.

    Found are: a missing object, other bytes than were written, and an index whose rows are not the tar's
    images. Raises `StoreError` where the store fails.
    """
    found: list[Damage] = []
    index = _get(dataset, shard.index_path, found)
    if index is not None and hashlib.sha256(index).hexdigest() != shard.index_sha256:
        found.append(Damage(path=shard.index_path, problem=_OTHER_BYTES))
    with temporary_folder("verify-") as scratch:
        tar = scratch / "shard.tar"
        try:
            dataset.download(shard.path, tar)
        except ObjectNotFoundError:
            found.append(Damage(path=shard.path, problem=_MISSING))
        else:
            found += _check_tar(shard, tar)
        if found or index is None:
            return tuple(found)
        rows: list[dict[str, Any]] = parquet_table(index).to_pylist()
        return _compare(shard, rows, tar)


def verify_lists(snapshot: Snapshot, dataset: Store) -> tuple[Damage, ...]:
    """Check the listings, quarantines and near duplicates of the snapshot and its ancestors.

    Their names are those of their content. Also the retirements of any snapshot, which HEAD depends on.
    """
    chain = load_chain(dataset, snapshot)
    named = [(*one.listing_paths, one.quarantine_path, one.near_duplicates_path) for one in chain]
    paths = [path for some in named for path in some if path is not None]
    found: list[Damage] = []
    for path in [*paths, *seen_paths(dataset, chain)]:
        content = _get(dataset, path, found)
        if content is not None and not is_named_by_content(path, content):
            found.append(Damage(path=path, problem=_OTHER_BYTES))
    found += [Damage(path=path, problem="is not a retirement record") for path in damaged_entries(dataset)]
    return tuple(found)


def _get(dataset: Store, path: str, damages: list[Damage]) -> bytes | None:
    try:
        return dataset.get(path)
    except ObjectNotFoundError:
        damages.append(Damage(path=path, problem=_MISSING))
        return None


def _check_tar(shard: ShardInfo, tar: Path) -> list[Damage]:
    if tar.stat().st_size != shard.size_bytes:
        problem = f"has {tar.stat().st_size} bytes, {shard.size_bytes} were written"
        return [Damage(path=shard.path, problem=problem)]
    if _sha256(tar) != shard.sha256:
        return [Damage(path=shard.path, problem=_OTHER_BYTES)]
    return []


def _compare(shard: ShardInfo, rows: list[dict[str, Any]], tar: Path) -> tuple[Damage, ...]:
    """Compare an index with its tar, row by row; both are as they were written."""
    if len(rows) != shard.num_samples:
        problem = f"has {len(rows)} rows, the snapshot says {shard.num_samples}"
        return (Damage(path=shard.index_path, problem=problem),)
    with tarfile.open(tar) as members:
        offsets = {member.name.removeprefix("./"): member.offset_data for member in members}
    found: list[Damage] = []
    with tar.open("rb") as file:
        for number, row in enumerate(rows):
            file.seek(row["offset"])
            if offsets.get(f"{row['key']}.{row['extension']}") != row["offset"]:
                problem = f"row {number} ({row['name']}) is not where the tar has that image"
                found.append(Damage(path=shard.index_path, problem=problem))
            elif google_crc32c.value(file.read(row["size"])) != row["crc32c"]:
                problem = f"row {number} ({row['name']}) has another crc32c than its image"
                found.append(Damage(path=shard.index_path, problem=problem))
    return tuple(found)


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()
