"""Keep a list of the images that were left out, and why."""

from collections.abc import Iterable
from dataclasses import asdict

import pyarrow as pa

from data.shard_index import put_parquet
from data.store import Store
from data.types import Reject

REJECT_SCHEMA = pa.schema(
    [(name, pa.string()) for name in ("key", "path", "reason", "detail", "etag")]
)  # fmt: skip


def write_quarantine(dataset: Store, rejects: Iterable[Reject]) -> str:
    """Write the rejects, sorted by key, as `quarantine/HASH.parquet` and return that path."""
    rows = [asdict(reject) for reject in sorted(rejects, key=lambda reject: reject.key)]
    return put_parquet(dataset, "quarantine", rows, REJECT_SCHEMA)
