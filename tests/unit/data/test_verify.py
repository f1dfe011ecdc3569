"""Every kind of damage is found and named; what is whole is not."""

import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from data.append import append_snapshot
from data.shard_index import INDEX_SCHEMA, parquet_bytes, read_index
from data.shard_write import write_shards_here
from data.sharding_config import ShardingConfig
from data.snapshot import Snapshot, seen_paths
from data.store import StoreError
from data.types import ShardInfo
from data.verify import Damage, verify_lists, verify_shard
from infra.folder_store import FolderStore
from tests.card_dataset import card_dataset
from tests.image_samples import fill, png
from tests.small_dataset import small_dataset


def verify(dataset: FolderStore, snapshot: Snapshot) -> list[Damage]:
    shards = [shard for found in snapshot.splits.values() for shard in found]
    return [damage for shard in shards for damage in verify_shard(shard, dataset=dataset)]


def flip_a_bit(dataset: FolderStore, path: str) -> None:
    content = bytearray(dataset.get(path))
    content[len(content) // 2] ^= 1
    dataset.put(path, bytes(content))


def test_a_whole_dataset_is_whole(tmp_path: Path) -> None:
    dataset, snapshot = small_dataset(tmp_path)
    assert verify(dataset, snapshot) == []
    assert verify_lists(snapshot, dataset) == ()


@pytest.mark.parametrize("part", ["path", "index_path"])
@pytest.mark.parametrize(
    ("spoil", "problem"),
    [
        (flip_a_bit, "holds other bytes than were written (sha256)"),
        (FolderStore.delete, "is missing"),
    ],
)
def test_damage_is_found(
    tmp_path: Path, part: str, spoil: Callable[[FolderStore, str], None], problem: str
) -> None:
    dataset, snapshot = small_dataset(tmp_path)
    path = getattr(snapshot.splits["train"][1], part)
    spoil(dataset, path)
    assert verify(dataset, snapshot) == [Damage(path=path, problem=problem)]


def test_all_damage_is_found_at_once(tmp_path: Path) -> None:
    """Who restores one file should not find the next one broken."""
    dataset, snapshot = small_dataset(tmp_path)
    first, second = snapshot.splits["train"][:2]
    spoilt = (first.index_path, first.path, second.path)
    for path in spoilt:
        flip_a_bit(dataset, path)
    assert [damage.path for damage in verify(dataset, snapshot)] == list(spoilt)


def test_a_tar_cut_short_is_found(tmp_path: Path) -> None:
    dataset, snapshot = small_dataset(tmp_path)
    shard = snapshot.splits["eval"][0]
    dataset.put(shard.path, dataset.get(shard.path)[:-1024])
    (damage,) = verify(dataset, snapshot)
    assert damage.path == shard.path
    assert f"{shard.size_bytes} were written" in damage.problem


@pytest.mark.parametrize(
    ("column", "change", "problem"),
    [
        ("offset", 512, "is not where the tar has that image"),
        ("crc32c", 1, "has another crc32c than its image"),
    ],
)
def test_an_index_that_is_wrong_from_the_start_is_found(
    tmp_path: Path, column: str, change: int, problem: str
) -> None:
    """Its hash is the one that its snapshot names: only the tar shows it."""
    dataset, snapshot = small_dataset(tmp_path)
    shard = snapshot.splits["train"][0]
    rows = read_index(dataset, shard).to_pylist()
    rows[2][column] ^= change
    wrong = _with_index(dataset, shard, parquet_bytes(rows, INDEX_SCHEMA))
    (damage,) = verify_shard(wrong, dataset=dataset)
    assert damage.path == shard.index_path
    assert damage.problem == f"row 2 ({rows[2]['name']}) {problem}"
    fewer = _with_index(dataset, shard, parquet_bytes(rows[1:], INDEX_SCHEMA))
    assert "the snapshot says" in verify_shard(fewer, dataset=dataset)[0].problem


def test_lists_are_checked(tmp_path: Path) -> None:
    dataset, snapshot = small_dataset(tmp_path)
    flip_a_bit(dataset, snapshot.listing_paths[0])
    assert [damage.path for damage in verify_lists(snapshot, dataset)] == [snapshot.listing_paths[0]]
    dataset.delete(snapshot.listing_paths[0])
    assert verify_lists(snapshot, dataset)[0].problem == "is missing"


def test_near_duplicates_are_checked(tmp_path: Path) -> None:
    dataset, _, appended = card_dataset(tmp_path)
    (path,) = (info.path for info in dataset.list("near-duplicates"))
    flip_a_bit(dataset, path)
    assert [damage.path for damage in verify_lists(appended, dataset)] == [path]


def test_what_an_append_reads_is_checked_too(tmp_path: Path) -> None:
    """The parent's listing, and the notes of appends that kept nothing."""
    dataset, first = small_dataset(tmp_path)
    incoming = fill(tmp_path / "incoming", {"train/a/new.png": png(1)})
    config = ShardingConfig()
    second = append_snapshot(
        first, incoming, dataset, config, write_shards_here(incoming, dataset, config.limits)
    )
    assert second is not None
    broken = fill(tmp_path / "broken", {"train/a/broken.png": b"no picture"})
    run_all = write_shards_here(broken, dataset, config.limits)
    assert append_snapshot(second, broken, dataset, config, run_all) is None
    (note,) = seen_paths(dataset, [second, first])
    assert verify_lists(second, dataset) == ()
    flip_a_bit(dataset, first.listing_paths[0])
    flip_a_bit(dataset, note)
    assert {damage.path for damage in verify_lists(second, dataset)} == {first.listing_paths[0], note}
    with pytest.raises(StoreError, match=r"listings/.* is damaged: .*; restore it"):
        append_snapshot(second, broken, dataset, config, run_all)


def _with_index(dataset: FolderStore, shard: ShardInfo, content: bytes) -> ShardInfo:
    dataset.put(shard.index_path, content)
    return replace(shard, index_sha256=hashlib.sha256(content).hexdigest())
