import os
import pickle
import tempfile
import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.errors import InputError
from data.store import ObjectNotFoundError, ObjectTooShortError, StoreError, StoreRefusedError
from infra.store import FolderStore, check_store, open_store
from tests.other_user import forbidden_folder, without_rights

NAMES = st.text(st.characters(codec="utf-8", exclude_characters="\0/"), min_size=1, max_size=20).filter(
    lambda name: name not in (".", "..") and len(name.encode()) < 200
)


@pytest.fixture
def store(tmp_path: Path) -> FolderStore:
    return FolderStore(root=tmp_path / "a store" / "50%25")


def test_what_is_put_is_read_back_under_odd_names(store: FolderStore) -> None:
    for name in ("plain", "with space/x y.png", "100%/%2F.txt", "é/日本.jpg", ".hidden"):
        store.put(name, name.encode())
        assert store.get(name) == name.encode()
        assert store.exists(name)


def test_the_uri_opens_the_same_store(store: FolderStore) -> None:
    """A folder named `50%25` became `50%` when the URI was not encoded."""
    store.put("x", b"1")
    assert open_store(store.uri) == store
    assert open_store(str(store.root)) == store
    assert open_store(store.sub("a b").uri) == FolderStore(root=store.root / "a b")


def test_listing_is_sorted_by_path_and_follows_s3s_rule(store: FolderStore) -> None:
    """A walk that sorts names folder by folder yields `a/x` before `a.png`; S3 does not."""
    names = ["a/x", "a.png", "a-b", "b/c/d", "b/c.e", "A"]
    for name in names:
        store.put(name, b"12")
    listed = list(store.list())
    assert [info.path for info in listed] == sorted(names)
    assert {info.size_bytes for info in listed} == {2}
    assert [info.path for info in store.list("b")] == ["b/c.e", "b/c/d"]
    assert list(store.list("absent")) == []


@settings(deadline=None, max_examples=25)
@given(names=st.lists(st.lists(NAMES, min_size=1, max_size=3), min_size=1, max_size=6))
def test_any_names_come_back_sorted(names: list[list[str]], tmp_path_factory: pytest.TempPathFactory) -> None:
    store = FolderStore(root=tmp_path_factory.mktemp("any"))
    kept: set[str] = set()
    for parts in names:
        path = "/".join(parts)
        try:
            store.put(path, b"")
        except StoreError:
            continue  # a file stands where this one needs a folder, or the reverse
        kept.add(path)
    assert [info.path for info in store.list()] == sorted(kept)


def test_a_failed_write_leaves_neither_half_an_object_nor_rubbish(store: FolderStore, tmp_path: Path) -> None:
    store.put("x", b"old")
    with pytest.raises(StoreError):
        store.upload(tmp_path / "absent", "x")
    assert store.get("x") == b"old"
    assert [path.name for path in store.root.iterdir()] == ["x"]


def test_half_written_files_of_a_killed_writer_are_not_listed(store: FolderStore) -> None:
    store.put("x", b"")
    (store.root / ".coatnet-partial-1").write_bytes(b"half")
    assert [info.path for info in store.list()] == ["x"]


