"""The same image twice, in train and in eval, and images that look alike."""

from dataclasses import replace
from pathlib import Path

import pytest

from data.errors import InputError
from data.near_duplicate_report import read_near_duplicates
from data.store import Store
from infra.store import open_store
from tests.card_dataset import scene
from tests.image_samples import encode, fill, png
from tests.small_builds import CONFIG, FILES, append, build, names, rejects


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
