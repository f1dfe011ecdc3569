import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data.corpora.manifest import ManifestReader
from data.corpora.manifest_table import ManifestColumns
from data.errors import InputError
from infra.folder_store import FolderStore
from tests.corpus_listing import content_of, listed
from tests.image_samples import fill


def reader(folder: Path, name: str, root: Path | None = None, **columns: Any) -> ManifestReader:
    store = FolderStore(root=folder)
    (info,) = (info for info in store.list() if info.path == name)
    return ManifestReader(
        folder=store,
        manifest=info,
        root=FolderStore(root=root or folder),
        columns=ManifestColumns(**columns),
    )


def write(folder: Path, text: str, images: list[str], name: str = "m.csv") -> None:
    fill(folder, {image: image.encode() for image in images} | {name: text.encode()})


def test_a_csv_manifest(tmp_path: Path) -> None:
    odd = "x" * 200 + "/" + "é, ü" * 40 + ".jpg"
    text = f'size,uri,label,split\n7,a/1.jpg,cat;dog,train\n8,./b.png,dog,VAL\n9,"{odd}", cat ,\n'
    write(tmp_path, text, ["a/1.jpg", "b.png", odd, "not listed.jpg"])
    made = reader(tmp_path, "m.csv")
    rows = listed(made)
    assert [(row["key"], row["labels"], row["split"]) for row in rows] == [
        ("a/1.jpg", ["cat", "dog"], "train"),
        ("b.png", ["dog"], "eval"),
        (odd, ["cat"], None),
    ]
    assert [content_of(made.root, row) for row in rows] == [row["key"].encode() for row in rows]
    objects = {info.path: info for info in made.root.list()}
    assert all((row["size_bytes"], row["etag"]) ==
               (objects[row["path"]].size_bytes, objects[row["path"]].etag) for row in rows)  # fmt: skip


def test_names_of_a_thousand_characters(tmp_path: Path) -> None:
    name = "/".join(["ü" * 100] * 10) + ".jpg"
    assert len(name) > 1000
    write(tmp_path, f"uri,label\n{name},a\n", [name])
    assert [row["key"] for row in listed(reader(tmp_path, "m.csv"))] == [name]


def test_uris_below_a_root(tmp_path: Path) -> None:
    """A manifest may lie elsewhere, and its uris may be absolute below the root."""
    root = tmp_path / "my images"
    write(root, "", ["1.jpg", "a/2.jpg", "3.jpg"], name="unused.txt")
    text = f"uri\tlabel\n1.jpg\tx\n{root}/a/2.jpg\tx\nfile://{root}/3.jpg\tx\n"
    write(tmp_path / "elsewhere", text, [], name="m.tsv")
    rows = listed(reader(tmp_path / "elsewhere", "m.tsv", root))
    assert [row["path"] for row in rows] == ["1.jpg", "3.jpg", "a/2.jpg"]


def test_a_parquet_manifest(tmp_path: Path) -> None:
    write(tmp_path, "", ["1.jpg", "2.jpg"], name="unused")
    table = pa.table({"file": ["1.jpg", "2.jpg"], "tags": [[3, 4], [4]], "split": ["test", None]})
    pq.write_table(table, tmp_path / "m.parquet")
    rows = listed(
        reader(tmp_path, "m.parquet", uri="file", label="tags", class_names=("a", "b", "c", "d", "e"))
    )
    assert [(row["labels"], row["split"]) for row in rows] == [(["d", "e"], "eval"), (["e"], None)]


def test_how_labels_are_separated(tmp_path: Path) -> None:
    write(tmp_path, "uri,label\n1.jpg,a|b;c\n", ["1.jpg"])
    for separator, expected in ((";", ["a|b", "c"]), ("|", ["a", "b;c"]), ("", ["a|b;c"])):
        (row,) = listed(reader(tmp_path, "m.csv", label_separator=separator))
        assert row["labels"] == expected


