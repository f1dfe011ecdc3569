import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from data.build import build_snapshot
from data.corpora.file_listings import FileListings
from data.corpora.tasks import map_here
from data.corpora.webdataset_tars import SampleLabels, WebDatasetReader
from data.errors import InputError
from data.shard_write import write_shards_here
from data.sharding_config import ShardingConfig
from infra.folder_store import FolderStore
from tests.corpus_listing import content_of, listed
from tests.image_samples import fill, png
from tests.reading_store import ReadingStore
from tests.tar_samples import tar_bytes


def reader(folder: Path, tars: dict[str, dict[str, bytes]], **options: Any) -> WebDatasetReader:
    store = fill(folder, {path: tar_bytes(members) for path, members in tars.items()})
    listings = FileListings(folder=FolderStore(root=folder.parent / "staging"))
    return WebDatasetReader(store=store, tars=tuple(store.list()), run=map_here, listings=listings, **options)


def test_images_are_ranges_and_labels_are_names(tmp_path: Path) -> None:
    made = reader(
        tmp_path / "c",
        {
            "train/0.tar": {"a/1.jpg": b"one", "a/1.cls": b"1\n", "2.JPG": b"two", "2.cls": b"0"},
            "some-val-000.tar": {"1.png": b"three", "1.cls": b"cat"},
            "rest.tar": {"1.png": b"four", "1.cls": b"0"},
        },
        labels=SampleLabels(class_names=("dog", "cat")),
    )
    rows = listed(made)
    assert [(row["key"], row["labels"], row["split"]) for row in rows] == [
        ("rest.tar/1.png", ["dog"], None),
        ("some-val-000.tar/1.png", ["cat"], "eval"),
        ("train/0.tar/2.jpg", ["dog"], "train"),
        ("train/0.tar/a/1.jpg", ["cat"], "train"),
    ]
    assert [content_of(made.store, row) for row in rows] == [b"four", b"three", b"two", b"one"]
    etags = {info.path: info.etag for info in made.store.list()}
    assert all(row["etag"] == etags[row["path"]] for row in rows)


def test_without_a_class_list_an_index_is_the_name(tmp_path: Path) -> None:
    (row,) = listed(reader(tmp_path / "c", {"0.tar": {"1.jpg": b"x", "1.cls": b" 17 "}}))
    assert row["labels"] == ["17"]


def test_labels_in_json(tmp_path: Path) -> None:
    about = [{"about": {"label": "cat"}}, {"about": {"label": ["cat", 0]}}]
    members = {f"{i}.{kind}": content for i, item in enumerate(about)
               for kind, content in (("jpg", b"x"), ("json", json.dumps(item).encode()))}  # fmt: skip
    labels = SampleLabels(source="json:about.label", class_names=("dog",))
    rows = listed(reader(tmp_path / "c", {"0.tar": members}, labels=labels))
    assert [row["labels"] for row in rows] == [["cat"], ["cat", "dog"]]


