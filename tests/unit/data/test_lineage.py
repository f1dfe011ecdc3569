"""From a name to the sample, its shard, and the snapshot that brought it."""

import json
import tarfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from data.append import append_snapshot
from data.build import ShardingConfig, build_snapshot
from data.card import Provenance, write_card
from data.corpora.file_listings import FileListings
from data.corpora.parquet_stage import ParquetReader
from data.corpora.tasks import map_here
from data.errors import InputError
from data.lineage import added_by, find_by_name, find_shard
from data.shard_index import parquet_bytes
from data.shard_write import write_shards_here
from data.snapshot import Snapshot, load_snapshot
from data.store import Store
from infra.folder_store import FolderStore
from infra.store import open_store
from pipelines.shard import main
from pipelines.shard_show_command import ShowConfig, show
from tests.image_samples import fill, photos, png

CONFIG = ShardingConfig(shard_size_bytes=8000, max_reject_fraction=0.5)
_IMAGES: Any = pa.schema([("image", pa.binary()), ("label", pa.string())])
FILES = photos("train/cat", 6, 0) | photos("train/dog", 6, 100) | photos("test/cat", 3, 200)


@pytest.fixture
def dataset(tmp_path: Path) -> Store:
    """Two snapshots; the first has a broken image, the second brought one image."""
    dataset = open_store(str(tmp_path / "dataset"))
    corpus = fill(tmp_path / "corpus", {**FILES, "train/cat/broken.png": b"no picture"})
    first = build_snapshot(corpus, dataset, CONFIG, write_shards_here(corpus, dataset, CONFIG.limits))
    incoming = fill(tmp_path / "incoming", {"train/dog/é new.v2.png": png(900)})
    append_snapshot(first, incoming, dataset, CONFIG, write_shards_here(incoming, dataset, CONFIG.limits))
    return dataset


def head(dataset: Store) -> Snapshot:
    return load_snapshot(dataset, "HEAD")


def test_a_sample_is_found_by_its_name_its_path_and_its_key(dataset: Store) -> None:
    snapshot = head(dataset)
    (sample,) = find_by_name(dataset, snapshot, "train/dog/é new.v2.png").samples  # its path: appends rename
    for name in (sample.row["name"], sample.row["key"]):
        assert find_by_name(dataset, snapshot, name).samples == [sample]
    assert added_by(dataset, snapshot, sample.shard) == snapshot.id
    (old,) = find_by_name(dataset, snapshot, "train/cat/000.png").samples
    assert added_by(dataset, snapshot, old.shard) == snapshot.parent
    start = old.row["offset"]
    content = dataset.get(old.shard.path)[start : start + old.row["size"]]
    assert content == FILES["train/cat/000.png"]


def test_show_answers_for_one_image(dataset: Store, capsys: pytest.CaptureFixture[str]) -> None:
    values = show(ShowConfig(dataset=dataset.uri, key="train/cat/000.png")).values
    (sample,) = values["samples"]
    assert sample["corpus_path"] == "train/cat/000.png"
    assert sample["labels"] == ["cat"]
    assert sample["pixels"] == "8x8"
    assert sample["added_by"].startswith("1-")
    text = capsys.readouterr().out
    assert f"sha256      {sample['sha256']}" in text


def test_a_rejected_image_answers_with_its_reason(dataset: Store, capsys: pytest.CaptureFixture[str]) -> None:
    values = show(ShowConfig(dataset=dataset.uri, key="train/cat/broken.png")).values
    assert values["samples"] == []
    assert [reject["reason"] for reject in values["rejects"]] == ["unreadable"]
    assert "was left out: unreadable" in capsys.readouterr().out


def test_an_unknown_name_is_answered_with_names_like_it(dataset: Store) -> None:
    with pytest.raises(
        InputError, match=r"no image 'train/cat/00.png' in .*names like it: .*'train/cat/00\d\.png'"
    ):
        main(["show", "--dataset", dataset.uri, "--key", "train/cat/00.png"])


