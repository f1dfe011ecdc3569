import random
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.build import build_snapshot
from data.errors import InputError
from data.list_corpus import list_for_append, list_for_build
from data.near_duplicate_report import read_near_duplicates
from data.outcomes import new_records
from data.retirement import retire_snapshot
from data.shard_index import read_index
from data.shard_plan import ShardPlans
from data.shard_write import ShardResult, write_shard, write_shards_here
from data.sharding_config import ShardingConfig
from data.snapshot import (
    commit_snapshot,
    load_snapshot,
)
from data.store import Store
from data.types import Record
from infra.store import open_store
from tests.card_dataset import scene
from tests.image_samples import encode, fill, photos, png
from tests.listings import listing_of, records_in
from tests.small_builds import CONFIG, FILES, append, build, ids, names, rejects


@pytest.fixture
def dataset(tmp_path: Path) -> Store:
    return open_store(str(tmp_path / "dataset"))


def test_build_takes_every_image_once(tmp_path: Path, dataset: Store) -> None:
    snapshot = build(fill(tmp_path / "corpus", FILES), dataset)
    assert snapshot.classes == ("cat", "dog")
    assert names(dataset, snapshot, "train") == sorted(f for f in FILES if f.startswith("train"))
    assert names(dataset, snapshot, "eval") == sorted(f for f in FILES if f.startswith("test"))
    assert len(snapshot.splits["train"]) > 1
    assert snapshot.stats["samples"] == {"train": 16, "eval": 6}
    assert snapshot.stats["train"] == {"cat": 8, "dog": 8}
    assert (snapshot.number, snapshot.parent, snapshot.quarantine_path) == (1, None, None)


def test_same_corpus_gives_the_same_snapshot_whatever_the_workers_order(
    tmp_path: Path, dataset: Store
) -> None:
    corpus = fill(tmp_path / "corpus", FILES)
    first = build(corpus, dataset)
    other = open_store(str(tmp_path / "other"))
    run_here = write_shards_here(corpus, other, CONFIG.limits)

    def run_shuffled(plans: ShardPlans) -> list[ShardResult]:
        return random.Random(1).sample(results := list(run_here(plans)), len(results))

    assert build_snapshot(corpus, other, CONFIG, run_shuffled) == first


def test_building_again_finds_the_snapshot_that_is_there(tmp_path: Path, dataset: Store) -> None:
    """A stage that is killed between the commit and its record runs again."""
    corpus = fill(tmp_path / "corpus", FILES)
    first = build(corpus, dataset)
    for info in list(dataset.list("builds")):
        dataset.delete(info.path)
    assert build(corpus, dataset) == first
    assert ids(dataset) == [first.id]


def test_precomputed_listing_is_used(tmp_path: Path, dataset: Store) -> None:
    corpus = fill(tmp_path / "corpus", FILES)
    listing = list_for_build(corpus, CONFIG)
    corpus.put("train/cat/late.png", png(900))
    run_all = write_shards_here(corpus, dataset, CONFIG.limits)
    snapshot = build_snapshot(corpus, dataset, CONFIG, run_all, listing=listing)
    assert snapshot.listing_digest == listing.digest
    assert "train/cat/late.png" not in names(dataset, snapshot, "train")


def test_without_split_folders_eval_is_a_share(tmp_path: Path, dataset: Store) -> None:
    corpus = fill(tmp_path / "corpus", photos("a", 40, 0) | photos("b", 40, 100))
    config = replace(CONFIG, eval_fraction=0.25, max_train_per_class=10)
    snapshot = build(corpus, dataset, config)
    assert snapshot.stats["train"] == {"a": 10, "b": 10}
    assert 10 <= snapshot.stats["samples"]["eval"] <= 32
    other = open_store(str(tmp_path / "other"))
    uncapped = build(corpus, other, replace(config, max_train_per_class=None))
    assert names(other, uncapped, "eval") == names(dataset, snapshot, "eval")


def test_one_broken_png_is_quarantined_and_counted(tmp_path: Path, dataset: Store) -> None:
    corpus = fill(tmp_path / "corpus", FILES | {"train/cat/broken.png": png(5)[:-20]})
    snapshot = build(corpus, dataset)
    assert snapshot.stats["rejects"] == {"unreadable": 1}
    assert rejects(dataset, snapshot) == {"train/cat/broken.png": "unreadable"}
    assert snapshot.stats["samples"] == {"train": 16, "eval": 6}


