"""Shards of plain bytes, and which of them the cache downloaded and keeps."""

import hashlib
import time
from dataclasses import dataclass
from pathlib import Path

from data.types import ShardInfo
from infra.folder_store import FolderStore

SHARD_BYTES = 1000


def put_shards(
    folder: Path, count: int, size_bytes: int = SHARD_BYTES
) -> tuple[FolderStore, list[ShardInfo]]:
    store = FolderStore(root=folder / "store")
    shards: list[ShardInfo] = []
    for number in range(count):
        content = bytes([number]) * size_bytes
        store.put(f"shards/{number}.tar", content)
        shards.append(
            ShardInfo(
                path=f"shards/{number}.tar", index_path="", num_samples=1, size_bytes=size_bytes, crc32c=0,
                sha256=hashlib.sha256(content).hexdigest(), index_sha256="",
            )
        )  # fmt: skip
    return store, shards


def cached_files(folder: Path) -> set[str]:
    return {path.stem for path in (folder / "shards").iterdir()}


@dataclass(frozen=True, kw_only=True)
class CountingStore(FolderStore):
    """Counts downloads in a file, across processes; with a delay they are slow enough for two to meet."""

    delay_s: float = 0.0

    def download(self, path: str, target: Path) -> None:
        with (self.root.parent / "downloads").open("a") as file:
            file.write(f"{path}\n")
        time.sleep(self.delay_s)
        super().download(path, target)


def downloads(folder: Path) -> list[str]:
    return (folder / "downloads").read_text().split()
