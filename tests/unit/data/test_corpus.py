import os
from pathlib import Path
from typing import Any

import pytest

from data.corpus import CorpusListing, list_records
from data.errors import InputError
from data.split import assign_split
from tests.image_samples import fill


def listed(folder: Path, paths: list[str], **options: Any) -> CorpusListing:
    return list_records(fill(folder, dict.fromkeys(paths, b"x")), **options)


def test_class_folders(tmp_path: Path) -> None:
    listing = listed(
        tmp_path,
        ["dog/a.JPG", "cat/deep/er/b.png", "cat/note.txt", "cat/.hidden.png", ".cache/c.png", "readme.md"],
    )
    assert listing.classes == ("cat", "dog")
    assert [(r.key, r.path, r.labels, r.split, r.size_bytes) for r in listing.records] == [
        ("cat/deep/er/b.png", "cat/deep/er/b.png", ("cat",), None, 1),
        ("dog/a.JPG", "dog/a.JPG", ("dog",), None, 1),
    ]


@pytest.mark.parametrize("evaluation", ["test", "val", "eval"])
def test_split_folders(tmp_path: Path, evaluation: str) -> None:
    listing = listed(tmp_path, ["train/cat/a.png", f"{evaluation}/cat/a.png"])
    assert {r.path: (r.labels, r.split) for r in listing.records} == {
        "train/cat/a.png": (("cat",), "train"),
        f"{evaluation}/cat/a.png": (("cat",), "eval"),
    }


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    """Found in the design: a vehicle corpus with the class `train` looks like a split folder."""
    listing = listed(tmp_path, ["train/a.png", "car/b.png"])
    assert listing.classes == ("car", "train")
    assert all(record.split is None for record in listing.records)


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
        list_records(corpus)
    assert list_records(corpus, allow_empty=True).classes == ("cat",)
    assert list_records(corpus, classes=["cat"]).classes == ("cat",)


def test_watched_prefix_may_be_empty(tmp_path: Path) -> None:
    assert list_records(fill(tmp_path / "absent", {}), allow_empty=True).records == ()


def test_named_classes_keep_their_order_and_absent_ones_are_named(tmp_path: Path) -> None:
    paths = ["cat/a.png", "dog/b.png", "eel/c.png"]
    listing = listed(tmp_path, paths, classes=["eel", "cat"])
    assert listing.classes == ("eel", "cat")
    assert [record.key for record in listing.records] == ["cat/a.png", "eel/c.png"]
    with pytest.raises(
        InputError, match=r"class 'cow' has no image in .*: the classes there are cat, dog, eel"
    ):
        listed(tmp_path, paths, classes=["cat", "cow"])


def test_cap_is_for_train_only_and_stable(tmp_path: Path) -> None:
    paths = [f"{split}/{name}/{i}.png" for split in ("train", "test") for name in "ab" for i in range(20)]
    capped = listed(tmp_path, paths, max_per_class=5, seed=1)
    kept = {record.key for record in capped.records}
    assert len(kept) == 2 * 5 + 2 * 20
    smaller = {r.key for r in listed(tmp_path, paths, max_per_class=3, seed=1).records}
    assert smaller < kept
    other = {r.key for r in listed(tmp_path, paths, max_per_class=5, seed=2).records}
    assert other != kept


def test_eval_fraction_fills_the_split_before_the_cap(tmp_path: Path) -> None:
    paths = [f"a/{i}.png" for i in range(200)]
    listing = listed(tmp_path, paths, eval_fraction=0.2, max_per_class=10)
    evaluation = [r.key for r in listing.records if r.split == "eval"]
    assert evaluation == sorted(p for p in paths if assign_split(p, 0.2, 0) == "eval")
    assert len(listing.records) - len(evaluation) == 10


def test_digest_sees_content_changes_and_nothing_else(tmp_path: Path) -> None:
    paths = ["cat/a.png", "dog/b.png"]

    def digest(name: str, content: bytes, mtime_s: int) -> str:
        corpus = fill(tmp_path / name, dict.fromkeys(paths, content))
        for path in paths:
            os.utime(tmp_path / name / path, (mtime_s, mtime_s))
        return list_records(corpus).digest

    assert digest("one", b"x", 5) == digest("two", b"y", 5)
    assert digest("one", b"x", 5) != digest("one", b"x", 6)
    assert digest("one", b"x", 5) != digest("one", b"xx", 5)