def test_too_many_rejects_stop_the_build_and_commit_nothing(tmp_path: Path, dataset: Store) -> None:
    corpus = fill(tmp_path / "corpus", FILES | {"train/cat/x.png": b"no", "train/cat/y.png": b""})
    with pytest.raises(
        InputError, match=r"2 of 24 images .*1 empty.*allowed are 5\.0%; e\.g\. 'train/cat/x.png'"
    ):
        build(corpus, dataset)
    assert ids(dataset) == []


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (photos("train/a", 2, 0), "no image for eval"),
        (photos("test/a", 2, 0), "class 'a' has no usable image for training"),
        (
            photos("train/a", 2, 0) | photos("test/a", 1, 9) | photos("test/b", 1, 8),
            "class 'b' has no usable",
        ),
    ],
)
def test_what_cannot_be_learnt_or_evaluated_is_refused_before_work(
    tmp_path: Path, dataset: Store, files: dict[str, bytes], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        build_snapshot(fill(tmp_path / "corpus", files), dataset, CONFIG, lambda plans: pytest.fail("ran"))


def test_duplicates_go_and_leaks_stop(tmp_path: Path, dataset: Store) -> None:
    twins = {"train/dog/twin.png": FILES["train/dog/003.png"]}
    snapshot = build(fill(tmp_path / "corpus", FILES | twins), dataset)
    assert rejects(dataset, snapshot) == {"train/dog/twin.png": "duplicate"}
    assert snapshot.stats["train"] == {"cat": 8, "dog": 8}
    assert names(dataset, snapshot, "train") == sorted(f for f in FILES if f.startswith("train"))

    leaky = fill(tmp_path / "leaky", FILES | {"test/cat/leak.png": FILES["train/cat/001.png"]})
    with pytest.raises(InputError, match=r"'train/cat/001\.png' = 'test/cat/leak\.png'"):
        build(leaky, open_store(str(tmp_path / "other")))
    other = open_store(str(tmp_path / "other"))
    dropped = build(leaky, other, replace(CONFIG, leak_policy="drop_train"))
    assert rejects(other, dropped) == {"train/cat/001.png": "leak"}
    assert dropped.stats["samples"] == {"train": 15, "eval": 7}


def test_the_policy_says_which_side_of_a_leak_goes(tmp_path: Path, dataset: Store) -> None:
    files = FILES | {"test/cat/leak.png": FILES["train/cat/001.png"]}
    config = replace(CONFIG, leak_policy="drop_eval")
    first = build(fill(tmp_path / "leaky", files), dataset, config)
    assert rejects(dataset, first) == {"test/cat/leak.png": "leak"}
    assert first.stats["samples"] == {"train": 16, "eval": 6}
    incoming = fill(tmp_path / "incoming", {"train/cat/n.png": png(801), "test/cat/n.png": png(801)})
    second = append(first, incoming, dataset, config)
    assert rejects(dataset, second) == {"test/cat/n.png": "leak"}


def test_a_finished_build_is_found_by_its_listing_and_reads_nothing(
    tmp_path: Path, dataset: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = fill(tmp_path / "corpus", FILES)
    first = build(corpus, dataset)
    listing = list_for_build(corpus, CONFIG)
    read: list[str] = []
    get = type(dataset).get
    monkeypatch.setattr(type(dataset), "get", lambda self, path: read.append(path) or get(self, path))
    again = build_snapshot(corpus, dataset, CONFIG, lambda plans: pytest.fail("ran"), listing=listing)
    assert again == first
    assert len(read) == 3  # the build's record, the snapshot, its shard list
    dataset.delete("snapshots/000001.json")
    assert build(corpus, dataset) == first


def test_labels_outside_of_the_class_list_go_to_the_quarantine(tmp_path: Path, dataset: Store) -> None:
    corpus = fill(tmp_path / "corpus", FILES | photos("train/eel", 1, 700))
    config = replace(CONFIG, classes=("cat", "dog"), unknown_labels="reject")
    first = build(corpus, dataset, config)
    assert first.classes == ("cat", "dog")
    assert rejects(dataset, first) == {"train/eel/000.png": "unknown_label"}
    assert append(first, corpus, dataset, config) is None
    arrived = fill(tmp_path / "arrived", photos("train/fox", 1, 710))
    assert append(first, arrived, dataset, config) is None, "remembered, though no shard was planned"
    assert new_records(dataset, first, list_for_append(arrived, config), arrived.uri).num_images == 0


def test_too_many_images_outside_of_the_class_list_are_refused_before_work(
    tmp_path: Path, dataset: Store
) -> None:
    """They are known from the listing, and yet all shards were written first."""
    config = replace(CONFIG, classes=("cat", "dog"), unknown_labels="reject", max_reject_fraction=0.1)
    two = fill(tmp_path / "two", FILES | photos("train/eel", 2, 700) | {"train/cat/x.png": b"no"})
    message = r"3 of 25 images cannot be used \(2 unknown_label, 1 unreadable\), .* 'train/cat/x.png': "
    with pytest.raises(InputError, match=message):
        build(two, dataset, config)
    five = fill(tmp_path / "five", FILES | photos("train/eel", 5, 700))
    message = (
        r"5 of 27 images cannot be used \(5 unknown_label\), allowed are 10.0%; e.g. 'train/eel/000.png': "
        r"the labels \['eel'\] are not all among"
    )
    with pytest.raises(InputError, match=message):
        build_snapshot(five, dataset, config, lambda plans: pytest.fail("ran"))


def test_records_of_several_labels_keep_them_in_shard_and_index(tmp_path: Path, dataset: Store) -> None:
    corpus = fill(tmp_path / "corpus", photos("x", 6, 0))
    records = [
        Record(
            key=f"{index}.png", path=f"x/{index:03d}.png", labels=("b", "a") if index % 2 else ("a",),
            split="eval" if index == 5 else "train", size_bytes=len(png(index)), etag="",
        )
        for index in range(6)
    ]  # fmt: skip
    run_all = write_shards_here(corpus, dataset, CONFIG.limits)
    snapshot = build_snapshot(corpus, dataset, CONFIG, run_all, listing=listing_of(records))
    rows = [row for s in snapshot.splits["train"] for row in read_index(dataset, s).to_pylist()]
    assert {row["name"]: row["labels"] for row in rows} == {
        f"{index}.png": [1, 0] if index % 2 else [0] for index in range(5)
    }
    assert snapshot.stats["train"] == {"a": 5, "b": 2}


@settings(deadline=None, max_examples=10)
@given(
    st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 30)), min_size=4, max_size=14, unique=True),
    st.integers(1, 5), st.integers(600, 4000), st.randoms(use_true_random=False),
)  # fmt: skip
def test_same_snapshot_whatever_the_workers_and_the_listing(
    images: list[tuple[str, int]], num_workers: int, shard_size_bytes: int, rng: random.Random
) -> None:
    """Workers finish in any order; duplicates, rejects and a listing in other batches are among it."""
    seeds = {"a": 0, "b": 3}
    files = {f"train/{name}/{seed}.png": png((seed + seeds[name]) % 11) for name, seed in images}
    files |= {"train/a/000.png": png(50), "train/b/000.png": png(51), "test/a/000.png": png(52)}
    files |= {"train/b/bad.png": b"no"}
    config = replace(CONFIG, shard_size_bytes=shard_size_bytes, max_reject_fraction=1.0)
    with TemporaryDirectory() as folder:
        corpus = fill(Path(folder) / "corpus", files)
        first, second = (open_store(f"{folder}/{name}") for name in ("one", "two"))
        expected = build(corpus, first, config)
        write = partial(write_shard, corpus=corpus, dataset=second, limits=config.limits)

        def run_in_threads(plans: ShardPlans) -> Iterable[ShardResult]:
            with ThreadPoolExecutor(num_workers) as pool:
                finished = list(pool.map(write, plans))
            return rng.sample(finished, len(finished))

        records = records_in(list_for_build(corpus, config))
        rng.shuffle(records)
        listing = listing_of(records)
        assert build_snapshot(corpus, second, config, run_in_threads, listing=listing) == expected
        for prefix in ("shards", "listings", "quarantine", "shard_lists", "snapshots"):
            contents = [
                {info.path: store.get(info.path) for info in store.list(prefix)} for store in (first, second)
            ]
            assert contents[0] == contents[1]


