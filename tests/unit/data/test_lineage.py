"""From a name to the sample, its shard, and the snapshot that brought it."""

from pathlib import Path

import pytest

from data.append import append_snapshot
from data.build import ShardingConfig, build_snapshot
from data.errors import InputError
from data.lineage import added_by, find_by_name, find_shard
from data.shard_write import write_shards_here
from data.snapshot import Snapshot, load_snapshot
from data.store import Store
from infra.store import open_store
from pipelines.shard import main
from pipelines.shard_show_command import ShowConfig, show
from tests.image_samples import fill, photos, png

CONFIG = ShardingConfig(shard_size_bytes=8000, max_reject_fraction=0.5)
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


def test_show_tells_what_a_shard_holds(dataset: Store) -> None:
    shard = head(dataset).splits["train"][-1]
    for name in (shard.path, shard.path.rpartition("/")[2]):
        values = show(ShowConfig(dataset=dataset.uri, shard=name)).values
        assert values["names"] == [row for row in values["names"] if row.startswith("train/dog/é new")]
        assert values["by_class"] == {"dog": 1}
        assert (values["split"], values["sha256"]) == ("train", shard.sha256)
        assert values["added_by"] == head(dataset).id
    assert find_shard(head(dataset), "train") is None
    with pytest.raises(InputError, match=r"no shard 'x\.tar' in snapshot 2-"):
        show(ShowConfig(dataset=dataset.uri, shard="x.tar"))


def test_only_one_thing_is_shown() -> None:
    with pytest.raises(InputError, match="only one of"):
        ShowConfig(dataset="x", key="a", urls=True)
    with pytest.raises(InputError, match="presign_s is 0"):
        ShowConfig(dataset="x", presign_s=0)
