import json
from pathlib import Path
from typing import Any

import pytest

from data.corpora.tasks import map_here
from data.corpora.webdataset_tars import SampleLabels, WebDatasetReader
from data.errors import InputError
from tests.corpus_listing import content_of, listed
from tests.image_samples import fill
from tests.tar_samples import tar_bytes


def reader(folder: Path, tars: dict[str, dict[str, bytes]], **options: Any) -> WebDatasetReader:
    store = fill(folder, {path: tar_bytes(members) for path, members in tars.items()})
    return WebDatasetReader(store=store, tars=tuple(store.list()), run=map_here, **options)


def test_images_are_ranges_and_labels_are_names(tmp_path: Path) -> None:
    made = reader(
        tmp_path,
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
    (row,) = listed(reader(tmp_path, {"0.tar": {"1.jpg": b"x", "1.cls": b" 17 "}}))
    assert row["labels"] == ["17"]


def test_labels_in_json(tmp_path: Path) -> None:
    about = [{"about": {"label": "cat"}}, {"about": {"label": ["cat", 0]}}]
    members = {f"{i}.{kind}": content for i, item in enumerate(about)
               for kind, content in (("jpg", b"x"), ("json", json.dumps(item).encode()))}  # fmt: skip
    labels = SampleLabels(source="json:about.label", class_names=("dog",))
    rows = listed(reader(tmp_path, {"0.tar": members}, labels=labels))
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
        listed(reader(tmp_path, {"0.tar": members}, labels=labels))
    assert "\n" not in str(caught.value)


def test_label_source_is_checked() -> None:
    with pytest.raises(InputError, match="'txt': give cls or json:FIELD"):
        SampleLabels(source="txt")
    with pytest.raises(InputError, match="without a field"):
        SampleLabels(source="json:")
