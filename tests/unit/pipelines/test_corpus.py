from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data.corpora.imagenet import ImageNetReader
from data.corpora.manifest import ManifestReader
from data.corpora.options import CorpusFormat, CorpusOptions
from data.corpora.parquet_stage import ParquetReader
from data.corpora.tasks import map_here
from data.corpora.webdataset_tars import WebDatasetReader
from data.errors import InputError
from data.listing import CorpusReader
from data.store import Store
from infra.folder_store import FolderStore
from pipelines.corpus import Corpus, CorpusPlace, open_corpus
from tests.corpus_listing import content_of, listed
from tests.image_samples import fill, png
from tests.imagenet_meta import meta
from tests.tar_samples import tar_bytes

SAMPLE = tar_bytes({"1.jpg": b"x", "1.cls": b"0"})
SYNSET = tar_bytes({"n01440764_1.JPEG": b"x"})


def opened(
    folder: Path, uri: str, corpus_format: CorpusFormat = "auto", is_dry_run: bool = False, **options: Any
) -> Corpus:
    place = CorpusPlace(staging=FolderStore(root=folder / "staging"), run=map_here, is_dry_run=is_dry_run)
    return open_corpus(str(folder / uri), corpus_format, CorpusOptions(**options), place)


def rows_of(corpus: Corpus) -> list[dict[str, Any]]:
    assert isinstance(corpus.source, CorpusReader)
    return listed(corpus.source)


def write_images(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"image": [png(0)], "label": ["x"]}), path)


@pytest.mark.parametrize(
    ("files", "uri", "kind"),
    [
        ({"cat/a.png": b"x", "cat/notes.csv": b"x"}, "c", Store),
        ({}, "c", Store),
        ({"a/0.tar": SAMPLE, "readme.md": b"x"}, "c", WebDatasetReader),
        ({"0.tar": SAMPLE}, "c/0.tar", WebDatasetReader),
        ({"n01440764.tar": SYNSET}, "c", ImageNetReader),
        ({"n01440764.tar": SYNSET, "devkit.tar.gz": b"x"}, "c/n01440764.tar", ImageNetReader),
        ({".cache/a.png": b"x", "0.tar": SAMPLE}, "c", WebDatasetReader),
        ({"m.csv": b"uri,label\n"}, "c/m.csv", ManifestReader),
        ({"m.tsv": b"uri\tlabel\n"}, "c/m.tsv", ManifestReader),
    ],
)
def test_the_format_is_what_is_there(tmp_path: Path, files: dict[str, bytes], uri: str, kind: Any) -> None:
    fill(tmp_path / "c", files)
    (tmp_path / "c").mkdir(exist_ok=True)
    source = opened(tmp_path, uri).source
    assert isinstance(source, FolderStore if kind is Store else kind)


def test_a_parquet_file_is_images_or_a_manifest(tmp_path: Path) -> None:
    write_images(tmp_path / "c/train.parquet")
    assert isinstance(opened(tmp_path, "c").source, ParquetReader)
    assert isinstance(opened(tmp_path, "c/train.parquet").source, ParquetReader)
    dry = opened(tmp_path, "c", is_dry_run=True)
    assert len(rows_of(dry)) == 1
    assert not list((tmp_path / "staging").glob("*"))
    pq.write_table(pa.table({"uri": ["a.png"], "label": ["x"]}), tmp_path / "c/m.parquet")
    assert isinstance(opened(tmp_path, "c/m.parquet").source, ManifestReader)


def test_a_folder_may_be_called_like_a_file(tmp_path: Path) -> None:
    fill(tmp_path / "birds.tar", {"cat/a.png": b"x"})
    assert isinstance(opened(tmp_path, "birds.tar").source, FolderStore)


def test_options_reach_the_reader(tmp_path: Path) -> None:
    fill(tmp_path / "c", {"a/0.tar": SAMPLE, "b/1.tar": tar_bytes({"2.jpg": b"x", "2.json": b'{"y": "z"}'})})
    fill(tmp_path, {"names.txt": b"cat\ndog\n"})
    chosen = opened(tmp_path, "c", files=("a/*.tar",), classes_file=str(tmp_path / "names.txt"))
    assert [row["labels"] for row in rows_of(chosen)] == [["cat"]]
    chosen = opened(tmp_path, "c", files=("b/*",), label="json:y")
    assert [row["labels"] for row in rows_of(chosen)] == [["z"]]

    fill(tmp_path / "images", {"1.png": b"x"})
    fill(tmp_path / "lists", {"m.csv": b"file,kind\n1.png,0\n"})
    named = {"root": str(tmp_path / "images"), "uri_column": "file", "label_column": "kind"}
    corpus = opened(tmp_path, "lists/m.csv", classes_file=str(tmp_path / "names.txt"), **named)
    (row,) = rows_of(corpus)
    assert row["labels"] == ["cat"]
    assert content_of(corpus.images, row) == b"x"


