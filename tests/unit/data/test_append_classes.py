"""An append may bring new classes; it neither renames nor removes one."""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import pytest

from data.append import append_snapshot
from data.build import build_snapshot
from data.corpora.manifest import ManifestReader
from data.errors import InputError
from data.shard_write import write_shards_here
from data.store import Store
from infra.store import open_store
from tests.image_samples import fill, photos, png
from tests.small_builds import CONFIG, FILES, append, build, ids


def test_append_takes_only_the_named_classes(tmp_path: Path, dataset: Store) -> None:
    config = replace(CONFIG, classes=("dog", "cat"))
    first = build(fill(tmp_path / "corpus", FILES), dataset, config)
    assert first.classes == ("dog", "cat")
    incoming = fill(tmp_path / "incoming", {"cat/n.png": png(900), "cow/n.png": png(901)})
    second = append(first, incoming, dataset, replace(config, eval_fraction=0.0))
    assert second.classes == ("dog", "cat")
    assert second.stats["train"] == {"dog": 8, "cat": 9}


def test_what_was_left_out_for_its_label_is_taken_once_the_label_is_known(
    tmp_path: Path, dataset: Store
) -> None:
    config = replace(CONFIG, classes=("cat", "dog"), unknown_labels="reject")
    eels = {"train/eel/1.png": png(900), "test/eel/2.png": png(901)}
    corpus = fill(tmp_path / "corpus", FILES)
    first = build(corpus, dataset, config)
    incoming = fill(tmp_path / "incoming", eels | {"train/cow/1.png": png(902), "train/cat/n.png": png(903)})
    second = append(first, incoming, dataset, config)
    assert second.stats["rejects"] == {"unknown_label": 3}
    assert append(second, incoming, dataset, config) is None
    grown = replace(config, classes=("cat", "dog", "eel"))
    third = append(second, incoming, dataset, grown)
    assert third.classes == ("cat", "dog", "eel")
    assert third.stats["rejects"] == {}
    assert third.stats["samples"] == {"train": 18, "eval": 7}
    assert append(third, incoming, dataset, grown) is None


def test_an_append_cannot_rename_or_remove_a_class(tmp_path: Path, dataset: Store) -> None:
    first = build(fill(tmp_path / "corpus", FILES), dataset)
    incoming = fill(tmp_path / "incoming", {"train/cat/n.png": png(900), "train/ant/n.png": png(901)})
    for classes, message in (
        (
            ("cat", "hound"),
            f"'dog' of snapshot {first.id} is not among classes: an append can neither rename",
        ),
        (("ant", "dog"), r"'cat' of snapshot 1-\w+ is not among classes"),
    ):
        with pytest.raises(InputError, match=message):
            append(first, incoming, dataset, replace(CONFIG, classes=classes))
    assert ids(dataset) == [first.id]
    config = replace(CONFIG, classes=("bee", "ant", "dog", "cat"))
    second = append(first, incoming, dataset, config)
    assert second.classes == ("cat", "dog", "ant"), "a named class without an image is not added"
    more = fill(tmp_path / "more", {"train/cat/o.png": png(902), "train/bee/o.png": png(903)})
    third = append(second, more, dataset, config)
    assert third.classes == ("cat", "dog", "ant", "bee"), "the same list is good for every append"


HOUNDS = {path.replace("/dog/", "/hound/"): content for path, content in FILES.items()}
"""`FILES` with the folder of a class renamed."""


@pytest.mark.parametrize(
    "beside", [{}, photos("train/hound", 3, 900), photos("train/hound", 15, 900)], ids=["same", "few", "more"]
)
def test_a_class_folder_that_was_renamed_is_refused(
    tmp_path: Path, dataset: Store, beside: dict[str, bytes]
) -> None:
    """With the same files it was "none of use", noted for ever; with new ones both names became classes."""
    first = build(fill(tmp_path / "corpus", FILES), dataset)
    new = {path.replace(".png", "n.png"): content for path, content in beside.items()}
    renamed = fill(tmp_path / "renamed", HOUNDS | new)
    message = f"^class 'hound' has 11 images that snapshot {first.id} knows as 'dog', a class without"
    for _ in range(2):
        with pytest.raises(InputError, match=message):
            append(first, renamed, dataset)
    with pytest.raises(InputError, match=message):
        append(first, renamed, dataset, replace(CONFIG, classes=("cat", "dog", "hound")))
    assert ids(dataset) == [first.id]
    assert list(dataset.list("seen")) == []


