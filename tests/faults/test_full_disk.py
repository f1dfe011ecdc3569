"""A disk that is really full: one clear line, nothing half there, and the next try goes on."""

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest

from data.build import build_snapshot
from data.corpora.file_listings import FileListings
from data.corpora.parquet_images import ImageColumns
from data.corpora.parquet_stage import copy_images
from data.duplicates import SplitShard
from data.near_duplicate_report import find_near_duplicates
from data.shard_index import parquet_bytes
from data.shard_write import write_shards_here
from data.sharding_config import ShardingConfig
from data.snapshot import snapshot_numbers
from data.store import StoreError
from data.temporary_folder import TemporaryFolderFullError
from infra.folder_store import FolderStore
from tests.conftest import REPOSITORY
from tests.faults.full_disk import fill_disk
from tests.small_dataset import small_dataset

pytestmark = [pytest.mark.integration, pytest.mark.faults]

_CONFIG = ShardingConfig(shard_size_bytes=16_000)
_IMAGE_SCHEMA = pa.schema([("image", pa.binary()), ("label", pa.string())])


def put(store: FolderStore, source: Path) -> None:
    store.put("old", source.read_bytes())


def put_if_absent(store: FolderStore, source: Path) -> None:
    store.put_if_absent("new", source.read_bytes())


def upload(store: FolderStore, source: Path) -> None:
    store.upload(source, "old")


@pytest.mark.parametrize("write", [put, put_if_absent, upload])
def test_a_folder_store_that_is_full(
    small_disk: Path, tmp_path: Path, write: Callable[[FolderStore, Path], None]
) -> None:
    store = FolderStore(root=small_disk / "store")
    store.put("old", b"old")
    source = tmp_path / "source"
    source.write_bytes(bytes(8192))
    rest = fill_disk(small_disk)
    with pytest.raises(StoreError, match=r"^file:///.*/store/(old|new): No space left on device$") as caught:
        write(store, source)
    assert caught.value.errno == errno.ENOSPC
    assert store.get("old") == b"old"
    assert os.listdir(store.root) == ["old"]
    rest.unlink()
    write(store, source)


def test_sharding_into_a_full_folder_goes_on_when_there_is_room(small_disk: Path, tmp_path: Path) -> None:
    made, expected = small_dataset(tmp_path, num_train=60, shard_size_bytes=_CONFIG.shard_size_bytes)
    corpus, dataset = FolderStore(root=made.root.parent / "corpus"), FolderStore(root=small_disk / "dataset")
    run_all = write_shards_here(corpus, dataset, _CONFIG.limits)
    with pytest.raises(StoreError, match=r"/dataset/\S+: No space left on device$"):
        build_snapshot(corpus, dataset, _CONFIG, run_all)
    assert snapshot_numbers(dataset) == []
    whole = {info.path: info.size_bytes for info in made.list()}
    written = {info.path: info.size_bytes for info in dataset.list()}
    assert any(path.startswith("shards/") for path in written)
    for path, size_bytes in written.items():
        assert path.startswith("receipts/") or whole[path] == size_bytes
    subprocess.run(["mount", "-o", "remount,size=4m", str(small_disk)], check=True)
    assert build_snapshot(corpus, dataset, _CONFIG, run_all).id == expected.id


def test_a_full_temporary_folder_is_named(
    small_disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, _ = small_dataset(tmp_path, num_train=6)
    corpus, dataset = FolderStore(root=made.root.parent / "corpus"), FolderStore(root=tmp_path / "dataset2")
    monkeypatch.setattr("tempfile.tempdir", str(small_disk))
    rest = fill_disk(small_disk)
    with pytest.raises(
        TemporaryFolderFullError, match=rf"no space left in the temporary folder {small_disk}: .*TMPDIR"
    ):
        build_snapshot(corpus, dataset, _CONFIG, write_shards_here(corpus, dataset, _CONFIG.limits))
    assert list(dataset.list()) == []
    rest.unlink()
    assert os.listdir(small_disk) == []


def test_near_duplicates_and_staged_images_in_a_full_temporary_folder(
    small_disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, snapshot = small_dataset(tmp_path)
    new = [SplitShard(split=split, info=info) for split, found in snapshot.splits.items() for info in found]
    corpus = FolderStore(root=tmp_path / "parquet")
    corpus.put("a.parquet", parquet_bytes([{"image": bytes(20_000), "label": "x"}], _IMAGE_SCHEMA))
    (info,) = corpus.list()
    staging = corpus.sub("staging")
    monkeypatch.setattr("tempfile.tempdir", str(small_disk))
    fill_disk(small_disk)
    with pytest.raises(TemporaryFolderFullError, match="no space left in the temporary folder"):
        find_near_duplicates(made, new, config=_CONFIG)
    with pytest.raises(TemporaryFolderFullError, match="no space left in the temporary folder"):
        copy_images(("0", info), corpus=corpus, listings=FileListings(folder=staging), columns=ImageColumns())
    assert not list(staging.list())


def test_the_command_line_says_it_in_one_line(small_disk: Path, tmp_path: Path) -> None:
    """`verify` of a folder fetches each shard to the temporary folder."""
    made, _ = small_dataset(tmp_path, num_train=6)
    fill_disk(small_disk)
    program = (
        "import sys, tempfile; from pipelines.job import run_main; from data.snapshot import load_snapshot;"
        "from data.verify import verify_shard; from infra.store import open_store;"
        "dataset = open_store(sys.argv[1]); shard = load_snapshot(dataset, 'HEAD').splits['train'][0];"
        "tempfile.tempdir = sys.argv[2];"
        "run_main(lambda _: len(verify_shard(shard, dataset=dataset)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, made.uri, str(small_disk)],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("error: ")
    assert done.stderr.endswith("mend that, and run the same command to go on\n")
    assert "No space left on device" in done.stderr
    assert str(small_disk) in done.stderr
    assert done.stderr.count("\n") == 1
