"""Bad and lost samples keep their place, up to a budget; a fault of the store is no bad sample."""

import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest

from data.errors import InputError
from data.loader import TooManyBadSamplesError
from data.shard_cache import ShardCache
from data.shard_index import read_index
from data.store import ObjectNotFoundError, StoreError
from data.tar_reader import ShardReader, StoredImage
from infra.folder_store import FolderStore
from tests.small_loaders import (
    Dataset,
    Row,
    decode_threads,
    real_rows,
    train_loader,
)


def break_samples(monkeypatch: pytest.MonkeyPatch, keys: set[str]) -> None:
    """Bytes that pass their checksum and still are no image, as an adopted shard may hold."""
    real = ShardReader.read

    def read(self: ShardReader, shard: int, row: int) -> StoredImage:
        stored = real(self, shard, row)
        return stored._replace(image_bytes=b"broken") if stored.name in keys else stored

    monkeypatch.setattr(ShardReader, "read", read)


@pytest.mark.parametrize("num_threads", [0, 2])
def test_a_bad_sample_keeps_its_place(
    cached: Dataset, expected: list[list[Row]], monkeypatch: pytest.MonkeyPatch, num_threads: int
) -> None:
    bad = {expected[1][0][0], expected[1][9][0], expected[2][5][0]}
    break_samples(monkeypatch, bad)
    loader = train_loader(cached, num_threads=num_threads, max_bad_samples=3)
    batches = [*loader.batches(0), *loader.batches(0)]
    assert [list(batch.keys) for batch in batches[:3]] == [[r[0] for r in b] for b in expected]
    assert [(batch.weights_B == 0).nonzero().flatten().tolist() for batch in batches[:3]] == [[], [0, 9], [5]]
    assert not batches[1].images_BHWC[9].any()
    assert tuple(loader.bad_samples) == (
        expected[1][0][0],
        expected[1][9][0],
        expected[2][5][0],
    )  # Counted once each.


def test_too_many_bad_samples_are_fatal(
    cached: Dataset, expected: list[list[Row]], monkeypatch: pytest.MonkeyPatch
) -> None:
    break_samples(monkeypatch, {row[0] for row in expected[0][:3]})
    with pytest.raises(
        TooManyBadSamplesError, match="3 samples cannot be read or decoded, max_bad_samples allows 2"
    ):
        list(train_loader(cached, max_bad_samples=2, num_threads=2).batches(0))


@dataclass(frozen=True, kw_only=True)
class FailingStore(FolderStore):
    """Loses its shards."""

    def get_range(self, path: str, start: int, size_bytes: int) -> bytes:
        raise StoreError(f"{path}: the store is gone")


def test_a_store_fault_surfaces_and_is_no_bad_sample(cached: Dataset) -> None:
    failing = FailingStore(root=cached[0].root)
    loader = train_loader(cached, store=failing, cache=None, num_threads=2)
    with pytest.raises(StoreError, match="the store is gone"):
        list(loader.batches(0))
    assert loader.bad_samples == {}
    assert decode_threads() == set()


def test_cache_is_shared_by_later_loaders(cached: Dataset, tmp_path: Path) -> None:
    """A new process finds the shards on the disk: no download."""
    cache = ShardCache(tmp_path / "cache", 10**9)
    list(train_loader(cached, cache=cache).batches(0))
    failing = FailingStore(root=cached[0].root)
    assert (
        len(list(train_loader(cached, store=failing, cache=ShardCache(tmp_path / "cache", 10**9)).batches(0)))
        == 3
    )


def test_a_lost_shard_keeps_its_samples_places(
    cached: Dataset, expected: list[list[Row]], tmp_path: Path
) -> None:
    """Without it the other samples of an epoch are the same, at the same positions, with the same pixels."""
    _, snapshot, _ = cached
    store = FolderStore(root=tmp_path)
    shutil.copytree(cached[0].root, store.root, dirs_exist_ok=True)
    lost, *_ = snapshot.splits["train"]
    gone = {f"{name}" for name in read_index(store, lost)["name"].to_pylist()}
    store.delete(lost.path)
    loader = train_loader(cached, store=store, cache=None, num_threads=2, missing_shards="skip")
    assert [real_rows(batch) for batch in loader.batches(0)] == [
        [row for row in step if row[0] not in gone] for step in expected
    ]
    assert set(loader.bad_samples) <= gone
    few = train_loader(cached, store=store, cache=None, missing_shards="skip", max_bad_samples=2)
    with pytest.raises(TooManyBadSamplesError, match=rf"{lost.path} does not exist"):
        list(few.batches(0))
    with pytest.raises(ObjectNotFoundError, match=rf"{lost.path} does not exist"):
        list(train_loader(cached, store=store, cache=None).batches(0))
    with pytest.raises(InputError, match="missing_shards is 'ignore': give 'error' or 'skip'"):
        train_loader(cached, missing_shards="ignore")