def test_two_classes_that_became_one_are_refused(tmp_path: Path, dataset: Store) -> None:
    first = build(fill(tmp_path / "corpus", FILES), dataset)
    merged = {
        path.replace("/cat/", "/pet/c").replace("/dog/", "/pet/d"): content for path, content in FILES.items()
    }
    with pytest.raises(InputError, match=r"class 'pet' has 11 images .* knows as '(cat|dog)'"):
        append(first, fill(tmp_path / "merged", merged), dataset)


def listed_by(folder: Path, files: Iterable[str], names: dict[str, str]) -> ManifestReader:
    """A manifest of files, with some classes under other names; their splits are those of the folders."""
    lines = []
    for path in files:
        split, label, _ = path.split("/")
        lines.append(f"{path},{names.get(label, label)},{'eval' if split == 'test' else split}")
    store = open_store(str(folder))
    store.put("list.csv", "\n".join(["uri,label,split", *lines]).encode())
    (info,) = (info for info in store.list() if info.path == "list.csv")
    return ManifestReader(folder=store, manifest=info, root=store)


@pytest.mark.parametrize("new", [{}, photos("train/dog", 3, 900)], ids=["same", "more"])
def test_a_class_that_a_manifest_renames_is_refused(
    new: dict[str, bytes], tmp_path: Path, dataset: Store
) -> None:
    """The files are the same, so none was new, and the class had both names or none was told."""
    folder = tmp_path / "corpus"
    store = fill(folder, FILES)
    run_all = write_shards_here(store, dataset, CONFIG.limits)
    first = build_snapshot(listed_by(folder, FILES, {}), dataset, CONFIG, run_all)
    more = {f"train/dog/more{number}.png": content for number, content in enumerate(new.values())}
    fill(folder, more)
    renamed = listed_by(folder, [*FILES, *more], {"dog": "hound"})
    with pytest.raises(InputError, match=f"class 'hound' has 11 images that snapshot {first.id} has under"):
        append_snapshot(first, renamed, dataset, CONFIG, run_all)
    assert ids(dataset) == [first.id]
    assert append_snapshot(first, listed_by(folder, FILES, {}), dataset, CONFIG, run_all) is None


def test_a_new_class_may_share_images_with_one_that_is_still_there(tmp_path: Path, dataset: Store) -> None:
    first = build(fill(tmp_path / "corpus", FILES), dataset)
    shared = {path: content for path, content in HOUNDS.items() if "/hound/" in path}
    second = append(first, fill(tmp_path / "corpus", shared | {"train/hound/n.png": png(900)}), dataset)
    assert second.classes == ("cat", "dog", "hound")
    assert second.stats["train"] == {"cat": 8, "dog": 8, "hound": 1}


def test_an_increment_of_a_new_class_may_have_a_few_images_of_an_absent_one(
    tmp_path: Path, dataset: Store
) -> None:
    """A folder of new images seldom has all classes; an image of an absent one in it is no renamed class."""
    first = build(fill(tmp_path / "corpus", FILES), dataset)
    few = photos("train/fox/known", 3, 0)  # the bytes of three cats
    incoming = fill(tmp_path / "incoming", few | photos("train/fox/new", 3, 900))
    second = append(first, incoming, dataset)
    assert second.stats["train"] == {"cat": 8, "dog": 8, "fox": 3}
    assert second.stats["rejects"] == {"duplicate": 3}


def test_new_class_without_a_usable_image_is_refused(tmp_path: Path, dataset: Store) -> None:
    first = build(fill(tmp_path / "corpus", FILES), dataset)
    incoming = fill(tmp_path / "incoming", {"train/cat/n.png": png(900), "train/ant/bad.png": b"no"})
    with pytest.raises(InputError, match="class 'ant' has no usable image for training"):
        append(first, incoming, dataset)
    assert ids(dataset) == [first.id]
