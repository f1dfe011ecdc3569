"""Open and check the store that a URI names."""

import os
import re
import uuid
from pathlib import Path
from urllib.parse import unquote, urlsplit

from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    HTTPClientError,
    NoCredentialsError,
    PartialCredentialsError,
)
from botocore.exceptions import (
    ConnectionError as BotoConnectionError,
)

from data.errors import InputError
from data.store import Store, StoreError
from infra.folder_store import FolderStore
from infra.s3_client import LazyClient, S3Patience
from infra.s3_store import S3Store

__all__ = ["FolderStore", "S3Store", "check_store", "open_store", "readable_url"]

_BUCKET_NAME = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")


def open_store(uri: str, *, max_wait_s: float = 60.0) -> Store:
    """Return the store of `s3://bucket/prefix`, `file:///path` or a plain path.

    An operation waits up to `max_wait_s` for an S3 store that is away. Nothing is contacted;
    `check_store` does that. Raises `InputError` for any other URI.
    """
    scheme, separator, rest = uri.partition("://")
    if not uri.strip() or (separator and scheme not in ("s3", "file")):
        raise InputError(f"store {uri!r} is not known: give s3://bucket/prefix, file:///path or a path")
    if scheme == "s3" and separator:
        bucket, _, prefix = rest.partition("/")
        if not _BUCKET_NAME.fullmatch(bucket):
            raise InputError(
                f"bucket name {bucket!r} in {uri!r} is not valid: 3 to 63 of a-z, 0-9, '.' and '-'"
            )
        client = LazyClient(S3Patience(retry_s=max_wait_s))
        return S3Store(bucket=bucket, prefix=prefix.strip("/"), _client=client)
    if separator:
        if urlsplit(uri).netloc not in ("", "localhost"):
            raise InputError(f"store {uri!r} names a host: write file:///path with three slashes")
        return FolderStore(root=Path(unquote(rest.removeprefix("localhost"))))
    return FolderStore(root=Path(uri).expanduser().absolute())


def readable_url(store: Store, path: str, lifetime_s: int) -> str:
    """Return where another program can read an object: a presigned URL, or the path of a file."""
    if isinstance(store, S3Store):
        return store.presigned_url(path, lifetime_s)
    assert isinstance(store, FolderStore), "open_store makes no other store"
    return str(store.root / path)


def check_store(store: Store, *, writable: bool = True) -> None:
    """Prove within seconds that the store can be used as the pipeline uses it.

    A small object is written, refused a second time, read back and deleted; with
    `writable=False`, for a corpus, the store is only listed. Raises `InputError` with one line
    that says what is wrong, where, and what to do.
    """
    if isinstance(store, S3Store):
        _check_s3(store, writable)
    elif isinstance(store, FolderStore) and not writable:
        if not store.root.is_dir() or not os.access(store.root, os.R_OK | os.X_OK):
            raise InputError(f"folder {store.root} does not exist or may not be read: check the path")
    else:
        try:
            _probe(store)
        except StoreError as error:
            raise InputError(
                f"{store.uri} cannot be written: {error}; check the path, rights and space"
            ) from error


def _check_s3(store: S3Store, writable: bool) -> None:
    hasty = store.in_haste()
    try:
        where = f"{store.uri} at {hasty.endpoint()}"
    except BotoCoreError as error:
        raise InputError(f"{store.uri}: {_one_line(error)}; check the AWS config and profile") from error
    try:
        if writable:
            _probe(hasty)
        else:
            hasty.try_listing()
    except StoreError as error:
        raise InputError(_explain(where, error)) from error


def _probe(store: Store) -> None:
    path, content = f"store-check-{uuid.uuid4().hex}", b"written by a check; safe to delete"
    is_first_written = store.put_if_absent(path, content)
    try:
        if not is_first_written or store.put_if_absent(path, content):
            raise InputError(
                f"{store.uri} does not honour conditional writes (If-None-Match: *), which keep two writers "
                "apart: use a store that does, such as AWS S3 or SeaweedFS"
            )
        if store.get(path) != content:
            raise InputError(f"{store.uri} returned other bytes than were written: check the store")
    finally:
        store.delete(path)


# What an S3 error code means to a user, and what to do about it.
_ADVICE = {
    "NoSuchBucket": "the bucket does not exist: create it or correct the name",
    "InvalidAccessKeyId": "the access key is not known: correct AWS_ACCESS_KEY_ID",
    "SignatureDoesNotMatch": "the secret key is wrong: correct AWS_SECRET_ACCESS_KEY",
    "ExpiredToken": "the credentials have expired: get new ones",
    "InvalidToken": "the session token is not valid: get new credentials",
    "AccessDenied": "access is denied: these credentials need get, put, delete and list on it",
    "403": "access is denied: these credentials need get, put, delete and list on it",
    "RequestTimeTooSkewed": "this machine's clock is wrong: set it",
    "PermanentRedirect": "the bucket is in another region: set AWS_REGION to it",
    "AuthorizationHeaderMalformed": "the bucket is in another region: set AWS_REGION to it",
    "IllegalLocationConstraintException": "the bucket is in another region: set AWS_REGION to it",
}


def _explain(where: str, error: StoreError) -> str:
    cause = error.__cause__
    if isinstance(cause, ClientError):
        code = cause.response.get("Error", {}).get("Code", "")
        advice = _ADVICE.get(code, f"{_one_line(cause)}; check the bucket and the credentials")
        return f"{where}: {advice} ({code})"
    if isinstance(cause, NoCredentialsError | PartialCredentialsError):
        return (
            f"{where}: no credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY or AWS_PROFILE, "
            "or source the local stack's credentials.env"
        )
    if isinstance(cause, BotoConnectionError | HTTPClientError):
        return f"{where}: no answer ({type(cause).__name__}): is the store up, and AWS_ENDPOINT_URL_S3 right?"
    return f"{where}: {_one_line(error)}"


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
