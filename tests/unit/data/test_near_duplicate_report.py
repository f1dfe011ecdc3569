"""Pairs are named, leaks come first, and what is dropped leaves no two alike."""

import hashlib
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data import near_duplicate_report
from data.duplicates import SplitShard
from data.errors import InputError
from data.near_duplicate_report import NearReport, find_near_duplicates, read_near_duplicates
from data.near_duplicate_report import write_near_duplicates as write
from data.shard_index import INDEX_SCHEMA, parquet_bytes
from data.sharding_config import LeakPolicy, NearPolicy, ShardingConfig
from data.types import ShardInfo
from infra.folder_store import FolderStore

_EMPTY_ROW = dict.fromkeys(INDEX_SCHEMA.names)


class Memory:
    """Indexes only: no tar is read to find what looks alike."""

    def __init__(self, folder: Path) -> None:
        self.dataset = FolderStore(root=folder)

    def shard(self, split: str, hashes: dict[str, int | None]) -> SplitShard:
        rows = [{**_EMPTY_ROW, "name": name, "perceptual_hash": value} for name, value in hashes.items()]
        index = parquet_bytes(rows, INDEX_SCHEMA)
        name = "-".join([split, *hashes])
        self.dataset.put(f"{name}.parquet", index)
        info = ShardInfo(
            path=f"{name}.tar", index_path=f"{name}.parquet", num_samples=len(rows), size_bytes=0, crc32c=0,
            sha256="", index_sha256=hashlib.sha256(index).hexdigest(),
        )  # fmt: skip
        return SplitShard(split=split, info=info)


@pytest.fixture
def memory(tmp_path: Path) -> Memory:
    return Memory(tmp_path)


def config(policy: NearPolicy, max_distance: int, leak_policy: LeakPolicy = "error") -> ShardingConfig:
    return ShardingConfig(
        near_duplicates=policy, near_duplicate_distance=max_distance, leak_policy=leak_policy
    )


def pairs(report: NearReport) -> list[tuple[str, str, int]]:
    return [(pair.name, pair.twin_name, pair.distance) for pair in report.listed]


def test_leaks_first_then_the_closest(memory: Memory) -> None:
    new = [
        memory.shard("train", {"a": 0b0, "b": 0b1, "c": None, "d": 0b1111_0000}),
        memory.shard("train", {"e": 0b1_0000_0000_1111, "f": 0b11 << 60}),
        memory.shard("eval", {"g": 0b11_1111_0000, "h": None}),
    ]
    report = find_near_duplicates(memory.dataset, new, config=config("report", 2))
    assert pairs(report) == [("d", "g", 2), ("b", "a", 1), ("f", "a", 2)]
    assert (report.num_pairs, report.num_leaks, report.dropped) == (3, 1, ())
    first = report.listed[0]
    assert (first.split, first.shard, first.row) == ("train", new[0].info.path, 3)
    assert (first.twin_split, first.twin_shard, first.twin_row) == ("eval", new[2].info.path, 0)
    assert first.detail == "looks like eval image 'g' (2 of 64 bits differ)"
    path = write(memory.dataset, report.listed)
    assert read_near_duplicates(memory.dataset, path, max_rows=2) == list(report.listed[:2])


def test_an_append_compares_with_what_is_known_and_not_that_again(memory: Memory) -> None:
    known = [memory.shard("train", {"a": 0, "b": 1}), memory.shard("eval", {"c": 7 << 40})]
    new = [memory.shard("train", {"d": 3}), memory.shard("eval", {"e": 7 << 40})]
    report = find_near_duplicates(memory.dataset, new, known=known, config=config("drop", 1))
    assert pairs(report) == [("e", "c", 0), ("d", "b", 1)]
    assert {pair.name for pair in report.dropped} == {"d", "e"}


@pytest.mark.parametrize(("leak_policy", "gone"), [("error", "a"), ("drop_train", "a"), ("drop_eval", "b")])
def test_the_leak_policy_says_which_side_goes(memory: Memory, leak_policy: LeakPolicy, gone: str) -> None:
    new = [memory.shard("train", {"a": 5}), memory.shard("eval", {"b": 4})]
    report = find_near_duplicates(memory.dataset, new, config=config("drop", 1, leak_policy))
    assert [(pair.name, pair.reason) for pair in report.dropped] == [(gone, "near_leak")]


def test_off_reads_nothing(memory: Memory) -> None:
    shard = memory.shard("train", {"a": 0})
    memory.dataset.delete(shard.info.index_path)
    report = find_near_duplicates(memory.dataset, [shard], config=config("off", 4))
    assert (report.num_pairs, report.listed) == (0, ())


def test_too_many_to_drop_is_said(memory: Memory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(near_duplicate_report, "MAX_PAIRS", 5)
    new = [memory.shard("train", dict.fromkeys("abcdefgh", 7))]
    with pytest.raises(InputError, match="7 pairs of images look alike"):
        find_near_duplicates(memory.dataset, new, config=config("drop", 4))
    report = find_near_duplicates(memory.dataset, new, config=config("report", 4))
    assert (report.num_pairs, len(report.listed)) == (7, 5)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(st.booleans(), st.integers(0, 255)), min_size=1, max_size=25), st.integers(0, 3))
def test_dropping_leaves_no_two_alike_and_drops_nothing_else(
    images: list[tuple[bool, int]], max_distance: int
) -> None:
    with TemporaryDirectory() as folder:
        memory = Memory(Path(folder))
        hashes = {f"n{number}": value for number, (_, value) in enumerate(images)}
        splits = {
            f"n{number}": "eval" if held_out else "train" for number, (held_out, _) in enumerate(images)
        }
        new = [
            memory.shard(split, {name: hashes[name] for name in hashes if splits[name] == split})
            for split in ("train", "eval")
            if split in splits.values()
        ]
        report = find_near_duplicates(memory.dataset, new, config=config("drop", max_distance))
    gone = {pair.name for pair in report.dropped}
    kept = [name for name in hashes if name not in gone]

    def alike(one: str, other: str) -> bool:
        return (hashes[one] ^ hashes[other]).bit_count() <= max_distance

    assert not any(alike(one, other) for n, one in enumerate(kept) for other in kept[:n])
    assert all(any(alike(name, other) for other in kept) for name in gone)
    assert len(report.dropped) == len(gone)
