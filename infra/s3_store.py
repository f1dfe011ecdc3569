"""A prefix of an S3 bucket as a `data.store.Store`; S3 here is AWS or anything that speaks it.

It relies on little, because compatible stores differ: plain GET, PUT, HEAD, LIST, DELETE, ranges,
multipart uploads and `If-None-Match: *`. No `If-Match`, and no order of listings.
"""

import io
import logging
import random
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, TypeVar

from boto3.s3.transfer import TransferConfig
from botocore.exceptions import ClientError

from data.store import ObjectInfo, ObjectNotFoundError, ObjectTooShortError, StoreError
from infra.folder_store import check_object_path, named_fault
from infra.s3_checksum import PART_BYTES, PART_BYTES_KEY, PartsChecksum
from infra.s3_client import HASTE, LazyClient, S3Patience
from infra.s3_faults import FAILURES, code_of, is_transient, status_of

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client
    from mypy_boto3_s3.type_defs import GetObjectOutputTypeDef, ListObjectsV2OutputTypeDef, ObjectTypeDef

T = TypeVar("T")

_log = logging.getLogger(__name__)

_SHORTEST_PAUSE_S, _LONGEST_PAUSE_S = 0.1, 8.0
_MULTIPART = TransferConfig(multipart_threshold=64 << 20, multipart_chunksize=PART_BYTES, max_concurrency=4)
_READ_BLOCK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class S3Store:
    """The objects of `bucket` below `prefix` ("" for the whole bucket); safe to share by threads."""

    bucket: str
    prefix: str = ""
    _client: LazyClient = field(default_factory=lambda: LazyClient(S3Patience()), repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.prefix:
            check_object_path(self.prefix)

    @property
    def uri(self) -> str:
        """`s3://bucket/prefix`, not encoded, as the AWS tools write it."""
        return f"s3://{self.bucket}/{self.prefix}".rstrip("/")

    def sub(self, path: str) -> "S3Store":
        """Return the store rooted at `path` below this one; it shares the client."""
        return S3Store(bucket=self.bucket, prefix=self.key(path), _client=self._client)

    def key(self, path: str) -> str:
        """Return the bucket's key of an object of this store."""
        check_object_path(path)
        return f"{self.prefix}/{path}" if self.prefix else path

    def presigned_url(self, path: str, lifetime_s: int) -> str:
        """Return a URL that anybody may read the object at for so long; nothing is asked of the store."""
        where = {"Bucket": self.bucket, "Key": self.key(path)}
        return self._client.get().generate_presigned_url("get_object", Params=where, ExpiresIn=lifetime_s)

    def in_haste(self) -> "S3Store":
        """Return the same store with little patience, for checks."""
        return S3Store(bucket=self.bucket, prefix=self.prefix, _client=LazyClient(HASTE))

    def endpoint(self) -> str:
        """Return the URL that requests go to. Raises `BotoCoreError` for a broken AWS config."""
        return self._client.get().meta.endpoint_url

    def try_listing(self) -> None:
        """Ask for one name; raises `StoreError` where the bucket cannot be listed."""
        self._call("", lambda s3: s3.list_objects_v2(Bucket=self.bucket, Prefix=self.prefix, MaxKeys=1))

    def get(self, path: str) -> bytes:
        """Return the object's bytes."""
        key = self.key(path)

        def read(s3: "S3Client") -> bytes:
            answer = s3.get_object(Bucket=self.bucket, Key=key)
            content = answer["Body"].read()
            parts = _parts_checksum(answer)
            if parts is not None:
                parts.add(content)
                parts.check(answer["ChecksumCRC32"])
            return content

        return self._call(path, read)

    def get_range(self, path: str, start: int, size_bytes: int) -> bytes:
        """Return exactly `size_bytes` bytes from `start`; a shorter object is an `ObjectTooShortError`."""
        if size_bytes == 0:
            return b""
        key, span = self.key(path), f"bytes={start}-{start + size_bytes - 1}"

        def read(s3: "S3Client") -> bytes:
            return s3.get_object(Bucket=self.bucket, Key=key, Range=span)["Body"].read()

        content = self._call(path, read)
        if len(content) != size_bytes:
            # Whole, by its own Content-Length: an answer cut short is a fault that was tried again.
            raise ObjectTooShortError(
                f"{self.uri}/{path}: wanted {size_bytes} bytes from {start}, got {len(content)}; "
                "the object is shorter than its index says"
            )
        return content

    def download(self, path: str, target: Path) -> None:
        """Copy an object to a file that appears whole or not at all."""
        key = self.key(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(f".coatnet-partial-{uuid.uuid4().hex}")

        def read(s3: "S3Client") -> None:
            answer = s3.get_object(Bucket=self.bucket, Key=key)
            parts = _parts_checksum(answer)
            with partial.open("wb") as file:
                # The loop's last, empty read checks the length and the checksum of an object in one piece.
                while block := answer["Body"].read(_READ_BLOCK_BYTES):
                    file.write(block)
                    if parts is not None:
                        parts.add(block)
            if parts is not None:
                parts.check(answer["ChecksumCRC32"])

        try:
            self._call(path, read)
            partial.replace(target)
        except StoreError:
            raise
        except OSError as error:
            raise named_fault(str(target), error) from error
        finally:
            partial.unlink(missing_ok=True)

    def put(self, path: str, content: bytes) -> None:
        """Write or replace an object, in parts where it is big: AWS takes 5 GiB in one."""
        key = self.key(path)
        if len(content) >= _MULTIPART.multipart_threshold:
            self._call(path, lambda s3: self._write_parts(s3, io.BytesIO(content), key))
        else:
            self._call(path, lambda s3: s3.put_object(Bucket=self.bucket, Key=key, Body=content))

    def put_if_absent(self, path: str, content: bytes) -> bool:
        """Write unless the object exists; of several writers exactly one gets True."""
        key = self.key(path)
        # A repeated request may be refused because of its own first try, whose answer got lost:
        # the object then carries this mark.
        mark = uuid.uuid4().hex

        def write(s3: "S3Client") -> bool:
            try:
                s3.put_object(
                    Bucket=self.bucket, Key=key, Body=content, IfNoneMatch="*", Metadata={"writer": mark}
                )
            except ClientError as error:
                if status_of(error) not in (409, 412):
                    raise
                return self._is_marked(s3, key, mark, conflict=error)
            return True

        return self._call(path, write)

    def upload(self, source: Path, path: str, *, keep_source: bool = True) -> None:
        """Write the file `source` as an object, in parts where it is big; the file is kept in any case."""
        key = self.key(path)

        def write(s3: "S3Client") -> None:
            with source.open("rb") as file:
                self._write_parts(s3, file, key)

        self._call(path, write)

    def exists(self, path: str) -> bool:
        """Say whether the object is there."""
        key = self.key(path)
        try:
            self._call(path, lambda s3: s3.head_object(Bucket=self.bucket, Key=key))
        except ObjectNotFoundError:
            return False
        return True

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """Yield every object below the folder `prefix` ("" for all), sorted by path.

        The listing is held in memory to be sorted: some stores list in directory order.
        """
        yield from sorted(self._objects(prefix), key=lambda info: info.path)

    def scan(self) -> Iterator[ObjectInfo]:
        """Yield every object in the store's own order, page by page."""
        return self._objects("")

    def delete(self, path: str) -> None:
        """Remove an object; absent is fine."""
        key = self.key(path)
        self._call(path, lambda s3: s3.delete_object(Bucket=self.bucket, Key=key))

    def _objects(self, folder: str) -> Iterator[ObjectInfo]:
        """Yield a page of names after the other; each is tried alone, or a long listing would never end."""
        root = f"{self.prefix}/" if self.prefix else ""
        below = f"{self.key(folder)}/" if folder else root
        token = ""

        def read(s3: "S3Client") -> "ListObjectsV2OutputTypeDef":
            if token:
                return s3.list_objects_v2(Bucket=self.bucket, Prefix=below, ContinuationToken=token)
            return s3.list_objects_v2(Bucket=self.bucket, Prefix=below)

        while True:
            page = self._call(folder, read)
            found = (_info(entry, root) for entry in page.get("Contents", []))
            # A name that ends in "/" is a console's marker of an empty folder.
            yield from (info for info in found if not info.path.endswith("/"))
            if not page["IsTruncated"]:
                return
            token = page["NextContinuationToken"]

    def _write_parts(self, s3: "S3Client", file: IO[bytes], key: str) -> None:
        """Write an object that appears when its last part is in."""
        metadata = {PART_BYTES_KEY: str(PART_BYTES)}
        s3.upload_fileobj(file, self.bucket, key, ExtraArgs={"Metadata": metadata}, Config=_MULTIPART)

    def _is_marked(self, s3: "S3Client", key: str, mark: str, conflict: ClientError) -> bool:
        """Say whether the object that stands in the way is our own write.

        Raises `conflict` where nothing stands there (409: two writes crossed), for another try.
        """
        try:
            found = s3.head_object(Bucket=self.bucket, Key=key)
        except ClientError as error:
            raise conflict if status_of(error) == 404 else error from error
        return found["Metadata"].get("writer") == mark

    def _call(self, path: str, operation: "Callable[[S3Client], T]") -> T:
        """Run one operation until it succeeds, fails for good, or patience ends."""
        patience = self._client.patience
        began_s = time.monotonic()
        num_tries, pause_s = 0, _SHORTEST_PAUSE_S
        while True:
            num_tries += 1
            try:
                return operation(self._client.get())
            except FAILURES as error:
                # Decorrelated jitter: callers that failed together do not come back together.
                pause_s = min(_LONGEST_PAUSE_S, random.uniform(_SHORTEST_PAUSE_S, 3 * pause_s))
                waited_s = time.monotonic() - began_s
                is_late = waited_s + pause_s > patience.retry_s and num_tries >= patience.num_tries
                if is_late or not is_transient(error):
                    raise self._fault(path, error) from error
                if self._client.is_time_to_say(waited_s):
                    _log.warning(
                        "waiting for %s since %.0f s, at most %.0f s: %s",
                        self._uri_of(path), waited_s, patience.retry_s, error,
                    )  # fmt: skip
            time.sleep(pause_s)

    def _uri_of(self, path: str) -> str:
        return f"{self.uri}/{path}".rstrip("/")

    def _fault(self, path: str, error: Exception) -> StoreError:
        uri = self._uri_of(path)
        if isinstance(error, ClientError) and status_of(error) == 404 and code_of(error) != "NoSuchBucket":
            return ObjectNotFoundError(f"{uri} does not exist")
        if isinstance(error, ClientError) and status_of(error) == 416:
            return ObjectTooShortError(f"{uri} ends before the range that was asked for: {error}")
        return StoreError(f"{uri}: {error}")


def _parts_checksum(answer: "GetObjectOutputTypeDef") -> PartsChecksum | None:
    """Return what checks an object that we wrote in parts; None where boto3 checks it as it is read."""
    part_bytes, expected = answer["Metadata"].get(PART_BYTES_KEY), answer.get("ChecksumCRC32", "")
    return PartsChecksum(int(part_bytes)) if part_bytes and "-" in expected else None


def _info(entry: "ObjectTypeDef", root: str) -> ObjectInfo:
    key, size_bytes, etag = entry.get("Key"), entry.get("Size"), entry.get("ETag")
    modified = entry.get("LastModified")
    assert key is not None, "S3 lists every object with its key"
    assert size_bytes is not None, "S3 lists every object with its size"
    assert modified is not None, "S3 lists every object with its time"
    return ObjectInfo(
        path=key.removeprefix(root),
        size_bytes=size_bytes,
        etag=(etag or "").strip('"'),
        modified_s=modified.timestamp(),
    )
