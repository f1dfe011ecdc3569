from pathlib import Path
from typing import Any

import pytest
import webdataset

from data.corpora.tar_samples import SAMPLE_SCHEMA, scan_samples
from data.errors import InputError
from tests.image_samples import fill, png
from tests.tar_samples import span_of, tar_bytes


def scan(folder: Path, members: dict[str, bytes], **options: str) -> list[dict[str, Any]]:
    store = fill(folder, {"some.tar": tar_bytes(members)})
    batches = list(scan_samples(span_of(store, "some.tar"), store=store, **options))
    assert all(batch.schema == SAMPLE_SCHEMA for batch in batches)
    return [row for batch in batches for row in batch.to_pylist()]


def test_samples_of_webdatasets_own_writer(tmp_path: Path) -> None:
    images = [png(seed) for seed in range(5)]
    with webdataset.TarWriter(str(tmp_path / "some.tar")) as writer:
        for number, image in enumerate(images):
            writer.write(
                {"__key__": f"a/{number:04d}", "png": image, "cls": number, "json": {"label": "cat"}}
            )
    store = fill(tmp_path, {})
    (batch,) = scan_samples(span_of(store, "some.tar"), store=store)
    rows = batch.to_pylist()
    content = (tmp_path / "some.tar").read_bytes()
    assert [content[row["offset"] : row["offset"] + row["size_bytes"]] for row in rows] == images
    assert [row["key"] for row in rows] == [f"a/{number:04d}" for number in range(5)]
    assert rows[3]["name"] == "a/0003.png"
    assert rows[3]["extension"] == "png"
    assert rows[3]["cls"] == "3"
    assert rows[3]["json"] == '{"label": "cat"}'


def test_what_webdataset_skips_is_skipped(tmp_path: Path) -> None:
    members = {
        "__meta__/x.jpg": b"x",
        "__info__": b"x",
        ".DS_Store": b"x",
        "a/._b.jpg": b"x",
        "a/b.jpg": b"y",
    }
    (row,) = scan(tmp_path, members)
    assert row["key"] == "a/b"
    assert row["cls"] is None
    assert row["json"] is None
    assert scan(tmp_path / "empty", {}) == []


def test_the_image_is_chosen(tmp_path: Path) -> None:
    members = {"k.txt": b"a caption", "k.input.JPG": b"one", "k.mask.png": b"other", "k.cls": b"7"}
    (row,) = scan(tmp_path / "one", members, image_extension=".input.jpg")
    assert row["extension"] == "input.jpg"
    assert row["size_bytes"] == 3
    with pytest.raises(InputError, match=r"has 2 images among cls, input.jpg, mask.png, txt: say which one"):
        scan(tmp_path / "two", members)
    with pytest.raises(InputError, match=r"has no image 'webp' among .*: leave it out, or correct"):
        scan(tmp_path / "three", members, image_extension="webp")


def test_a_label_belongs_to_its_own_image(tmp_path: Path) -> None:
    """`x.meta.json` took the place of `x.json`, and `x.seg.cls` that of `x.cls`: wrong labels, silently."""
    members = {
        "x.png": b"one", "x.json": b"{}", "x.cls": b"1", "x.meta.json": b"[]", "x.seg.cls": b"2",
        "x.boxes.json": b"\xff" * (1 << 21),
    }  # fmt: skip
    (row,) = scan(tmp_path / "one", members)
    assert (row["json"], row["cls"]) == ("{}", "1")
    (row,) = scan(tmp_path / "two", {"x.seg.png": b"y", **members}, image_extension="seg.png")
    assert (row["json"], row["cls"]) == ("{}", "2")
    (row,) = scan(tmp_path / "three", {"img.001.jpg": b"x", "img.001.cls": b"3"})
    assert row["cls"] == "3"
    (row,) = scan(tmp_path / "four", {"x.png": b"x", "x.meta.json": b"[]"})
    assert row["json"] is None


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"a.txt": b"x", "a.cls": b"1"}, "sample 'a' of tar 'some.tar' has no image among cls, txt"),
        ({"a.jpg": b"x", "a.JPG": b"x"}, "has the member 'a.JPG' twice"),
        ({"a.jpg": b"x", "a.json": b"{" * (1 << 20) + b"{"}, "has 1048577 bytes; .* may have 1048576"),
        ({"a.jpg": b"x", "a.cls": b"\xff"}, "member 'a.cls' of tar 'some.tar' is not UTF-8"),
    ],
)
def test_bad_samples_are_one_clear_line(tmp_path: Path, members: dict[str, bytes], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        scan(tmp_path, members)
    assert "\n" not in str(caught.value)