def test_look_alikes_are_reported_or_dropped(tmp_path: Path, dataset: Store) -> None:
    """A recompressed copy has other bytes. The one in train goes; its shard is written again without it."""
    scenes = [scene(seed) for seed in range(6)]
    files = {f"train/cat/{n}.png": encode(image, "PNG") for n, image in enumerate(scenes[:4])}
    files |= {f"test/cat/{n}.png": encode(image, "PNG") for n, image in enumerate(scenes[4:])}
    files |= {
        "train/cat/copy of 1.jpg": encode(scenes[1], "JPEG", quality=60),
        "train/cat/leak.jpg": encode(scenes[4], "JPEG", quality=60),
    }
    corpus = fill(tmp_path / "corpus", files)
    reported = build(corpus, dataset)
    assert reported.stats["near_duplicates"] == {"pairs": 2, "leaks": 1, "dropped": 0}
    assert reported.near_duplicates_path is not None
    first, second = read_near_duplicates(dataset, reported.near_duplicates_path, max_rows=10)
    assert (first.name, first.twin_name) == ("train/cat/leak.jpg", "test/cat/0.png")
    assert {second.name, second.twin_name} == {"train/cat/1.png", "train/cat/copy of 1.jpg"}

    other = open_store(str(tmp_path / "other"))
    dropped = build(corpus, other, replace(CONFIG, near_duplicates="drop", max_reject_fraction=0.0))
    assert dropped.stats["near_duplicates"] == {"pairs": 2, "leaks": 1, "dropped": 2}
    assert dropped.near_duplicates_path is None
    found = rejects(other, dropped)
    assert found["train/cat/leak.jpg"] == "near_leak"
    assert sorted(found.values()) == ["near_duplicate", "near_leak"]
    assert names(other, dropped, "train") == sorted(
        name for name in files if name.startswith("train/") and name not in found
    )
    assert dropped.stats["train"] == {"cat": 4}
    assert sum(shard.num_samples for shard in dropped.splits["train"]) == 4

    more = fill(tmp_path / "more", {"train/cat/again.jpg": encode(scenes[2], "JPEG", quality=50)})
    appended = append(reported, more, dataset)
    assert appended is not None
    assert appended.stats["near_duplicates"] == {"pairs": 1, "leaks": 0, "dropped": 0}
    assert append(dropped, more, other, replace(CONFIG, near_duplicates="drop")) is None
    third = open_store(str(tmp_path / "third"))
    assert build(corpus, third, replace(CONFIG, near_duplicates="off")).stats["near_duplicates"] == {}


