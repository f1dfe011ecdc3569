from dataclasses import asdict
from pathlib import Path

from data.quarantine import write_quarantine
from data.shard_index import parquet_table
from data.types import Reject
from infra.store import open_store


def test_order_does_not_matter_and_nothing_is_lost(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    rejects = [
        Reject(key=key, path=key, reason="unreadable", detail=f"é {key}", etag="1") for key in ("b", "a")
    ]
    path = write_quarantine(store, rejects)
    assert path == write_quarantine(store, reversed(rejects))
    assert parquet_table(store.get(path)).to_pylist() == [asdict(rejects[1]), asdict(rejects[0])]
    assert write_quarantine(store, rejects[:1]) != path