def test_imagenet_with_its_ground_truth(tmp_path: Path) -> None:
    files = {
        "n01440764.tar": SYNSET,
        "ILSVRC2012_img_val.tar": tar_bytes({"ILSVRC2012_val_00000001.JPEG": b"x"}),
    }
    fill(tmp_path / "c", {**files, "ILSVRC2012_validation_ground_truth.txt": b"2\n"})
    fill(tmp_path, {"synsets.txt": b"n02085620\nn01440764\n", "truth.txt": b"n01440764\n"})
    beside = opened(tmp_path, "c", classes_file=str(tmp_path / "synsets.txt"))
    given = opened(tmp_path, "c", ground_truth_file=str(tmp_path / "truth.txt"))
    assert rows_of(beside) == rows_of(given)
    assert [row["split"] for row in rows_of(given)] == ["train", "eval"]
    fill(tmp_path / "c", {"meta.mat": meta([(1, "n02085620", 0), (2, "n01440764", 0)])})
    assert rows_of(opened(tmp_path, "c")) == rows_of(given)
    fill(tmp_path, {"kit.mat": meta([(2, "n02085620", 0), (1, "n01440764", 0)])})
    other = opened(tmp_path, "c", classes_file=str(tmp_path / "kit.mat"))
    assert [row["labels"] for row in rows_of(other)] == [["n01440764"], ["n02085620"]]


def test_staged_images_come_and_go(tmp_path: Path) -> None:
    write_images(tmp_path / "c/train.parquet")
    corpus = opened(tmp_path, "c")
    (row,) = rows_of(corpus)
    corpus.finish()
    assert not list((tmp_path / "staging").glob("*.tar"))
    calls: list[str] = []
    corpus.before_reading(lambda: calls.append("connected"))()
    assert content_of(corpus.images, row) == png(0)
    assert calls == ["connected"]


@pytest.mark.parametrize(
    ("uri", "corpus_format", "options", "message"),
    [
        ("absent.csv", "auto", {}, "absent.csv' does not exist: correct the name"),
        ("absent", "auto", {}, "absent does not exist or may not be read"),
        ("tars/0.tar", "class_folders", {}, "is a file: the format class_folders is for a folder"),
        ("tars", "manifest", {}, "is no manifest: name a .csv, .tsv or .parquet file"),
        ("tars/0.tar", "manifest", {}, "is no manifest"),
        ("tars", "parquet", {}, "no .parquet file in .* for the format parquet"),
        ("tars", "imagenet", {}, "no .tar file in .* for the format imagenet"),
        ("tars", "auto", {"files": ("*.tgz",)}, r"no .tar file that matches \*.tgz in"),
        ("tars", "auto", {"root": "x"}, "the option root is for the format manifest; .* as webdataset"),
        ("tars", "auto", {"classes_file": "/absent/x.txt"}, "folder /absent does not exist"),
        ("tars", "auto", {"label": "txt"}, "label is 'txt'"),
    ],
)
def test_bad_input_is_one_clear_line(
    tmp_path: Path, uri: str, corpus_format: CorpusFormat, options: dict[str, Any], message: str
) -> None:
    fill(tmp_path / "tars", {"0.tar": SAMPLE})
    with pytest.raises(InputError, match=message) as caught:
        opened(tmp_path, uri, corpus_format, **options)
    assert "\n" not in str(caught.value)


def test_a_list_that_is_not_there(tmp_path: Path) -> None:
    fill(tmp_path / "tars", {"0.tar": SAMPLE, "image.png": png(0)})
    for name, message in (("absent.txt", "absent.txt does not exist"), ("image.png", "is not UTF-8 text")):
        with pytest.raises(InputError, match=message):
            opened(tmp_path, "tars", "webdataset", classes_file=str(tmp_path / "tars" / name))