@pytest.mark.parametrize("option", [{"seed": 5}, {"near_duplicates": "off"}, {"shard_size_bytes": 9000}])
def test_a_second_first_snapshot_is_refused_as_it_would_hide_the_appends(
    tmp_path: Path, dataset: Store, option: dict[str, Any]
) -> None:
    corpus = fill(tmp_path / "corpus", FILES)
    first = build(corpus, dataset)
    second = append(first, fill(tmp_path / "more", {"train/cat/m.png": png(901)}), dataset)
    other, message = replace(CONFIG, **option), f"holds snapshot {second.id}, made of other images or with"
    with pytest.raises(InputError, match=message):  # it was written to its end first
        build_snapshot(corpus, dataset, other, lambda plans: pytest.fail("ran"))
    others = fill(tmp_path / "others", FILES | {"train/cat/o.png": png(902)})
    with pytest.raises(InputError, match=message):
        build_snapshot(others, dataset, CONFIG, lambda plans: pytest.fail("ran"))
    for info in list(dataset.list("builds")):
        dataset.delete(info.path)
    with pytest.raises(InputError, match=message):
        build(corpus, dataset, other)
    assert load_snapshot(dataset, "HEAD") == second
    assert build(corpus, dataset) == first


def test_build_beside_a_retired_one_takes_the_next_number(tmp_path: Path, dataset: Store) -> None:
    corpus = fill(tmp_path / "corpus", FILES)
    run_here = write_shards_here(corpus, dataset, CONFIG.limits)
    other = build(corpus, open_store(str(tmp_path / "elsewhere")), replace(CONFIG, seed=9))

    def run_while_another_builds(plans: ShardPlans) -> Iterable[ShardResult]:
        commit_snapshot(dataset, other)
        return run_here(plans)

    with pytest.raises(InputError, match=f"holds snapshot {other.id}"):
        build_snapshot(corpus, dataset, CONFIG, run_while_another_builds)
    retire_snapshot(dataset, other.id, "made by mistake")
    assert build_snapshot(corpus, dataset, CONFIG, run_while_another_builds).number == 2


@pytest.mark.parametrize(
    "options",
    [
        {"classes": ()}, {"classes": ("a", "a")}, {"max_train_per_class": 0}, {"eval_fraction": 1.0},
        {"eval_fraction": -0.1}, {"shard_size_bytes": 0}, {"max_reject_fraction": 2}, {"leak_policy": "x"},
        {"near_duplicates": "x"}, {"near_duplicate_distance": 9},
    ],
)  # fmt: skip
def test_bad_config_names_the_field(options: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=next(iter(options))):
        ShardingConfig(**options)