def test_show_tells_what_a_shard_holds(dataset: Store, capsys: pytest.CaptureFixture[str]) -> None:
    """It printed names, but not where they came from."""
    shard = head(dataset).splits["train"][-1]
    for name in (shard.path, shard.path.rpartition("/")[2]):
        values = show(ShowConfig(dataset=dataset.uri, shard=name)).values
        (sample,) = values["samples"]
        assert sample["name"].startswith("train/dog/é new.v2.png@"), "an append renames"
        assert sample["corpus_path"] == "train/dog/é new.v2.png"
        assert f"  {sample['name']} (corpus file {sample['corpus_path']})" in capsys.readouterr().out
        assert values["by_class"] == {"dog": 1}
        assert (values["split"], values["sha256"]) == ("train", shard.sha256)
        assert values["added_by"] == head(dataset).id
    assert find_shard(head(dataset), "train") is None
    with pytest.raises(InputError, match=r"no shard 'x\.tar' in snapshot 2-"):
        show(ShowConfig(dataset=dataset.uri, shard="x.tar"))


def test_a_sample_of_parquet_is_traced_to_its_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Shards, indexes and quarantine named a staging tar that was removed when the images stood in shards."""
    corpus = FolderStore(root=tmp_path / "hub")
    name = "data/train-00000.parquet"
    for path, images in ((name, [*map(png, range(20)), b"no picture"]), ("test.parquet", [png(99)])):
        corpus.put(path, parquet_bytes([{"image": image, "label": "x"} for image in images], _IMAGES))
    dataset = FolderStore(root=tmp_path / "dataset")
    reader = ParquetReader(
        corpus=corpus, files=tuple(corpus.list()), run=map_here,
        listings=FileListings(folder=dataset.sub("staging")),
    )  # fmt: skip
    write = write_shards_here(reader.images, dataset, CONFIG.limits)
    snapshot = build_snapshot(reader, dataset, CONFIG, write)
    write_card(
        dataset, snapshot, Provenance(corpus=corpus.uri, config={}, versions={}),
        corpus=reader.images, limits=CONFIG.limits,
    )  # fmt: skip
    reader.unstage()

    values = show(ShowConfig(dataset=dataset.uri, key=name)).values
    names = sorted(sample["name"] for sample in values["samples"])
    assert names == [f"{name}/{row:08d}.png" for row in range(20)]
    assert {(sample["corpus"], sample["corpus_path"]) for sample in values["samples"]} == {(corpus.uri, name)}
    assert "and 11 more; --json has them all" in capsys.readouterr().out
    (reject,) = values["rejects"]
    assert (reject["key"], reject["path"], reject["reason"]) == (f"{name}/00000020.bin", name, "unreadable")
    (sample,) = show(ShowConfig(dataset=dataset.uri, key=f"{name}/00000007.png")).values["samples"]
    assert sample["corpus_path"] == name
    for shard in snapshot.splits["eval"]:
        shown = show(ShowConfig(dataset=dataset.uri, shard=shard.path)).values
        assert shown["samples"] == [{"name": "test.parquet/00000000.png", "corpus_path": "test.parquet"}]
    for shard in snapshot.splits["train"]:
        with tarfile.open(dataset.root / shard.path) as tar:
            abouts = [tar.extractfile(member) for member in tar if member.name.endswith(".json")]
            assert {json.load(about)["path"] for about in abouts if about} == {name}


def test_the_same_parquet_gives_the_same_shards(tmp_path: Path) -> None:
    """Wherever it lies: what names the copies, a file's address and time, must not reach a shard."""
    content = parquet_bytes([{"image": png(seed), "label": "x"} for seed in range(20)], _IMAGES)
    found: list[set[str]] = []
    for name in ("one", "two"):
        corpus, dataset = FolderStore(root=tmp_path / name), FolderStore(root=tmp_path / f"{name}-dataset")
        corpus.put("a.parquet", content)
        listings = FileListings(folder=dataset.sub("staging"))
        reader = ParquetReader(corpus=corpus, files=tuple(corpus.list()), run=map_here, listings=listings)
        build_snapshot(reader, dataset, CONFIG, write_shards_here(reader.images, dataset, CONFIG.limits))
        found.append({info.path for info in dataset.list("shards")})
    assert found[0] == found[1] != set()


def test_only_one_thing_is_shown() -> None:
    with pytest.raises(InputError, match="only one of"):
        ShowConfig(dataset="x", key="a", urls=True)
    with pytest.raises(InputError, match="presign_s is 0"):
        ShowConfig(dataset="x", presign_s=0)
