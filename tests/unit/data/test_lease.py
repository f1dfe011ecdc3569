"""Leases by the store's clock; the machines' own may differ."""

import logging
import os
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from data import lease
from data.lease import BUILDS, GC, Lease, active_leases, building, hold, list_leases, store_time_s
from data.store import Store, StoreError
from infra.folder_store import FolderStore


@dataclass(frozen=True, slots=True, kw_only=True)
class FailingStore(FolderStore):
    """A real folder whose writes fail while `down` is set."""

    down: threading.Event = field(default_factory=threading.Event)

    def put(self, path: str, content: bytes) -> None:
        if self.down.is_set():
            raise StoreError("503")
        FolderStore.put(self, path, content)


def age(dataset: FolderStore, path: str, seconds: float) -> None:
    """Make an object older by the store's clock."""
    file = dataset.root / path
    modified_s = file.stat().st_mtime - seconds
    os.utime(file, (modified_s, modified_s))


@pytest.fixture
def dataset(tmp_path: Path) -> FolderStore:
    return FolderStore(root=tmp_path)


def test_a_lease_stands_for_the_block_and_names_its_holder(dataset: Store) -> None:
    with hold(dataset, "1-a") as held:
        (found,) = active_leases(dataset)
        assert (found.what, found.path) == ("1-a", held.path)
        assert str(os.getpid()) in found.owner
        assert active_leases(dataset, "2-b") == []
        with hold(dataset, "1-a"):
            assert len(active_leases(dataset, "1-a")) == 2
    assert list(dataset.list()) == []


def test_what_a_file_browser_leaves_is_no_lease(dataset: Store) -> None:
    """A `.DS_Store` ended `gc` and `show` in a traceback."""
    with hold(dataset, BUILDS) as held:
        for path in (".DS_Store", "builds/.DS_Store", "builds/._x.json"):
            dataset.put(f"leases/{path}", b"\xff")
        assert [found.path for found in list_leases(dataset)] == [held.path]


def test_a_crashed_owners_lease_expires_by_the_stores_clock(dataset: FolderStore) -> None:
    with hold(dataset, "1-a", lifetime_s=100) as held:
        age(dataset, held.path, 90)
        assert len(active_leases(dataset)) == 1
        age(dataset, held.path, 20)
        assert active_leases(dataset) == []
        assert len(list_leases(dataset)) == 1


def test_a_machine_whose_clock_is_wrong_sees_the_same(
    dataset: FolderStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    with hold(dataset, "1-a"):
        monkeypatch.setattr(time, "time", lambda: 0.0)
        (found,) = active_leases(dataset)
        assert 0 < found.expires_in_s <= lease.LIFETIME_S


def test_the_stores_time_is_that_of_what_is_written_now(dataset: FolderStore) -> None:
    dataset.put("x", b"")
    (info,) = dataset.list()
    assert 0 <= store_time_s(dataset) - info.modified_s < 60


def test_it_is_renewed_and_a_store_that_is_away_only_warns(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    dataset = FailingStore(root=tmp_path)
    with (
        caplog.at_level(logging.WARNING),
        hold(dataset, "1-a", lifetime_s=2.0) as held,
    ):  # renewed 30 times a s
        first_s = (tmp_path / held.path).stat().st_mtime
        while (tmp_path / held.path).stat().st_mtime == first_s:
            time.sleep(0.01)
        dataset.down.set()
        while "going on: 503" not in caplog.text:
            time.sleep(0.01)
        dataset.down.clear()
    assert not list(dataset.list("leases"))


def test_a_lease_that_cannot_be_taken_is_a_fault(tmp_path: Path) -> None:
    dataset = FailingStore(root=tmp_path)
    dataset.down.set()
    with pytest.raises(StoreError, match="503"), hold(dataset, "1-a"):
        pytest.fail("held")


def test_a_lease_that_lapsed_is_noticed_though_it_was_renewed_since(
    dataset: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A laptop that slept over a gc wakes up, renews, and would commit what is gone."""
    held = Lease(dataset, BUILDS, lifetime_s=3600)
    held.write()
    held.check()
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + 3000)
    held.write()
    with pytest.raises(StoreError, match="was not renewed for 50 minutes"):
        held.check()


def test_a_build_waits_for_a_gc(dataset: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "_POLL_S", 0.01)
    said: list[str] = []
    events: list[str] = []

    def build() -> None:
        with building(dataset, said.append):
            events.append("built")

    with hold(dataset, GC) as collector:
        thread = threading.Thread(target=build)
        thread.start()
        while not said:
            time.sleep(0.01)
        events.append("collected")
    thread.join()
    assert events == ["collected", "built"]
    assert said == [f"waiting for the gc of {collector.owner} to end"]
