"""Images to a first snapshot: each once, the same whoever works, and what is refused."""

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
from data.outcomes import new_records
from data.shard_index import read_index
from data.shard_plan import ShardPlans
from data.shard_write import ShardResult, write_shard, write_shards_here
from data.sharding_config import ShardingConfig
from data.store import Store
from data.types import Record
from infra.store import open_store
from tests.image_samples import fill, photos, png
from tests.listings import listing_of, records_in
from tests.small_builds import CONFIG, FILES, append, build, ids, names, rejects


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
