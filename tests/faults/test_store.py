"""Every operation of the S3 store under spoilt answers: right in the end, or an error that says why."""

import logging
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from data.store import ObjectNotFoundError, StoreError
from infra.s3_client import S3Patience
from infra.s3_store import S3Store
from infra.store import check_store, open_store
from tests.conftest import Stack
from tests.fault_proxy import Fault, Request
from tests.faults.proxied_store import ENDPOINT, new_store, spoilt_store

pytestmark = [pytest.mark.integration, pytest.mark.faults]

_QUICK: tuple[Fault, ...] = (
    "error_500",
    "slow_down",
    "reset_before",
    "reset_amid",
    "lost_answer",
    "truncated",
    "flipped",
    "slow",
)
_CONTENT = os.urandom(100_000)
# Each fault reaches our own tries, not only botocore's.
_ONE_SEND = S3Patience(num_sends=1)


@pytest.fixture
def store(object_store: Stack, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> S3Store:
    for name, value in object_store.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("infra.s3_store._SHORTEST_PAUSE_S", 0.02)
    monkeypatch.setattr("infra.s3_store._LONGEST_PAUSE_S", 0.2)
    return new_store(request.node.name)


def put(store: S3Store, folder: Path) -> None:
    store.put("new", _CONTENT)


def put_if_absent(store: S3Store, folder: Path) -> None:
    assert store.put_if_absent("new", _CONTENT)


def upload(store: S3Store, folder: Path) -> None:
    (folder / "source").write_bytes(_CONTENT)
    store.upload(folder / "source", "new")


def get(store: S3Store, folder: Path) -> None:
    assert store.get("old") == _CONTENT


def get_range(store: S3Store, folder: Path) -> None:
    assert store.get_range("old", 7, 50_000) == _CONTENT[7:50_007]


def download(store: S3Store, folder: Path) -> None:
    store.download("old", folder / "target")
    assert (folder / "target").read_bytes() == _CONTENT
    assert [path.name for path in folder.iterdir()] == ["target"]


def find(store: S3Store, folder: Path) -> None:
    assert store.exists("old")
    assert not store.exists("absent")
    assert [info.path for info in store.list()] == ["old"]


def delete(store: S3Store, folder: Path) -> None:
    store.delete("old")
    assert not store.exists("old")


_WRITES = (put, put_if_absent, upload)
_OPERATIONS = (*_WRITES, get, get_range, download, find, delete)


@pytest.mark.parametrize("fault", _QUICK)
def test_each_operation_survives_each_fault_twice(store: S3Store, tmp_path: Path, fault: Fault) -> None:
    with spoilt_store(store, patience=_ONE_SEND) as (spoilt, proxy):
        for operation in _OPERATIONS:
            if operation is get_range and fault == "flipped":
                continue  # S3 gives no checksum of a part: the reader's crc32c of each image finds it.
            store.put("old", _CONTENT)
            store.delete("new")
            folder = tmp_path / operation.__name__
            folder.mkdir()
            proxy.script[:] = [fault, fault]
            operation(spoilt, folder)
            assert len(proxy.script) < 2
            proxy.script.clear()
            if operation in _WRITES:
                assert store.get("new") == _CONTENT


def test_a_write_whose_answer_got_lost_still_wins(store: S3Store) -> None:
    """The repeated request is refused because of its own first try: the writer believed to have lost."""
    with spoilt_store(store, script=["lost_answer"]) as (spoilt, _):
        assert spoilt.put_if_absent("head", b"mine")
        assert not spoilt.put_if_absent("head", b"mine")
    store.put_if_absent("other", b"another writer's")
    with spoilt_store(store, script=["lost_answer"]) as (spoilt, _):
        assert not spoilt.put_if_absent("other", b"mine")
    assert store.get("other") == b"another writer's"


def test_a_listing_goes_on_where_a_page_failed(store: S3Store) -> None:
    """A listing that began anew at each fault never came to the end of a large bucket."""
    names = [f"{number:03d}" for number in range(20)]
    for name in names:
        store.put(name, b"")
    pages: list[str] = []

    def is_listing(request: Request) -> bool:
        pages.append(request.path)
        return "list-type=2" in request.path

    with spoilt_store(store, rates={"reset_amid": 0.3, "slow_down": 0.3}, concerns=is_listing) as (
        spoilt,
        proxy,
    ):
        spoilt._client.get().meta.events.register(
            "provide-client-params.s3.ListObjectsV2", lambda params, **_: {**params, "MaxKeys": 2}
        )
        assert [info.path for info in spoilt.list()] == names
        assert proxy.injected.total() > 5
    assert len(pages) == 10 + proxy.injected.total()


def test_a_file_in_parts(store: S3Store, tmp_path: Path) -> None:
    """A last answer that got lost leaves no upload to complete: it starts again. Downloads see damage."""
    source = tmp_path / "source"
    source.write_bytes(os.urandom(1 << 20) * 65)
    completing: list[Fault] = ["lost_answer"]
    with spoilt_store(
        store, script=completing, concerns=lambda r: r.method == "POST" and "uploadId=" in r.path
    ) as (
        spoilt,
        proxy,
    ):
        spoilt.upload(source, "big")
        assert proxy.injected["lost_answer"] == 1
    with spoilt_store(store, script=["truncated", "flipped"], patience=_ONE_SEND) as (spoilt, proxy):
        spoilt.download("big", tmp_path / "copy")
        assert proxy.num_requests == 3
    assert (tmp_path / "copy").read_bytes() == source.read_bytes()
    with spoilt_store(store, script=["truncated", "flipped"], patience=_ONE_SEND) as (spoilt, proxy):
        assert spoilt.get("big") == source.read_bytes(), "a checkpoint in parts, damaged on its way"
        assert proxy.num_requests == 3


@pytest.mark.parametrize(
    "write",
    [
        lambda store, source: store.upload(source, "big"),
        lambda store, source: store.put("big", source.read_bytes()),
    ],
    ids=["upload", "put"],
)
def test_an_upload_that_fails_leaves_no_parts(
    store: S3Store, tmp_path: Path, write: Callable[[S3Store, Path], None]
) -> None:
    source = tmp_path / "source"
    source.write_bytes(bytes(65 << 20))
    hasty = S3Patience(num_sends=1, num_tries=1, retry_s=0.0)
    with (
        spoilt_store(
            store, rates={"error_500": 1.0}, concerns=lambda r: "partNumber=2" in r.path, patience=hasty
        ) as (spoilt, _),
        pytest.raises(StoreError, match=r"big: .*InternalError"),
    ):
        write(spoilt, source)
    assert not store.exists("big")
    left = store._client.get().list_multipart_uploads(Bucket=store.bucket, Prefix=store.key("big"))
    assert left.get("Uploads", []) == []


@pytest.mark.parametrize("operation", [get, put, find])
def test_a_store_that_never_answers_right_is_an_error(
    store: S3Store, tmp_path: Path, operation: Callable[[S3Store, Path], None]
) -> None:
    store.put("old", _CONTENT)
    patience = S3Patience(num_sends=1, num_tries=2, retry_s=0.5)
    with spoilt_store(store, rates={"reset_before": 1.0}, patience=patience) as (spoilt, proxy):
        with pytest.raises(StoreError, match="Connection was closed") as caught:
            operation(spoilt, tmp_path)
        assert not isinstance(caught.value, ObjectNotFoundError)
        assert proxy.num_requests >= 2
    assert not store.exists("new")


def test_a_slow_object_gets_its_tries_however_long_each_takes(store: S3Store) -> None:
    """A large object that took longer than the patience was given up at its first fault."""
    store.put("old", _CONTENT)
    with spoilt_store(
        store,
        script=["stall", "truncated", "truncated"],
        patience=S3Patience(num_sends=1, retry_s=0.0),
        stall_s=0.2,
    ) as (spoilt, _):
        assert spoilt.get("old") == _CONTENT
        assert spoilt.get("old") == _CONTENT


def test_an_answer_that_does_not_come_is_asked_for_again(store: S3Store) -> None:
    store.put("old", _CONTENT)
    with spoilt_store(store, script=["stall"], patience=S3Patience(read_timeout_s=1.0)) as (spoilt, proxy):
        assert spoilt.get("old") == _CONTENT
        assert proxy.num_requests == 2


def test_a_long_wait_says_for_what(
    store: S3Store, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("infra.s3_client._SAY_AFTER_S", 0.1)
    store.put("old", _CONTENT)
    with spoilt_store(store, rates={"slow_down": 1.0}, patience=_ONE_SEND) as (spoilt, proxy):
        proxy.concerns = lambda request: proxy.num_requests < 12
        with caplog.at_level(logging.WARNING):
            assert spoilt.get("old") == _CONTENT
    (line,) = [record.getMessage() for record in caplog.records]
    assert line.startswith(f"waiting for {store.uri}/old since ")
    assert "at most 60 s: " in line
    assert "SlowDown" in line


def test_the_users_aws_files_say_where_and_who(
    store: S3Store, object_store: Stack, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    given = object_store.environment
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    (tmp_path / "config").write_text(
        f"[profile lab]\nregion = eu-north-1\nendpoint_url = {given[ENDPOINT]}\n"
        "s3 =\n  addressing_style = path\n"
    )
    (tmp_path / "credentials").write_text(
        f"[lab]\naws_access_key_id = {given['AWS_ACCESS_KEY_ID']}\n"
        f"aws_secret_access_key = {given['AWS_SECRET_ACCESS_KEY']}\n"
    )
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_PROFILE", "lab")
    found = open_store(store.uri)
    check_store(found)
    assert isinstance(found, S3Store)
    client = found._client.get()
    assert client.meta.region_name == "eu-north-1"
    assert client.meta.config.s3 == {"addressing_style": "path"}  # pyright: ignore[reportAttributeAccessIssue]
    (tmp_path / "config").write_text(
        "[profile lab]\nendpoint_url = http://lab:1\ns3 =\n  addressing_style = virtual\n"
    )
    other = open_store(store.uri)
    assert isinstance(other, S3Store)
    assert (
        other._client.get()
        .generate_presigned_url("get_object", Params={"Bucket": "b-b", "Key": "k"})
        .startswith("http://b-b.lab:1/k")
    )


def test_patience_is_given_by_whom_opens_the_store(store: S3Store) -> None:
    found = open_store(store.uri, max_wait_s=7.0)
    assert isinstance(found, S3Store)
    assert found.sub("x")._client.patience.retry_s == 7.0
