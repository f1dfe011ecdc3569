"""S3Store against SeaweedFS; tests/faults/test_store.py does it under spoilt answers."""

import os
import pickle
import re
import threading
import time
from pathlib import Path

import pytest

from data.errors import InputError
from data.store import ObjectNotFoundError, ObjectTooShortError, Store
from infra.store import check_store, open_store
from tests.conftest import Stack

pytestmark = pytest.mark.integration


@pytest.fixture
def store(object_store: Stack, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Store:
    for name, value in object_store.environment.items():
        monkeypatch.setenv(name, value)
    test_name = re.sub(r"\W", "-", request.node.name)
    return open_store(f"s3://coatnet/tests/{test_name}/{time.time_ns()} a+b%20")


def test_objects_come_back_under_odd_names(store: Store) -> None:
    for name in ("plain", "with space/x y.png", "100%/%2F+.txt", "é/日本.jpg", ".hidden"):
        store.put(name, name.encode())
        assert store.get(name) == name.encode()
        assert store.exists(name)
    assert [info.path for info in store.list("é")] == ["é/日本.jpg"]


def test_listing_is_sorted_by_path(store: Store) -> None:
    """SeaweedFS lists in directory order: `a/x` before `a.png`."""
    names = ["a/x", "a.png", "a-b", "b/c/d", "b/c.e", "A"]
    for name in names:
        store.put(name, b"12")
    assert [info.path for info in store.list()] == sorted(names)
    assert {(info.size_bytes, len(info.etag)) for info in store.list()} == {(2, 32)}
    assert [info.path for info in store.sub("b").list()] == ["c.e", "c/d"]


def test_more_objects_than_one_page(store: Store) -> None:
    """A page of a listing holds 1000 names."""
    threads = [
        threading.Thread(target=lambda k=k: [store.put(f"{n:04d}", b"") for n in range(k, 1010, 8)])
        for k in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [info.path for info in store.list()] == [f"{n:04d}" for n in range(1010)]
    assert sorted(info.path for info in store.scan()) == [f"{n:04d}" for n in range(1010)]


def test_one_of_many_writers_wins(store: Store) -> None:
    for number in range(5):
        wins: list[int] = []
        barrier = threading.Barrier(16)

        def write(writer: int, path: str, wins: list[int], barrier: threading.Barrier) -> None:
            barrier.wait()
            if store.put_if_absent(path, bytes([writer])):
                wins.append(writer)

        threads = [
            threading.Thread(target=write, args=(w, f"head-{number}", wins, barrier)) for w in range(16)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(wins) == 1
        assert store.get(f"head-{number}") == bytes(wins)


def test_a_big_file_goes_up_in_parts_and_comes_back(store: Store, tmp_path: Path) -> None:
    source = tmp_path / "big"
    with source.open("wb") as file:
        for number in range(70):
            file.write(bytes([number]) * (1 << 20))
    store.upload(source, "big")
    assert store.get_range("big", (33 << 20) - 2, 4) == bytes([32, 32, 33, 33])
    store.download("big", tmp_path / "new" / "copy")
    assert (tmp_path / "new" / "copy").read_bytes() == source.read_bytes()


def test_bytes_in_parts_come_back(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkpoint of more than 5 GiB went up in one piece, which AWS refuses: it could never be saved."""
    monkeypatch.setattr("infra.s3_store._MULTIPART.multipart_threshold", 1 << 20)
    content = os.urandom(1 << 20) * 33
    store.put("big", content)
    store.put("small", content[:100])
    assert store.get("big") == content
    etags = {info.path: info.etag for info in store.list()}
    assert etags["big"].endswith("-2"), "S3 marks an object of two parts so"
    assert "-" not in etags["small"]
    store.put("big", content[: 1 << 20])
    assert store.get("big") == content[: 1 << 20]


def test_absent_objects_and_short_ranges(store: Store, tmp_path: Path) -> None:
    for read in (
        store.get,
        lambda path: store.get_range(path, 0, 1),
        lambda path: store.download(path, tmp_path / "t"),
    ):
        with pytest.raises(ObjectNotFoundError, match="absent does not exist"):
            read("absent")
    assert not store.exists("absent")
    assert list(tmp_path.iterdir()) == []
    store.delete("absent")
    store.put("x", b"0123456789")
    assert store.get_range("x", 2, 3) == b"234"
    with pytest.raises(ObjectTooShortError, match="wanted 5 bytes from 8, got 2"):
        store.get_range("x", 8, 5)
    with pytest.raises(ObjectTooShortError, match="x ends before the range that was asked for"):
        store.get_range("x", 20, 5)


def test_a_pickled_store_makes_its_own_client(store: Store) -> None:
    store.put("x", b"1")
    copy = pickle.loads(pickle.dumps(store))  # noqa: S301
    assert copy == store
    assert copy.get("x") == b"1"


class TestCheckStore:
    """One clear line for each thing that can be wrong, within seconds."""

    def test_a_good_store_passes_and_keeps_nothing(self, store: Store) -> None:
        check_store(store)
        check_store(store, writable=False)
        assert list(store.list()) == []

    @pytest.mark.parametrize("writable", [True, False])
    @pytest.mark.parametrize(
        ("uri", "environment", "message"),
        [
            ("s3://no-such-bucket/x", {}, "the bucket does not exist"),
            ("s3://coatnet/x", {"AWS_SECRET_ACCESS_KEY": "wrong"}, "correct AWS_SECRET_ACCESS_KEY"),
            ("s3://coatnet/x", {"AWS_ACCESS_KEY_ID": "wrong"}, "correct AWS_ACCESS_KEY_ID"),
            (
                "s3://coatnet/x",
                {"AWS_ENDPOINT_URL_S3": "http://127.0.0.1:9"},
                "at http://127.0.0.1:9: no answer",
            ),
            ("s3://coatnet/x", {"AWS_ENDPOINT_URL_S3": "nonsense"}, "http://host:port"),
            ("s3://coatnet/x", {"AWS_PROFILE": "no-such-profile"}, "no-such-profile"),
        ],
    )
    def test_what_is_wrong(
        self,
        store: Store,
        monkeypatch: pytest.MonkeyPatch,
        uri: str,
        environment: dict[str, str],
        message: str,
        writable: bool,
    ) -> None:
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        started_at = time.monotonic()
        with pytest.raises(InputError, match=message) as caught:
            check_store(open_store(uri), writable=writable)
        assert time.monotonic() - started_at < 20
        assert "\n" not in str(caught.value)

    def test_no_credentials(self, store: Store, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.delenv("AWS_ACCESS_KEY_ID")
        monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
        monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
        with pytest.raises(InputError, match="no credentials: set AWS_ACCESS_KEY_ID"):
            check_store(open_store("s3://coatnet/x"))
