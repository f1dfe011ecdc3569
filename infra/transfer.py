"""Whole folders between this machine and a store."""

from pathlib import Path

from data.store import Store


def upload_folder(source: Path, target: Store) -> None:
    """Copy every file below a folder."""
    for file in sorted(path for path in source.rglob("*") if path.is_file()):
        target.upload(file, file.relative_to(source).as_posix())


def download_folder(source: Store, target: Path) -> None:
    """Copy every object of a store's prefix into a folder."""
    for info in source.list():
        file = target / info.path
        file.parent.mkdir(parents=True, exist_ok=True)
        source.download(info.path, file)
