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

from data.build import append_snapshot, build_snapshot
from data.errors import InputError
from data.list_corpus import list_for_append, list_for_build
from data.near_duplicate_report import read_near_duplicates
from data.outcomes import new_records
from data.retirement import retire_snapshot
from data.shard_index import parquet_table
from data.shard_plan import ShardPlans
from data.shard_write import ShardResult, write_shard, write_shards_here
from data.sharding_config import ShardingConfig
from data.snapshot import (
    Snapshot,
    SnapshotConflictError,
    commit_snapshot,
    list_snapshots,
    load_snapshot,
    read_index,
)
from data.store import Store
from data.types import Record
from infra.store import open_store
from tests.card_dataset import scene
from tests.image_samples import encode, fill, photos, png
from tests.listings import listing_of, records_in

CONFIG = ShardingConfig(shard_size_bytes=8000)
FILES = (
    photos("train/cat", 8, 0)
    | photos("train/dog", 8, 100)
    | photos("test/cat", 3, 200)
    | photos("test/dog", 3, 300)
)


def build(corpus: Store, dataset: Store, config: ShardingConfig = CONFIG) -> Snapshot:
    return build_snapshot(corpus, dataset, config, write_shards_here(corpus, dataset, config.limits))


def append(
    parent: Snapshot, corpus: Store, dataset: Store, config: ShardingConfig = CONFIG
) -> Snapshot | None:
    return append_snapshot(parent, corpus, dataset, config, write_shards_here(corpus, dataset, config.limits))


def names(dataset: Store, snapshot: Snapshot, split: str) -> list[str]:
    return sorted(
        row["name"] for shard in snapshot.splits[split] for row in read_index(dataset, shard).to_pylist()
    )


def ids(dataset: Store) -> list[str]:
    return [header.id for header in list_snapshots(dataset)]


def rejects(dataset: Store, snapshot: Snapshot) -> dict[str, str]:
    table = parquet_table(dataset.get(snapshot.quarantine_path))
    return {row["path"]: row["reason"] for row in table.to_pylist()}


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
        build(leaky, dataset)
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
    with pytest.raises(InputError, match=r"5 of 27 images cannot be used \(5 unknown_label\)"):
        build(fill(tmp_path / "corpus", photos("train/eel", 5, 700)), dataset, config)
    arrived = fill(tmp_path / "arrived", photos("train/fox", 1, 710))
    assert append(first, arrived, dataset, config) is None, "remembered, though no shard was planned"
    assert new_records(dataset, first, list_for_append(arrived, config)).num_images == 0


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
    assert new_records(dataset, first, list_for_append(incoming, CONFIG)).num_images == 0
    assert ids(dataset) == [first.id]
    result = append_snapshot(first, incoming, dataset, CONFIG, lambda plans: pytest.fail("ran again"))
    assert result is None


def test_append_from_an_empty_or_absent_prefix_is_nothing_new(tmp_path: Path, dataset: Store) -> None:
    first = build(fill(tmp_path / "corpus", FILES), dataset)
    assert append(first, open_store(str(tmp_path / "absent")), dataset) is None


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


def test_new_class_without_a_usable_image_is_refused(tmp_path: Path, dataset: Store) -> None:
    first = build(fill(tmp_path / "corpus", FILES), dataset)
    incoming = fill(tmp_path / "incoming", {"train/cat/n.png": png(900), "train/ant/bad.png": b"no"})
    with pytest.raises(InputError, match="class 'ant' has no usable image for training"):
        append(first, incoming, dataset)
    assert ids(dataset) == [first.id]


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


@pytest.mark.parametrize("option", [{"near_duplicates": "off"}, {"shard_size_bytes": 9000}])
def test_a_second_first_snapshot_is_refused_as_it_would_hide_the_appends(
    tmp_path: Path, dataset: Store, option: dict[str, Any]
) -> None:
    corpus = fill(tmp_path / "corpus", FILES)
    first = build(corpus, dataset)
    second = append(first, fill(tmp_path / "more", {"train/cat/m.png": png(901)}), dataset)
    with pytest.raises(InputError, match=f"holds snapshot {second.id}, made of other images or with other"):
        build(corpus, dataset, replace(CONFIG, **option))
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
