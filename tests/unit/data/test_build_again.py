"""A build made again finds its snapshot; another first one is refused until that is retired."""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from data.build import build_snapshot
from data.errors import InputError
from data.list_corpus import list_for_build
from data.retirement import retire_snapshot
from data.shard_plan import ShardPlans
from data.shard_write import ShardResult, write_shards_here
from data.snapshot import commit_snapshot, load_snapshot
from data.store import Store
from infra.store import open_store
from tests.image_samples import fill, png
from tests.small_builds import CONFIG, FILES, append, build, ids


def test_building_again_finds_the_snapshot_that_is_there(tmp_path: Path, dataset: Store) -> None:
    """A stage that is killed between the commit and its record runs again."""
    corpus = fill(tmp_path / "corpus", FILES)
    first = build(corpus, dataset)
    for info in list(dataset.list("builds")):
        dataset.delete(info.path)
    assert build(corpus, dataset) == first
    assert ids(dataset) == [first.id]


@pytest.mark.parametrize("content", [b"", b"\xff", b"[]"])
def test_a_damaged_record_is_none(tmp_path: Path, dataset: Store, content: bytes) -> None:
    """An empty one, as a full disk leaves it, ended every later build in a traceback."""
    corpus = fill(tmp_path / "corpus", FILES)
    first = build(corpus, dataset)
    (record,) = dataset.list("builds")
    for path in (record.path, f"builds/{'0' * 32}.json"):
        dataset.put(path, content)
    assert build(corpus, dataset) == first


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