def test_one_of_many_writers_wins(store: FolderStore) -> None:
    for number in range(10):
        wins: list[int] = []
        barrier = threading.Barrier(8)

        def write(writer: int, path: str, wins: list[int], barrier: threading.Barrier) -> None:
            barrier.wait()
            if store.put_if_absent(path, bytes([writer])):
                wins.append(writer)

        threads = [
            threading.Thread(target=write, args=(writer, f"head-{number}", wins, barrier))
            for writer in range(8)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(wins) == 1
        assert store.get(f"head-{number}") == bytes(wins)


def test_ranges_are_exact_or_an_error(store: FolderStore) -> None:
    """A truncated shard once gave short images instead of an error."""
    store.put("x", b"0123456789")
    assert store.get_range("x", 2, 3) == b"234"
    assert store.get_range("x", 0, 0) == b""
    with pytest.raises(ObjectTooShortError, match="wanted 5 bytes from 8, found 2"):
        store.get_range("x", 8, 5)
    with pytest.raises(ObjectTooShortError, match="wanted 5 bytes from 20, found 0"):
        store.get_range("x", 20, 5)


def test_download_and_upload(store: FolderStore, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(b"content")
    store.upload(source, "folder/x")
    store.download("folder/x", tmp_path / "new folder" / "target")
    assert (tmp_path / "new folder" / "target").read_bytes() == b"content"


def test_an_upload_may_take_its_source(store: FolderStore, tmp_path: Path) -> None:
    """A shard's tar was copied, and so written twice."""
    source = tmp_path / "source"
    source.write_bytes(b"content")
    inode = source.stat().st_ino
    store.upload(source, "folder/x", keep_source=False)
    assert store.get("folder/x") == b"content"
    assert (store.root / "folder/x").stat().st_ino == inode


def test_a_source_on_another_disk_is_copied(store: FolderStore, tmp_path: Path) -> None:
    memory = Path("/dev/shm")
    if not memory.is_dir() or memory.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("there is no second disk")
    with tempfile.NamedTemporaryFile(dir=memory) as source:
        source.write(b"content")
        source.flush()
        store.upload(Path(source.name), "x", keep_source=False)
    assert store.get("x") == b"content"


def test_absent_objects(store: FolderStore, tmp_path: Path) -> None:
    for read in (
        store.get,
        lambda path: store.get_range(path, 0, 1),
        lambda path: store.download(path, tmp_path / "t"),
    ):
        with pytest.raises(ObjectNotFoundError, match="absent does not exist"):
            read("absent")
    assert not store.exists("absent")
    assert not (tmp_path / "t").exists()
    store.delete("absent")


@pytest.mark.parametrize("path", ["../x", "a/../../x", "/etc/passwd", "", "a//b", "./a", "a/", "a\0b"])
def test_paths_that_leave_the_root_are_refused(store: FolderStore, path: str) -> None:
    with pytest.raises(InputError, match="not allowed"):
        store.put(path, b"")


def test_a_link_to_a_folder_above_is_an_error_not_an_endless_listing(store: FolderStore) -> None:
    store.put("a/x", b"")
    (store.root / "a" / "loop").symlink_to(store.root)
    with pytest.raises(InputError, match="links to a folder above"):
        list(store.list())


def test_a_link_to_nothing_is_listed_and_found_missing(store: FolderStore) -> None:
    """It was left out without a word: images on a disk that is not mounted."""
    store.put("a/x", b"x")
    (store.root / "a" / "gone").symlink_to("/not/mounted/gone")
    assert [info.path for info in store.list()] == ["a/gone", "a/x"]
    with pytest.raises(ObjectNotFoundError):
        store.get("a/gone")


def test_a_store_survives_pickling(store: FolderStore) -> None:
    assert pickle.loads(pickle.dumps(store)) == store  # noqa: S301


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("", "not known"),
        ("gs://bucket/x", "not known"),
        ("s3://", "not valid"),
        ("s3://UPPER/x", "not valid"),
        ("s3://bucket/../x", "not allowed"),
        ("file://host/x", "names a host"),
    ],
)
def test_bad_uris(uri: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        open_store(uri)


def test_check_store(store: FolderStore, tmp_path: Path) -> None:
    check_store(store)
    assert list(store.list()) == []
    check_store(store, writable=False)
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(InputError, match="cannot be written"):
        check_store(FolderStore(root=tmp_path / "file" / "below"))
    with pytest.raises(InputError, match="does not exist"):
        check_store(FolderStore(root=tmp_path / "nowhere"), writable=False)


def test_a_link_that_nfs_repeats_still_wins(store: FolderStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """The client did not hear that the first one was done, and the second is refused."""
    real = os.link

    def link_twice(source: Path, target: Path) -> None:
        real(source, target)
        real(source, target)

    monkeypatch.setattr(os, "link", link_twice)
    assert store.put_if_absent("x", b"mine")
    assert not store.put_if_absent("x", b"other")
    assert store.get("x") == b"mine"
    assert os.listdir(store.root) == ["x"]


def test_what_may_not_be_read_is_named_and_is_no_fault_to_retry() -> None:
    """A `lost+found` in a corpus ended in `Permission denied; run the same command to go on`."""
    with forbidden_folder("data/secret") as root:
        store = FolderStore(root=root / "data")
        with without_rights():
            with pytest.raises(StoreRefusedError, match=r"data/secret: Permission denied$"):
                list(store.list())
            with pytest.raises(StoreRefusedError, match=r"data/b.png: Permission denied$"):
                store.put("b.png", b"x")
