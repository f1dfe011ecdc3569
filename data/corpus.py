"""List a corpus: a tree of class folders, with or without train and test folders above them."""

import hashlib
import heapq
import json
from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import unquote

from data.errors import InputError
from data.split import assign_split
from data.stable_hash import stable_hash
from data.store import Store
from data.types import Record

IMAGE_EXTENSIONS = frozenset({"png", "jpg", "jpeg", "webp", "bmp", "gif", "tif", "tiff"})

SPLIT_FOLDERS = {"train": "train", "test": "eval", "val": "eval", "eval": "eval"}


@dataclass(frozen=True, slots=True, kw_only=True)
class CorpusListing:
    """What a corpus held when it was listed."""

    records: tuple[Record, ...]
    """Sorted by key."""
    classes: tuple[str, ...]
    """As asked for, else sorted by name."""
    digest: str
    """sha256 (hex) over the records' key, size, etag, labels and split."""


def list_records(
    corpus: Store,
    *,
    classes: Sequence[str] | None = None,
    max_per_class: int | None = None,
    seed: int = 0,
    eval_fraction: float | None = None,
    allow_empty: bool = False,
) -> CorpusListing:
    """List the images of `CLASS/...` or of `train/CLASS/...` and `test|val|eval/CLASS/...`.

    A record's key and path are its path in the corpus; folders below a class folder belong to the
    class; hidden files and folders are skipped. Without split folders the split is assigned by
    `eval_fraction` and the seed, or left None where that is None. `max_per_class` keeps, of each
    class's images outside eval, those with the lowest keyed hash. `allow_empty` (for a watched
    prefix) accepts a corpus, or a class folder, without an image.

    Raises `InputError` for a corpus or a class folder without an image, an image outside of a
    class folder, and a name in `classes` that is not there.
    """
    tree = _read_tree(corpus)
    if not tree.images and not allow_empty:
        raise InputError(
            f"no images in {corpus.uri} ({tree.num_objects} other files): expected CLASS/IMAGE or "
            f"train/CLASS/IMAGE with the extensions {', '.join(sorted(IMAGE_EXTENSIONS))}"
        )
    has_splits = _has_split_folders(corpus, tree)
    by_class = _group_by_class(corpus, tree.images, has_splits)
    chosen = _choose_classes(corpus, by_class, classes)
    if not allow_empty:
        _refuse_empty_folders(corpus, tree, has_splits, chosen if classes is not None else None)
    records = [record for name in chosen for record in by_class.get(name, [])]
    if eval_fraction is not None:
        records = [
            record if record.split else replace(record, split=assign_split(record.key, eval_fraction, seed))
            for record in records
        ]
    return make_listing(_cap(records, max_per_class, seed), chosen)


def make_listing(records: Iterable[Record], classes: Iterable[str]) -> CorpusListing:
    """Sort the records and digest them."""
    ordered = tuple(sorted(records, key=lambda record: record.key))
    digest = hashlib.sha256()
    for record in ordered:
        row = [record.key, record.size_bytes, record.etag, record.labels, record.split]
        digest.update(json.dumps(row, separators=(",", ":")).encode() + b"\n")
    return CorpusListing(records=ordered, classes=tuple(classes), digest=digest.hexdigest())


@dataclass(frozen=True, slots=True, kw_only=True)
class _Tree:
    images: list[Record]
    """Labels and split not known yet."""
    folders: set[tuple[str, ...]]
    """Parts of every visible folder down to two levels, also those without an image."""
    num_objects: int


def _read_tree(corpus: Store) -> _Tree:
    images: list[Record] = []
    folders: set[tuple[str, ...]] = set(_local_folders(corpus))
    num_objects = 0
    for info in corpus.list():
        num_objects += 1
        *parents, name = info.path.split("/")
        if any(part.startswith(".") for part in parents):
            continue
        folders.update({tuple(parents[:1]), tuple(parents[:2])})
        if name.startswith(".") or name.rpartition(".")[2].lower() not in IMAGE_EXTENSIONS:
            continue
        images.append(
            Record(
                key=info.path, path=info.path, labels=(), split=None,
                size_bytes=info.size_bytes, etag=info.etag,
            )
        )  # fmt: skip
    return _Tree(images=images, folders=folders - {()}, num_objects=num_objects)


def _local_folders(corpus: Store) -> Iterable[tuple[str, ...]]:
    """Find the folders of a local corpus: a store lists objects only, so an empty one is not seen."""
    if not corpus.uri.startswith("file://"):
        return
    root = Path(unquote(corpus.uri.removeprefix("file://")))
    for pattern in ("*", "*/*"):
        for path in root.glob(pattern):
            parts = path.relative_to(root).parts
            if path.is_dir() and not any(part.startswith(".") for part in parts):
                yield parts


def _has_split_folders(corpus: Store, tree: _Tree) -> bool:
    """Say whether the top folders are splits; a class may be called `train` as well."""
    tops = {folder[0] for folder in tree.folders}
    splits = tops & SPLIT_FOLDERS.keys()
    if not splits:
        return False
    others = sorted(tops - splits)
    if not others:
        return True
    if any(len(Path(image.path).parts) == 2 and image.path.split("/")[0] in splits for image in tree.images):
        return False
    raise InputError(
        f"folder {others[0]!r} stands beside {sorted(splits)[0]!r} in {corpus.uri}: at the top, either all "
        f"folders are classes or all are of {', '.join(SPLIT_FOLDERS)}; move it away"
    )


def _group_by_class(corpus: Store, images: Iterable[Record], has_splits: bool) -> dict[str, list[Record]]:
    depth = 1 if has_splits else 0
    by_class: dict[str, list[Record]] = defaultdict(list)
    for image in images:
        parts = image.path.split("/")
        if len(parts) < depth + 2:
            where = "train/CLASS/ or test/CLASS/" if has_splits else "a class folder"
            raise InputError(f"image {image.path!r} of {corpus.uri} is not in {where}: move it into one")
        split = SPLIT_FOLDERS[parts[0]] if has_splits else None
        by_class[parts[depth]].append(replace(image, labels=(parts[depth],), split=split))
    return by_class


def _choose_classes(corpus: Store, present: Collection[str], wanted: Sequence[str] | None) -> Sequence[str]:
    if wanted is None:
        return sorted(present)
    absent = sorted(set(wanted) - set(present))
    if absent:
        names = ", ".join(sorted(present)[:20]) or "none"
        more = f" and {len(present) - 20} more" if len(present) > 20 else ""
        raise InputError(
            f"class {absent[0]!r} has no image in {corpus.uri}: the classes there are {names}{more}"
        )
    return wanted


def _refuse_empty_folders(
    corpus: Store, tree: _Tree, has_splits: bool, wanted: Collection[str] | None
) -> None:
    depth = 2 if has_splits else 1
    filled = {tuple(image.path.split("/")[:depth]) for image in tree.images}
    for folder in sorted(tree.folders - filled):
        if len(folder) == depth and (wanted is None or folder[-1] in wanted):
            raise InputError(
                f"class folder {'/'.join(folder)!r} in {corpus.uri} has no image: add images or remove it"
            )


def _cap(records: Iterable[Record], max_per_class: int | None, seed: int) -> list[Record]:
    if max_per_class is None:
        return list(records)
    kept: list[Record] = []
    train: dict[tuple[str, ...], list[Record]] = defaultdict(list)
    for record in records:
        (kept if record.split == "eval" else train[record.labels]).append(record)
    for members in train.values():
        kept += heapq.nsmallest(
            max_per_class, members, key=lambda r: (stable_hash(r.key, seed=seed, purpose="cap"), r.key)
        )
    return kept
