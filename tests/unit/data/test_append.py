"""New images on top of a snapshot: what is new, what is known, who was first."""

import os
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from data.append import append_snapshot
from data.errors import InputError
from data.list_corpus import list_for_append
from data.outcomes import new_records
from data.retirement import retire_snapshot
from data.shard_index import read_index
from data.shard_plan import ShardPlans
from data.shard_write import ShardResult, write_shards_here
from data.snapshot import (
    SnapshotConflictError,
    load_snapshot,
)
from data.store import Store
from infra.store import open_store
from tests.image_samples import encode, fill, photos, pixels, png
from tests.small_builds import CONFIG, FILES, append, build, ids, names, rejects


def test_append_adds_only_what_is_new_and_keeps_what_is_there(tmp_path: Path, dataset: Store) -> None:
    corpus = fill(tmp_path / "corpus", FILES)
    first = build(corpus, dataset)
    assert append(first, corpus, dataset) is None
    before = {info.path: dataset.get(info.path) for info in dataset.list("shards")}
    new = photos("train/ant", 3, 500) | photos("train/dog", 10, 100) | photos("test/ant", 1, 600)
    fill(tmp_path / "corpus", {path: new[path] for path in new.keys() - FILES.keys()})
    second = append(first, corpus, dataset)
    assert (second.number, second.parent) == (2, first.id)
    assert second.classes == ("cat", "dog", "ant")
    assert second.splits["train"][: len(first.splits["train"])] == first.splits["train"]
    assert second.stats["train"] == {"cat": 8, "dog": 10, "ant": 3}
    assert second.stats["samples"] == {"train": 21, "eval": 7}
    assert all(dataset.get(path) == content for path, content in before.items())
    added = set(names(dataset, second, "train")) - set(names(dataset, first, "train"))
    assert {name.partition("@")[0] for name in added} == {
        "train/ant/000.png", "train/ant/001.png", "train/ant/002.png",
        "train/dog/008.png", "train/dog/009.png",
    }  # fmt: skip
    assert append(second, corpus, dataset) is None


def test_file_uploaded_again_under_its_name_is_another_sample(tmp_path: Path, dataset: Store) -> None:
    corpus = fill(tmp_path / "corpus", FILES)
    first = build(corpus, dataset)
    corpus.put("train/cat/000.png", png(777, height=9))
    second = append(first, corpus, dataset)
    (added,) = set(names(dataset, second, "train")) - set(names(dataset, first, "train"))
    assert added.startswith("train/cat/000.png@")
    rows = [row for s in second.splits["train"] for row in read_index(dataset, s).to_pylist()]
    assert {row["path"] for row in rows if row["name"] == added} == {"train/cat/000.png"}


def _unpacked(folder: Path, first_seed: int) -> Store:
    """Fill a folder as an archive does: bitmaps, all of one size and one time."""
    names = [
        f"{split}/{name}/{n}.bmp" for split in ("train", "test") for name in ("cat", "dog") for n in "012"
    ]
    images = [Image.fromarray(pixels(first_seed + place)) for place in range(len(names))]
    store = fill(folder, {name: encode(image, "BMP") for name, image in zip(names, images, strict=True)})
    for name in names:
        os.utime(folder / name, (1_000_000_000, 1_000_000_000))
    return store


def test_files_of_another_folder_are_other_images_whatever_their_names_sizes_and_times(
    tmp_path: Path, dataset: Store
) -> None:
    """Two archives with normalised times: the second one's images were "no new image", without a record."""
    corpora = [_unpacked(tmp_path / name, seed) for name, seed in (("one", 0), ("two", 100), ("three", 200))]
    assert len({list_for_append(corpus, CONFIG).digest for corpus in corpora}) == 1, "not told by the listing"

    def appended(dataset: Store) -> list[Any]:
        made: list[Any] = [build(corpora[0], dataset)]
        for corpus in corpora[1:]:
            made.append(append(made[-1], corpus, dataset))
        return made

    first, second, third = appended(dataset)
    assert [s.stats["samples"]["train"] for s in (first, second, third)] == [6, 12, 18]
    assert len(set(names(dataset, third, "train"))) == 18
    assert all(append(third, corpus, dataset) is None for corpus in corpora)
    assert list(dataset.list("seen")) == []
    other = open_store(str(tmp_path / "other"))
    assert appended(other) == [first, second, third], (
        "keys and ids are the same for folders that did not move"
    )


def test_a_folder_that_moved_is_the_same_snapshot_and_nothing_new(tmp_path: Path, dataset: Store) -> None:
    """It is read again, as no listing can tell; its images are put aside, and not read a third time."""
    first = build(_unpacked(tmp_path / "one", 0), dataset)
    moved = _unpacked(tmp_path / "moved", 0)
    assert build(moved, open_store(str(tmp_path / "other"))).id == first.id
    assert build(moved, dataset) == first
    assert append(first, moved, dataset) is None
    result = append_snapshot(first, moved, dataset, CONFIG, lambda plans: pytest.fail("ran again"))
    assert result is None
    with pytest.raises(InputError, match="made of other images"):
        build(_unpacked(tmp_path / "two", 100), dataset)


