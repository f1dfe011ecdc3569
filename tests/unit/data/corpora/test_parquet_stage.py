import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data.corpora.file_listings import FileListings
from data.corpora.parquet_images import ImageColumns, holds_images, read_schema
from data.corpora.parquet_stage import ParquetReader
from data.corpora.tasks import map_here
from data.errors import InputError
from data.store import ObjectNotFoundError
from infra.folder_store import FolderStore
from tests.corpus_listing import content_of, listed
from tests.image_samples import jpeg, png

IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
CLASS_LABEL = {"names": ["cat", "dog"], "_type": "ClassLabel"}


def hugging_face(label: Any, image: Any = None) -> dict[bytes, bytes]:
    features = {"image": image or {"_type": "Image"}, "label": label}
    return {b"huggingface": json.dumps({"info": {"features": features}}).encode()}


def write(path: Path, images: list[Any], labels: Any, metadata: dict[bytes, bytes] | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    structs = [image and {"bytes": image, "path": None} for image in images]
    table = pa.table({"image": pa.array(structs, IMAGE), "label": labels})
    pq.write_table(table.replace_schema_metadata(metadata), path, row_group_size=3)


def reader(folder: Path, **columns: Any) -> ParquetReader:
    corpus = FolderStore(root=folder / "corpus")
    return ParquetReader(
        corpus=corpus, files=tuple(corpus.list()), run=map_here,
        listings=FileListings(folder=FolderStore(root=folder / "staging")), columns=ImageColumns(**columns),
    )  # fmt: skip


def test_the_hugging_face_layout(tmp_path: Path) -> None:
    images = [png(0), jpeg(1), png(2), b"no picture", png(3)]
    metadata = hugging_face(CLASS_LABEL)
    write(tmp_path / "corpus/data/train-00000-of-00002.parquet", images, pa.array([0, 1, 0, 1, 0]), metadata)
    write(tmp_path / "corpus/data/test-00000-of-00001.parquet", images[:2], pa.array([1, 0]), metadata)
    made = reader(tmp_path)
    rows = listed(made)
    folder = "data/train-00000-of-00002.parquet"
    assert [(row["key"], row["labels"], row["split"]) for row in rows[2:]] == [
        (f"{folder}/00000000.png", ["cat"], "train"),
        (f"{folder}/00000001.jpg", ["dog"], "train"),
        (f"{folder}/00000002.png", ["cat"], "train"),
        (f"{folder}/00000003.bin", ["dog"], "train"),
        (f"{folder}/00000004.png", ["cat"], "train"),
    ]
    assert [row["split"] for row in rows[:2]] == ["eval"] * 2
    assert [content_of(made.images, row) for row in rows] == images[:2] + images
    assert holds_images(read_schema(made.corpus, made.files[0]))


def test_bytes_are_copied_once(tmp_path: Path) -> None:
    """A rerun reads no image; the tars may go once shards are written, and come back as they were."""
    write(tmp_path / "corpus/a.parquet", [png(0), png(1)], pa.array(["x", "y"]))
    made = reader(tmp_path)
    rows = listed(made)
    staged = {info.path: made.listings.folder.get(info.path) for info in made.listings.folder.list()}
    times = [info.etag for info in made.listings.folder.list()]
    assert listed(reader(tmp_path)) == rows
    made.stage()
    assert [info.etag for info in made.listings.folder.list()] == times, "nothing is written again"

    made.unstage()
    made.unstage()
    left = [info.path for info in made.listings.folder.list()]
    assert left == [path for path in staged if path.endswith(".parquet")]
    assert listed(reader(tmp_path)) == rows
    assert len(list(made.listings.folder.list())) == 1, "the listing alone needs no image"
    made.stage()
    assert {info.path: made.listings.folder.get(info.path) for info in made.listings.folder.list()} == staged

    write(tmp_path / "corpus/a.parquet", [png(0), png(2)], pa.array(["x", "y"]))
    changed = reader(tmp_path)
    assert [content_of(changed.images, row) for row in listed(changed)] == [png(0), png(2)]


def test_an_estimate_copies_nothing(tmp_path: Path) -> None:
    write(tmp_path / "corpus/train.parquet", [png(i) for i in range(5)], pa.array([0, 1] * 2 + [1]),
          hugging_face(CLASS_LABEL))  # fmt: skip
    write(tmp_path / "corpus/empty.parquet", [], pa.array([], pa.int64()), hugging_face(CLASS_LABEL))
    made = reader(tmp_path)
    dry = replace(made, listings=replace(made.listings, is_read_only=True))
    estimated = listed(dry)
    assert not list(made.listings.folder.list())
    exact = listed(made)
    assert listed(dry) == exact, "what was copied before is known"
    for name in ("labels", "split"):
        assert [row[name] for row in estimated] == [row[name] for row in exact]
    size_bytes = sum(info.size_bytes for info in made.files if info.path == "train.parquet")
    assert size_bytes - 5 < sum(row["size_bytes"] for row in estimated) <= size_bytes


def test_a_row_names_its_file(tmp_path: Path) -> None:
    """It named the tar of the copies, which is removed once the images stand in shards."""
    write(tmp_path / "corpus/data/a.parquet", [png(0), png(1)], pa.array(["x", "y"]))
    made = reader(tmp_path)
    (info,) = made.files
    assert [(row["path"], row["etag"]) for row in listed(made)] == [(info.path, info.etag)] * 2
    assert made.images.uri == made.corpus.uri
    with pytest.raises(ObjectNotFoundError, match=r"b\.parquet is not among the files of the corpus"):
        made.images.get_range("b.parquet", 0, 1)


def test_another_column_is_other_images(tmp_path: Path) -> None:
    """Key, size and offset may be the same: an append would take them for known, a build for finished."""
    table = pa.table({"image": [bytes(100)], "mask": [b"1" * 100], "label": ["x"]})
    (tmp_path / "corpus").mkdir()
    pq.write_table(table, tmp_path / "corpus/a.parquet")
    readers = [reader(tmp_path, image=column) for column in ("image", "mask")]
    image, mask = (listed(made)[0] for made in readers)
    assert [image[name] == mask[name] for name in ("key", "path", "offset", "size_bytes")] == [True] * 4
    assert image["etag"] != mask["etag"]
    assert [content_of(made.images, row) for made, row in zip(readers, (image, mask), strict=True)] == [
        bytes(100), b"1" * 100,
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("labels", "metadata", "options", "expected"),
    [
        (pa.array(["a", " b "]), None, {}, [["a"], ["b"]]),
        (pa.array(["a;b", "c"]), None, {}, [["a;b"], ["c"]]),
        (pa.array(["a", "b"]).dictionary_encode(), None, {}, [["a"], ["b"]]),
        (pa.array([7, 10]), None, {}, [["7"], ["10"]]),
        (pa.array([1, 0]), None, {"class_names": ("x", "y")}, [["y"], ["x"]]),
        (pa.array([1, 0]), hugging_face(CLASS_LABEL), {}, [["dog"], ["cat"]]),
        (pa.array([1, 0]), hugging_face({"_type": "Value", "dtype": "int64"}), {}, [["1"], ["0"]]),
        (pa.array([[1, 0], [0]]), hugging_face({"feature": CLASS_LABEL, "_type": "List"}), {},
         [["dog", "cat"], ["cat"]]),
        (pa.array([[1], [0]]), hugging_face([CLASS_LABEL]), {}, [["dog"], ["cat"]]),
        (pa.array([["x", "y"], ["z"]], pa.large_list(pa.large_string())), None, {}, [["x", "y"], ["z"]]),
    ],
)  # fmt: skip
def test_labels(
    tmp_path: Path, labels: Any, metadata: Any, options: dict[str, Any], expected: list[list[str]]
) -> None:
    write(tmp_path / "corpus/a.parquet", [png(0), png(1)], labels, metadata)
    assert [row["labels"] for row in listed(reader(tmp_path, **options))] == expected


def test_columns_are_found_or_named(tmp_path: Path) -> None:
    table = pa.table({"img": [png(0)], "thumb": [png(1)], "fine_label": ["x"]})
    (tmp_path / "corpus").mkdir()
    pq.write_table(table, tmp_path / "corpus/a.parquet")
    (row,) = listed(reader(tmp_path, image="img", label="fine_label"))
    assert row["labels"] == ["x"]
    for options, message in (
        ({}, "a.parquet has 2 columns with image bytes among img, thumb, fine_label: give image_column"),
        ({"image": "fine_label"}, "has no column 'fine_label' with image bytes; its columns are img, "),
        (
            {"image": "img"},
            "has no column 'label'; its columns are img, thumb, fine_label: give label_column",
        ),
    ):
        with pytest.raises(InputError, match=message):
            listed(reader(tmp_path, **options))


@pytest.mark.parametrize(
    ("images", "labels", "metadata", "message"),
    [
        ([png(0), None], pa.array(["a", "b"]), None, r"row 1 of a.parquet has no image bytes"),
        ([png(0), png(1)], pa.array(["a", None]), None, r"row 1 of a.parquet has no label"),
        ([png(0), png(1)], pa.array(["a", " "]), None, r"row 1 of a.parquet has an empty label"),
        ([png(0), png(1)], pa.array([["a"], []]), None, r"row 1 of a.parquet has no label"),
        ([png(0), png(1)], pa.array([["a"], ["b", None]]), None, r"row 1 of a.parquet has an empty label"),
        ([png(0), png(1)], pa.array([0, -1]), hugging_face(CLASS_LABEL), "row 1 .* has the label -1; "),
        ([png(0), png(1)], pa.array([0.5, 1.0]), None, "has the type double; strings, whole numbers"),
        ([png(0)], pa.array([{"a": 1}]), None, "has the type struct<.*>; strings, whole numbers"),
        ([png(0)], pa.array([[{"a": 1}]]), None, "has the type list<.*>; strings, whole numbers"),
    ],
)  # fmt: skip
def test_bad_rows_are_one_clear_line(
    tmp_path: Path, images: list[Any], labels: Any, metadata: Any, message: str
) -> None:
    write(tmp_path / "corpus/a.parquet", images, labels, metadata)
    with pytest.raises(InputError, match=message) as caught:
        listed(reader(tmp_path))
    assert "\n" not in str(caught.value)
    assert not list(reader(tmp_path).listings.folder.list()), "nothing is half-written"


@pytest.mark.parametrize("twice", ["image", "label"])
def test_a_column_that_is_there_twice_is_one_clear_line(tmp_path: Path, twice: str) -> None:
    """It ended in a traceback."""
    columns = {"image": pa.array([png(0)]), "label": pa.array(["a"])}
    names = ["image", "label", twice]
    (tmp_path / "corpus").mkdir()
    table = pa.Table.from_arrays([columns[name] for name in names], names)
    pq.write_table(table, tmp_path / "corpus/a.parquet")
    with pytest.raises(InputError, match=f"a.parquet has 2 columns '{twice}': rename all but one"):
        listed(reader(tmp_path, image="image"))


def test_what_is_no_parquet(tmp_path: Path) -> None:
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus/a.parquet").write_bytes(b"no table" * 10)
    with pytest.raises(InputError, match=r"a.parquet cannot be read: .*; correct it"):
        listed(reader(tmp_path))


def test_a_damaged_page_is_one_clear_line(tmp_path: Path) -> None:
    path = tmp_path / "corpus/a.parquet"
    path.parent.mkdir()
    images = pa.array([{"bytes": bytes(9000), "path": None}] * 3, IMAGE)
    pq.write_table(pa.table({"image": images, "label": ["a", "b", "a"]}), path, compression="zstd")
    content = bytearray(path.read_bytes())
    first_frame = content.index(b"\x28\xb5\x2f\xfd")  # zstd's magic number
    content[first_frame + 4 : first_frame + 20] = b"\xff" * 16
    path.write_bytes(content)
    with pytest.raises(
        InputError, match=r"a.parquet cannot be read: .*decompression.*; correct it"
    ) as caught:
        listed(reader(tmp_path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        b"no json", b"[]", b"{}", b'{"info": {"features": {"label": null}}}',
        b'{"info": {"features": {"label": []}}}', b'{"info": {"features": {"label": {"names": 3}}}}',
        b'{"info": {"features": {"label": {"feature": "names"}}}}', b"\xff",
    ],
)  # fmt: skip
def test_unusual_metadata_has_no_names(tmp_path: Path, text: bytes) -> None:
    write(tmp_path / "corpus/a.parquet", [png(0)], pa.array([1]), {b"huggingface": text})
    assert [row["labels"] for row in listed(reader(tmp_path))] == [["1"]]


def test_a_listing_that_is_gone_or_damaged_is_made_again(tmp_path: Path) -> None:
    """A damaged one stopped every command with pyarrow's words."""
    write(tmp_path / "corpus/a.parquet", [png(0)], pa.array(["x"]))
    write(tmp_path / "corpus/b.parquet", [png(1)], pa.array(["y"]))
    made = reader(tmp_path)
    rows = listed(made)
    first, second = (i.path for i in made.listings.folder.list() if i.path.endswith(".parquet"))
    made.listings.folder.delete(first)
    made.listings.folder.put(second, b"PAR1")
    made.unstage()
    assert [info.path for info in made.listings.folder.list()] == [second], "no tar, known or not"
    assert listed(made) == rows
    assert [content_of(made.images, row) for row in rows] == [png(0), png(1)]


def test_a_file_without_rows(tmp_path: Path) -> None:
    write(tmp_path / "corpus/a.parquet", [], pa.array([], pa.string()))
    made = reader(tmp_path)
    assert listed(made) == []
    made.stage()
    made.unstage()
