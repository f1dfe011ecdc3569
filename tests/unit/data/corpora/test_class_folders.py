from pathlib import Path

import pytest

from data.corpora import class_folders
from data.corpora.class_folders import ClassFolderReader
from data.errors import InputError
from data.listing import records_of
from data.types import Record
from infra.folder_store import FolderStore
from tests.image_samples import fill
from tests.other_user import forbidden_folder, without_rights


def read(reader: ClassFolderReader) -> list[Record]:
    found = [record for batch in reader.record_batches() for record in records_of(batch)]
    return sorted(found, key=lambda record: record.key)


def listed(folder: Path, paths: list[str]) -> list[Record]:
    return read(ClassFolderReader(corpus=fill(folder, dict.fromkeys(paths, b"x"))))


def test_class_folders(tmp_path: Path) -> None:
    paths = [
        "dog/a.JPG", "cat/deep/er/b.png", "cat/note.txt", "cat/.hidden.png", ".cache/c.png", "readme.md",
    ]  # fmt: skip
    found = listed(tmp_path, paths)
    assert [(r.key, r.path, r.offset, r.labels, r.split, r.size_bytes) for r in found] == [
        ("cat/deep/er/b.png", "cat/deep/er/b.png", None, ("cat",), None, 1),
        ("dog/a.JPG", "dog/a.JPG", None, ("dog",), None, 1),
    ]


@pytest.mark.parametrize("evaluation", ["test", "val", "eval"])
def test_split_folders(tmp_path: Path, evaluation: str) -> None:
    found = listed(tmp_path, ["train/cat/a.png", f"{evaluation}/cat/a.png"])
    assert {r.path: (r.labels, r.split) for r in found} == {
        "train/cat/a.png": (("cat",), "train"),
        f"{evaluation}/cat/a.png": (("cat",), "eval"),
    }


@pytest.mark.parametrize(
    ("train", "evaluation"),
    [("Train", "Test"), ("TRAIN", "VAL"), ("training", "validation"), ("train", "dev")],
)
def test_split_folders_by_other_names(tmp_path: Path, train: str, evaluation: str) -> None:
    """They were taken as two classes, `Train` and `Test`, each with the images of all."""
    found = listed(tmp_path, [f"{train}/cat/a.png", f"{evaluation}/cat/a.png"])
    assert {r.path: (r.labels, r.split) for r in found} == {
        f"{train}/cat/a.png": (("cat",), "train"),
        f"{evaluation}/cat/a.png": (("cat",), "eval"),
    }


def test_valid_and_invalid_are_classes(tmp_path: Path) -> None:
    found = listed(tmp_path, ["valid/monday/a.png", "invalid/monday/b.png"])
    assert [(record.labels, record.split) for record in found] == [(("invalid",), None), (("valid",), None)]


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    """Found in the design: a vehicle corpus with the class `train` looks like a split folder."""
    found = listed(tmp_path, ["train/a.png", "car/b.png"])
    assert [record.labels for record in found] == [("car",), ("train",)]
    assert all(record.split is None for record in found)


def test_a_folder_that_may_not_be_read_is_named() -> None:
    """A disk's own `lost+found` beside the classes ended in a traceback."""
    with forbidden_folder("lost+found") as root:
        reader = ClassFolderReader(corpus=FolderStore(root=root))
        with (
            without_rights(),
            pytest.raises(InputError, match=r"folder \S+/lost\+found of the corpus may not"),
        ):
            read(reader)


def test_batches_are_small_whatever_the_corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(class_folders, "BATCH_ROWS", 3)
    corpus = fill(tmp_path, {f"cat/{number}.png": b"x" for number in range(10)})
    sizes = [batch.num_rows for batch in ClassFolderReader(corpus=corpus).record_batches()]
    assert sizes == [3, 3, 3, 1]


@pytest.mark.parametrize(
    ("paths", "message"),
    [
        ([], "no images in"),
        (["notes.txt"], "no images in"),
        (["cat/a.png", "dog/read.me"], "class folder 'dog' .* has no image"),
        (
            ["train/cat/a.png", "train/dog/b.png", "test/cat/c.png", "test/dog/x.txt"],
            "'test/dog' .* no image",
        ),
        (["cat/a.png", "stray.png"], "'stray.png' .* not in a class folder"),
        (["train/a.png", "train/cat/b.png", "test/cat/c.png"], "'train/a.png' .* not in train/CLASS/"),
        (["train/cat/a.png", "extra/cat/b.png"], "'extra' stands beside 'train'"),
        (["Train/cat/a.png", "extra/cat/b.png"], "'extra' stands beside 'Train'"),
    ],
)
def test_bad_corpora_are_one_clear_line(tmp_path: Path, paths: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        listed(tmp_path, paths)
    assert "\n" not in str(caught.value)


def test_empty_local_class_folder_is_named(tmp_path: Path) -> None:
    """A store lists objects only, so a folder without any file would go unseen."""
    corpus = fill(tmp_path, {"cat/a.png": b"x"})
    (tmp_path / "dog").mkdir()
    with pytest.raises(InputError, match="class folder 'dog'"):
        read(ClassFolderReader(corpus=corpus))
    assert len(read(ClassFolderReader(corpus=corpus, allow_empty=True))) == 1
    assert len(read(ClassFolderReader(corpus=corpus, classes=("cat",)))) == 1


def test_a_class_on_a_disk_that_is_not_mounted_is_named(tmp_path: Path) -> None:
    """The class was left out without a word."""
    corpus = fill(tmp_path, {"cat/a.png": b"x"})
    (tmp_path / "readme.md").symlink_to("/not/mounted/readme.md")
    (tmp_path / "dog").symlink_to("/not/mounted/dog")
    with pytest.raises(InputError, match="/dog links to nothing: mount what it links to, or remove the link"):
        read(ClassFolderReader(corpus=corpus))


def test_watched_prefix_may_be_absent(tmp_path: Path) -> None:
    assert read(ClassFolderReader(corpus=fill(tmp_path / "absent", {}), allow_empty=True)) == []
