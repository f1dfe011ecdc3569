"""The Parquet index that stands beside each tar: one row a sample, in the tar's order."""

import hashlib
import io
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from data.arrow import Schema, Table
from data.store import CorruptShardError, Store, StoreError
from data.types import ShardInfo

INDEX_SCHEMA: Schema = pa.schema(
    [
        ("key", pa.string()),  # in the tar: escaped
        ("name", pa.string()),  # the record's key
        ("path", pa.string()),  # in the corpus
        ("offset", pa.int64()),  # of the image's bytes, in the tar
        ("size", pa.int64()),  # of the image's bytes
        ("extension", pa.string()),
        ("labels", pa.list_(pa.int32())),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("crc32c", pa.uint32()),
        ("sha256", pa.string()),
        ("reencoded", pa.bool_()),  # the image's bytes are ours; else the corpus's own
        ("original_width", pa.int32()),  # the corpus's file, as its header says
        ("original_height", pa.int32()),
        ("original_mode", pa.string()),  # Pillow's name
        ("exif_orientation", pa.int8()),  # 1 to 8; 1: upright, or not said
        ("perceptual_hash", pa.uint64()),  # null: not decoded, or too plain to tell from others
    ]
)


def parquet_bytes(rows: Sequence[dict[str, Any]], schema: Schema) -> bytes:
    """Encode rows as Parquet; the same rows and pyarrow give the same bytes."""
    return _table_bytes(pa.Table.from_pylist(list(rows), schema=schema))


def parquet_table(content: bytes) -> Table:
    """Decode what `parquet_bytes` returned."""
    # Not read_table: it imports pandas, 36 MB in every process that reads. Not in Arrow's threads: where a
    # process ends while they start, it is aborted (after read_table 20 of 150 on a busy machine).
    return pq.ParquetFile(io.BytesIO(content)).read(use_threads=False)


def put_parquet(dataset: Store, folder: str, rows: Sequence[dict[str, Any]], schema: Schema) -> str:
    """Write rows under a name made of their content, and return the path."""
    return put_table(dataset, folder, pa.Table.from_pylist(list(rows), schema=schema))


def put_table(dataset: Store, folder: str, table: Table) -> str:
    """Write a table under a name made of its content, and return the path."""
    content = _table_bytes(table)
    path = f"{folder}/{_content_name(content)}"
    dataset.put(path, content)
    return path


def get_parquet(dataset: Store, path: str) -> Table:
    """Return the table that was written at `path`; `StoreError` if it is not the one."""
    content = dataset.get(path)
    if not is_named_by_content(path, content):
        raise StoreError(
            f"{dataset.uri}/{path} is damaged: its content does not have the hash in its name; restore it, "
            "or create the dataset anew elsewhere"
        )
    return parquet_table(content)


def is_named_by_content(path: str, content: bytes) -> bool:
    """Say whether this is what `put_parquet` wrote at `path`."""
    return path.rpartition("/")[2] == _content_name(content)


def _table_bytes(table: Table) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd")
    return sink.getvalue()


def _content_name(content: bytes) -> str:
    return f"{hashlib.sha256(content).hexdigest()[:16]}.parquet"


def read_index(dataset: Store, shard: ShardInfo) -> Table:
    """Return a shard's index (columns: `INDEX_SCHEMA`).

    Raises `CorruptShardError` if it is not the one written, and `StoreError` if two readings are wrong
    each in its own way: then it was damaged on its way.
    """
    content = dataset.get(shard.index_path)
    found = before = hashlib.sha256(content).hexdigest()
    if found != shard.index_sha256:
        content = dataset.get(shard.index_path)
        found = hashlib.sha256(content).hexdigest()
    if found != shard.index_sha256:
        if found != before:
            raise StoreError(
                f"{dataset.uri}/{shard.index_path} came wrong twice, each time another way: sha256 "
                f"{before[:12]}... and {found[:12]}...; the way to the store damages what it carries"
            )
        raise CorruptShardError(
            f"{dataset.uri}/{shard.index_path} is damaged: sha256 {found[:12]}..., "
            f"its snapshot says {shard.index_sha256[:12]}...; restore it or build the dataset again"
        )
    return parquet_table(content)


def put_index(
    dataset: Store,
    place: str,
    rows: Sequence[dict[str, Any]],
    *,
    path: str,
    size_bytes: int,
    crc32c: int,
    sha256: str,
) -> ShardInfo:
    """Write the index of the tar at `path` as `{place}-HASH.parquet` and return both as a shard.

    The hash is the index's own: another version of pyarrow writes the same rows as other bytes, which under
    the tar's name would take the place of an index that a snapshot names by its sha256.
    """
    content = parquet_bytes(rows, INDEX_SCHEMA)
    index_sha256 = hashlib.sha256(content).hexdigest()
    index_path = f"{place}-{index_sha256[:16]}.parquet"
    dataset.put(index_path, content)
    return ShardInfo(
        path=path, index_path=index_path, num_samples=len(rows), size_bytes=size_bytes, crc32c=crc32c,
        sha256=sha256, index_sha256=index_sha256,
    )  # fmt: skip
