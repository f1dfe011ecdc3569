"""List a tree of class folders, with or without train and test folders above them."""

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from os.path import exists
from pathlib import Path
from urllib.parse import unquote

import pyarrow as pa

from data.arrow import RecordBatch, Schema
from data.backlog import Backlog
from data.corpora.labels import SPLIT_WORDS
from data.errors import InputError
from data.listing import BATCH_ROWS, LISTING_SCHEMA
from data.store import ObjectInfo, Store

IMAGE_EXTENSIONS = frozenset({"png", "jpg", "jpeg", "webp", "bmp", "gif", "tif", "tiff"})

_CLASS_AS_WELL = frozenset({"dev", "valid"})  # `valid` and `invalid` are what products are

_FOUND_SCHEMA: Schema = pa.schema([("path", pa.string()), ("size_bytes", pa.int64()), ("etag", pa.string())])


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassFolderReader:
    """Reads `CLASS/...`, or `train/CLASS/...` and `test|val|eval/CLASS/...` (`SPLIT_WORDS`, in any case).

    A record's key and path are its path in the corpus; folders below a class folder belong to the
    class; hidden files and folders are skipped. A class may be called `train` as well.
    """

    corpus: Store
    classes: tuple[str, ...] | None = None
    """Those that are wanted: an empty folder of another one is no matter."""
    allow_empty: bool = False
    """Accept a corpus or a class folder without an image, as in a watched prefix."""

    @property
    def uri(self) -> str:
        """The corpus's."""
        return self.corpus.uri

    def record_batches(self) -> Iterator[RecordBatch]:
        """Yield the images.

        Raises `InputError` for a corpus or a class folder without an image, an image outside of a class
        folder, and a class folder beside split folders.
        """
        tree = _Tree(folders=set(_local_folders(self.corpus)))
        found = Backlog(_FOUND_SCHEMA)  # what a folder means is known only when all have been seen
        images = iter(tree.images(self.corpus.scan()))
        while chunk := list(islice(images, BATCH_ROWS)):
            found.add(_columns(chunk))
        if not tree.num_images and not self.allow_empty:
            raise InputError(
                f"no images in {self.uri} ({tree.num_objects} other files): expected CLASS/IMAGE or "
                f"train/CLASS/IMAGE with the extensions {', '.join(sorted(IMAGE_EXTENSIONS))}"
            )
        has_splits = _has_split_folders(self.uri, tree)
        if not self.allow_empty:
            self._refuse_empty_folders(tree, has_splits)
        for batch in found:
            yield _labelled(batch, has_splits, self.uri)

    def _refuse_empty_folders(self, tree: "_Tree", has_splits: bool) -> None:
        depth = 2 if has_splits else 1
        filled = {folder[:depth] for folder in tree.filled}
        for folder in sorted(tree.folders - filled):
            if len(folder) == depth and (self.classes is None or folder[-1] in self.classes):
                raise InputError(
                    f"class folder {'/'.join(folder)!r} in {self.uri} has no image: add images or remove it"
                )


@dataclass(slots=True, kw_only=True)
class _Tree:
    """What the listing shows of the folders."""

    folders: set[tuple[str, ...]]
    """Parts of every visible folder down to two levels, also of those without an image."""
    filled: set[tuple[str, ...]] = field(default_factory=set[tuple[str, ...]])
    """Those with an image in or below them."""
    holding_images: set[str] = field(default_factory=set[str])
    """Top folders that hold an image themselves."""
    num_objects: int = 0
    num_images: int = 0

    def images(self, objects: Iterable[ObjectInfo]) -> Iterator[ObjectInfo]:
        """Pass images on, taking note of the folders."""
        for info in objects:
            self.num_objects += 1
            *parents, name = info.path.split("/")
            if any(part.startswith(".") for part in parents):
                continue
            above = {tuple(parents[:1]), tuple(parents[:2])} - {()}
            self.folders |= above
            if name.startswith(".") or name.rpartition(".")[2].lower() not in IMAGE_EXTENSIONS:
                continue
            self.filled |= above
            if len(parents) == 1:
                self.holding_images.add(parents[0])
            self.num_images += 1
            yield info


def _local_folders(corpus: Store) -> Iterator[tuple[str, ...]]:
    """Find the folders of a local corpus: a store lists objects only, so an empty one is not seen."""
    root = Path(unquote(corpus.uri.removeprefix("file://")))
    if not corpus.uri.startswith("file://") or not root.is_dir():
        return
    for top in _visible_folders(root):
        yield (top,)
        for below in _visible_folders(root / top):
            yield (top, below)


def _visible_folders(folder: Path) -> list[str]:
    try:
        with os.scandir(folder) as entries:
            visible = [entry for entry in entries if not entry.name.startswith(".")]
            folders = [entry.name for entry in visible if entry.is_dir()]
            linked = [e.name for e in visible if e.is_symlink() and "." not in e.name and not exists(e.path)]
    except PermissionError:
        raise InputError(
            f"folder {folder} of the corpus may not be read: allow it to this user, or move the folder away"
        ) from None
    if linked:  # a class on a disk that is not mounted
        raise InputError(f"{folder / linked[0]} links to nothing: mount what it links to, or remove the link")
    return folders


def _has_split_folders(uri: str, tree: _Tree) -> bool:
    """Say whether the top folders are splits; a class may be called `train` as well."""
    tops = {folder[0] for folder in tree.folders}
    splits = {top for top in tops if top.lower() in SPLIT_WORDS}
    if not {top.lower() for top in splits} - _CLASS_AS_WELL:
        return False
    others = sorted(tops - splits)
    if not others:
        return True
    if splits & tree.holding_images:
        return False
    raise InputError(
        f"folder {others[0]!r} stands beside {sorted(splits)[0]!r} in {uri}: at the top, either all "
        f"folders are classes or all are of {', '.join(SPLIT_WORDS)}; move it away"
    )


def _columns(images: Sequence[ObjectInfo]) -> RecordBatch:
    return pa.RecordBatch.from_arrays(
        [
            pa.array([info.path for info in images], pa.string()),
            pa.array([info.size_bytes for info in images], pa.int64()),
            pa.array([info.etag for info in images], pa.string()),
        ],
        schema=_FOUND_SCHEMA,
    )


def _labelled(found: RecordBatch, has_splits: bool, uri: str) -> RecordBatch:
    depth = 1 if has_splits else 0
    paths = found.column("path")
    labels: list[list[str]] = []
    splits: list[str | None] = []
    for path in paths.to_pylist():
        parts = path.split("/", depth + 1)
        if len(parts) < depth + 2 or not parts[depth]:
            where = "train/CLASS/ or test/CLASS/" if has_splits else "a class folder"
            raise InputError(f"image {path!r} of {uri} is not in {where}: move it into one")
        labels.append([parts[depth]])
        splits.append(SPLIT_WORDS[parts[0].lower()] if has_splits else None)
    return pa.RecordBatch.from_arrays(
        [
            paths,
            paths,
            pa.nulls(len(paths), pa.int64()),
            found.column("size_bytes"),
            found.column("etag"),
            pa.array(labels, pa.list_(pa.string())),
            pa.array(splits, pa.string()),
        ],
        schema=LISTING_SCHEMA,
    )
