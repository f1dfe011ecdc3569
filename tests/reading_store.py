"""Folders that know which of their objects were read."""

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from infra.folder_store import FolderStore


class ReadingStore(FolderStore):
    """Its `read` are the paths whose bytes were asked for, in order; listings are not reads."""

    def __init__(self, *, root: Path) -> None:
        super().__init__(root=root)
        object.__setattr__(self, "read", [])

    read: list[str]

    def get(self, path: str) -> bytes:
        self.read.append(path)
        return FolderStore.get(self, path)

    def get_range(self, path: str, start: int, size_bytes: int) -> bytes:
        self.read.append(path)
        return FolderStore.get_range(self, path, start, size_bytes)

    def download(self, path: str, target: Path) -> None:
        self.read.append(path)
        FolderStore.download(self, path, target)


@dataclass(frozen=True, kw_only=True)
class CountingStore(FolderStore):
    """Counts what is asked of it, by path."""

    asked: Counter[str] = field(default_factory=Counter[str])

    def get(self, path: str) -> bytes:
        self.asked[path] += 1
        return super().get(path)

    def download(self, path: str, target: Path) -> None:
        self.asked[path] += 1
        super().download(path, target)