@pytest.mark.parametrize(
    ("members", "labels", "message"),
    [
        ({"1.jpg": b"x"}, SampleLabels(), r"sample '1' of tar '0.tar' has no .cls beside .* json:FIELD"),
        ({"1.jpg": b"x"}, SampleLabels(source="json:x"), r"has no .json beside its image"),
        ({"1.jpg": b"x", "1.cls": b" "}, SampleLabels(), "has an empty label"),
        (
            {"1.jpg": b"x", "1.cls": b"2"},
            SampleLabels(class_names=("a", "b")),
            "label 2; .* 0 to 1 are allowed",
        ),
        ({"1.jpg": b"x", "1.cls": b"-1"}, SampleLabels(class_names=("a",)), "label -1"),
        ({"1.jpg": b"x", "1.json": b"{"}, SampleLabels(source="json:x"), "json that is not JSON"),
        # These three ended in a traceback.
        ({"1.jpg": b"x", "1.json": b"[" * 99_999}, SampleLabels(source="json:x"), "json that is not JSON"),
        ({"1.jpg": b"x", "1.json": b"9" * 5000}, SampleLabels(source="json:x"), "json that is not JSON"),
        ({"1.jpg": b"x", "1.cls": b"9" * 5000}, SampleLabels(class_names=("a",)), "label 9{20};"),
        (
            {"1.jpg": b"x", "1.json": b'{"y": 1}'},
            SampleLabels(source="json:x"),
            "no field 'x' .* there are: y",
        ),
        ({"1.jpg": b"x", "1.json": b'{"x": 1}'}, SampleLabels(source="json:x.z"), "no field 'z'"),
        (
            {"1.jpg": b"x", "1.json": b'{"x": 1.5}'},
            SampleLabels(source="json:x"),
            r"the label 1.5 in its JSON",
        ),
        ({"1.jpg": b"x", "1.json": b'{"x": []}'}, SampleLabels(source="json:x"), "empty list of labels"),
    ],
)
def test_bad_labels_are_one_clear_line(
    tmp_path: Path, members: dict[str, bytes], labels: SampleLabels, message: str
) -> None:
    with pytest.raises(InputError, match=message) as caught:
        listed(reader(tmp_path / "c", {"0.tar": members}, labels=labels))
    assert "\n" not in str(caught.value)


def test_label_source_is_checked() -> None:
    with pytest.raises(InputError, match="'txt': give cls or json:FIELD"):
        SampleLabels(source="txt")
    with pytest.raises(InputError, match="without a field"):
        SampleLabels(source="json:")


def one_tar(seed: int) -> dict[str, bytes]:
    return {f"{seed}.png": png(seed), f"{seed}.cls": b"0"}


def test_a_second_create_reads_no_tar(tmp_path: Path) -> None:
    """Every rerun of a finished create read the whole corpus to list it; so did dry runs and appends."""
    tars = {"train/0.tar": one_tar(0), "train/1.tar": one_tar(1), "val/0.tar": one_tar(2)}
    made = reader(tmp_path / "c", tars)
    corpus, dataset = ReadingStore(root=tmp_path / "c"), FolderStore(root=tmp_path / "dataset")
    write = write_shards_here(corpus, dataset, ShardingConfig().limits)
    first = build_snapshot(replace(made, store=corpus), dataset, ShardingConfig(), write)
    assert set(corpus.read) == set(tars)
    corpus.read.clear()
    assert build_snapshot(replace(made, store=corpus), dataset, ShardingConfig(), write) == first
    assert corpus.read == []


def test_only_what_is_new_is_read(tmp_path: Path) -> None:
    """A tar that came or changed alone; all of them where the rows depend on other options."""
    rows = listed(reader(tmp_path / "c", {"0.tar": one_tar(0), "1.tar": one_tar(1)}))
    grown = reader(tmp_path / "c", {"1.tar": one_tar(1) | one_tar(5), "2.tar": one_tar(2)})
    corpus = ReadingStore(root=tmp_path / "c")
    found = listed(replace(grown, store=corpus))
    assert [row["key"] for row in found] == ["0.tar/0.png", "1.tar/1.png", "1.tar/5.png", "2.tar/2.png"]
    assert found[0] == rows[0]
    assert set(corpus.read) == {"1.tar", "2.tar"}
    corpus.read.clear()
    named = replace(grown, store=corpus, labels=SampleLabels(class_names=("cat",)))
    assert {tuple(row["labels"]) for row in listed(named)} == {("cat",)}
    assert set(corpus.read) == {"0.tar", "1.tar", "2.tar"}


def test_a_dry_run_keeps_nothing_and_reads_what_is_kept(tmp_path: Path) -> None:
    made = reader(tmp_path / "c", {"0.tar": one_tar(0)})
    corpus = ReadingStore(root=tmp_path / "c")
    dry = replace(made, store=corpus, listings=replace(made.listings, is_read_only=True))
    rows = listed(dry)
    assert not list(made.listings.folder.list())
    assert listed(made) == rows
    corpus.read.clear()
    assert listed(dry) == rows
    assert corpus.read == []