def test_append_puts_known_and_leaking_images_aside(tmp_path: Path, dataset: Store) -> None:
    first = build(fill(tmp_path / "corpus", FILES), dataset)
    incoming = fill(
        tmp_path / "incoming",
        {
            "train/cat/again.png": FILES["train/cat/001.png"],
            "train/cat/leak.png": FILES["test/cat/001.png"],
            "test/cat/leak.png": FILES["train/dog/001.png"],
            "train/cat/both.png": png(801),
            "test/cat/both.png": png(801),
            "train/cat/bad.png": b"no",
            "train/cat/good.png": png(800),
        },
    )
    second = append(first, incoming, dataset)
    assert rejects(dataset, second) == {
        "train/cat/again.png": "duplicate",
        "train/cat/leak.png": "leak",
        "test/cat/leak.png": "leak",
        "train/cat/both.png": "leak",
        "train/cat/bad.png": "unreadable",
    }
    assert second.stats["samples"] == {"train": 17, "eval": 7}


def test_append_of_nothing_usable_is_remembered_without_a_snapshot(tmp_path: Path, dataset: Store) -> None:
    """Otherwise a watcher would read the same broken uploads at every tick for ever."""
    first = build(fill(tmp_path / "corpus", FILES), dataset)
    incoming = fill(
        tmp_path / "incoming", {"cat/bad.png": b"no", "cat/again.png": FILES["train/cat/001.png"]}
    )
    assert append(first, incoming, dataset) is None
    assert new_records(dataset, first, list_for_append(incoming, CONFIG), incoming.uri).num_images == 0
    assert ids(dataset) == [first.id]
    result = append_snapshot(first, incoming, dataset, CONFIG, lambda plans: pytest.fail("ran again"))
    assert result is None


def test_a_duplicate_of_a_retired_image_is_new(tmp_path: Path, dataset: Store) -> None:
    """What was judged against a bad append was remembered for all its ancestors too: once the append was
    retired, the corrected copies of its images were "no new image", for ever.
    """
    first = build(fill(tmp_path / "corpus", FILES), dataset)
    wrong = append(first, fill(tmp_path / "wrong", {"train/dog/x.png": png(777)}), dataset)
    right = fill(tmp_path / "right", {"train/cat/x.png": png(777)})
    assert append(wrong, right, dataset) is None
    assert append(wrong, right, dataset) is None
    retire_snapshot(dataset, wrong.id, "wrong labels")
    third = append(load_snapshot(dataset, "HEAD"), right, dataset)
    assert third.parent == first.id
    assert third.stats["train"] == first.stats["train"] | {"cat": first.stats["train"]["cat"] + 1}


def test_append_from_an_empty_or_absent_prefix_is_nothing_new(tmp_path: Path, dataset: Store) -> None:
    first = build(fill(tmp_path / "corpus", FILES), dataset)
    assert append(first, open_store(str(tmp_path / "absent")), dataset) is None


def test_append_that_lost_the_race_is_redone_on_the_winner(tmp_path: Path, dataset: Store) -> None:
    first = build(fill(tmp_path / "corpus", FILES), dataset)
    ours = fill(tmp_path / "ours", {"train/ant/1.png": png(900), "train/cat/s.png": png(902)})
    theirs = fill(tmp_path / "theirs", {"train/bee/1.png": png(901), "train/cat/t.png": png(902)})
    run_here = write_shards_here(ours, dataset, CONFIG.limits)
    raced = []

    def run_while_another_appends(plans: ShardPlans) -> Iterable[ShardResult]:
        if not raced:
            raced.append(append(first, theirs, dataset))
        return run_here(plans)

    third = append_snapshot(first, ours, dataset, CONFIG, run_while_another_appends)
    assert (third.number, third.parent) == (3, raced[0].id)
    assert third.classes == ("cat", "dog", "bee", "ant")
    assert rejects(dataset, third) == {"train/cat/s.png": "duplicate"}
    assert load_snapshot(dataset, "HEAD") == third


def test_append_to_a_snapshot_that_is_retired_meanwhile_fails_loudly(tmp_path: Path, dataset: Store) -> None:
    """Else it would come back as an ancestor of HEAD."""
    corpus = fill(tmp_path / "corpus", FILES)
    first = build(corpus, dataset)
    second = append(first, fill(tmp_path / "more", {"train/cat/m.png": png(901)}), dataset)
    incoming = fill(tmp_path / "incoming", {"train/cat/n.png": png(900)})
    run_here = write_shards_here(incoming, dataset, CONFIG.limits)

    def run_while_another_retires(plans: ShardPlans) -> Iterable[ShardResult]:
        retire_snapshot(dataset, second.id, "wrong labels")
        return run_here(plans)

    with pytest.raises(SnapshotConflictError, match=f"HEAD was snapshot {second.id} and is {first.id} now"):
        append_snapshot(second, incoming, dataset, CONFIG, run_while_another_retires)
    assert load_snapshot(dataset, "HEAD") == first
    third = append(first, incoming, dataset)
    assert (third.number, third.parent) == (3, first.id)


def test_append_to_a_chain_that_was_replaced_fails_loudly(tmp_path: Path, dataset: Store) -> None:
    corpus = fill(tmp_path / "corpus", FILES)
    first = build(corpus, dataset)
    incoming = fill(tmp_path / "incoming", {"train/cat/n.png": png(900)})
    run_here = write_shards_here(incoming, dataset, CONFIG.limits)

    def run_while_another_replaces(plans: ShardPlans) -> Iterable[ShardResult]:
        retire_snapshot(dataset, first.id, "wrong options")
        build(corpus, dataset, replace(CONFIG, seed=5))
        return run_here(plans)

    with pytest.raises(SnapshotConflictError, match=f"HEAD was snapshot {first.id} and is 2-"):
        append_snapshot(first, incoming, dataset, CONFIG, run_while_another_replaces)
    assert len(ids(dataset)) == 2