def test_a_manifest_larger_than_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its rows and the objects are joined by parts on the disk, whatever their order."""
    monkeypatch.setattr("data.corpora.manifest._BATCH_ROWS", 7)
    monkeypatch.setattr("data.corpora.manifest._MEMORY_BYTES", 1000)
    names = [f"{number % 7}/{number}.jpg" for number in range(300)]
    rows = "".join(f"{name},{index % 3}\n" for index, name in enumerate(reversed(names)))
    write(tmp_path, f"uri,label\n{rows}", names)
    found = listed(reader(tmp_path, "m.csv"))
    assert [row["path"] for row in found] == sorted(names)
    assert {row["path"]: row["labels"] for row in found} == {
        name: [str(index % 3)] for index, name in enumerate(reversed(names))
    }
    for name in names[::2]:
        os.remove(tmp_path / name)
    with pytest.raises(InputError, match=r"150 images of m.csv are not in .*: '4/298.jpg' \(row 3\), "):
        listed(reader(tmp_path, "m.csv"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "image,label\n1.jpg,a\n",
            "m.csv has no column 'uri'; its columns are image, label: rename one, or give uri",
        ),
        ("uri,class\n1.jpg,a\n", "m.csv has no column 'label'; .* give label_column"),
        ("uri,label\n1.jpg,a\n,b\n", "row 3 of m.csv has no uri"),
        ("uri,label\n1.jpg,a\n2.jpg,\n", "row 3 of m.csv has an empty label"),
        ("uri,label\n1.jpg,a;;b\n", "row 2 of m.csv has an empty label"),
        (
            "uri,label,split\n1.jpg,a,train\n2.jpg,a,trian\n",
            "row 3 of m.csv has the split 'trian': train, eval",
        ),
        ("uri,label\n../1.jpg,a\n", r"row 2 of m.csv has the uri '../1.jpg', which is not below file://"),
        ("uri,label\na/../1.jpg,a\n", "which is not below"),
        ("uri,label\n/etc/passwd,a\n", "'/etc/passwd', which is not below"),
        (
            "uri,label\ns3://other/1.jpg,a\n",
            "'s3://other/1.jpg', which is not below .*: give relative uris, or",
        ),
        (
            "uri,label\n1.jpg,a\n3.jpg,a\n",
            r"1 images of m.csv are not in file://.*: '3.jpg' \(row 3\); add them",
        ),
        ("uri,label\n1.jpg\n", "manifest m.csv cannot be read: .*Expected 2 columns"),
        ("", "manifest m.csv cannot be read: Empty CSV"),
        ("uri,label,label\n1.jpg,a,b\n", "m.csv has 2 columns 'label': rename all but one"),
    ],
)
def test_bad_manifests_are_one_clear_line(tmp_path: Path, text: str, message: str) -> None:
    write(tmp_path, text, ["1.jpg", "2.jpg"])
    with pytest.raises(InputError, match=message) as caught:
        listed(reader(tmp_path, "m.csv"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "table",
    [
        pa.table({"uri": [{"a": 1}], "label": ["x"]}),
        pa.table({"uri": [["1.jpg"]], "label": ["x"]}),
        pa.table({"uri": ["1.jpg"], "label": ["x"], "split": [{"a": 1}]}),
    ],
)
def test_odd_columns_are_one_clear_line(tmp_path: Path, table: pa.Table) -> None:
    """They ended in a traceback."""
    pq.write_table(table, tmp_path / "m.parquet")
    with pytest.raises(InputError, match=r"manifest m.parquet cannot be read: ") as caught:
        listed(reader(tmp_path, "m.parquet"))
    assert "\n" not in str(caught.value)


def test_what_is_no_parquet(tmp_path: Path) -> None:
    write(tmp_path, "uri,label\n1.jpg,a\n", [], name="m.parquet")
    with pytest.raises(InputError, match=r"manifest m.parquet cannot be read: "):
        listed(reader(tmp_path, "m.parquet"))
