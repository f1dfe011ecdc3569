"""Parquet with images as a corpus: each file's images are copied once, front to back, into a plain tar.

A shard's images lie anywhere in the corpus, and one row of a compressed Parquet file cannot be read
without the row group around it. See docs/decisions/0009-corpora.md.
"""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import islice
from typing import Any

import pyarrow as pa

from data.arrow import RecordBatch
from data.corpora.file_listings import FileListings, batches_of, encode_listing, identity_of
from data.corpora.labels import split_of_path
from data.corpora.parquet_images import ImageColumns, ParquetImage, iter_images, iter_labels
from data.corpora.tasks import MapTasks
from data.listing import LISTING_SCHEMA
from data.store import ObjectInfo, ObjectNotFoundError, Store
from data.tar_write import TarWriter
from data.temporary_folder import temporary_folder

# Raise it when the tar or the listing written for the same file changes.
_STAGE_VERSION = 3
_BATCH_ROWS = 8192
_EXTENSIONS = {
    b"\xff\xd8\xff": "jpg", b"\x89PNG": "png", b"GIF8": "gif", b"RIFF": "webp", b"BM": "bmp",
    b"II*\0": "tif", b"MM\0*": "tif",
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class StagedImages:
    """The images of Parquet files by the names of those files: a range is one of the tar of a file's copies.

    So whatever is written about an image names the file that it came from, not a copy that is soon gone.
    """

    uri: str
    """Of the corpus."""
    staging: Store
    tars: Mapping[str, str]
    """Of each file, by its path."""

    def get(self, path: str) -> bytes:
        """Return all that was copied of a file. Raises `ObjectNotFoundError`."""
        return self.staging.get(self._tar(path))

    def get_range(self, path: str, start: int, size_bytes: int) -> bytes:
        """Return an image of a file. Raises `ObjectNotFoundError`."""
        return self.staging.get_range(self._tar(path), start, size_bytes)

    def _tar(self, path: str) -> str:
        if path not in self.tars:
            raise ObjectNotFoundError(f"{self.uri}/{path} is not among the files of the corpus")
        return self.tars[path]


@dataclass(frozen=True, slots=True, kw_only=True)
class ParquetReader:
    """Lists Parquet files with images; a key is FILE/ROW.EXTENSION, an offset is in the tar of its copies.

    The listings stay, the tars are wanted only until their images stand in shards: `unstage` removes them
    then, and `stage` makes them again where they are wanted after all.
    """

    corpus: Store
    files: tuple[ObjectInfo, ...]
    listings: FileListings
    """The tars are beside them. Read-only: nothing is copied, and files that are new are estimated."""
    run: MapTasks
    columns: ImageColumns = field(default_factory=ImageColumns)

    @property
    def uri(self) -> str:
        """The corpus's."""
        return self.corpus.uri

    @property
    def images(self) -> StagedImages:
        """Where the listed images are read once they are copied."""
        tars = {info.path: _tar_path(identity) for identity, info in self._files().items()}
        return StagedImages(uri=self.uri, staging=self.listings.folder, tars=tars)

    def record_batches(self) -> Iterator[RecordBatch]:
        """Yield the images of all files, whose bytes are copied first if that was not done before.

        The split is what a file's path says, see `split_of_path`. Raises as `iter_images`.
        """
        list_new = self._estimated if self.listings.is_read_only else self._copied
        yield from self.listings.batches(self._files(), list_new)

    def stage(self) -> None:
        """Copy the images of the listed files whose tar is not there."""
        there = {info.path for info in self.listings.folder.scan()}
        files = self._files().items()
        for _ in self._copied({name: info for name, info in files if _tar_path(name) not in there}):
            pass

    def unstage(self) -> None:
        """Remove the tars of the listed files; their listings stay."""
        for identity in self._files():
            self.listings.folder.delete(_tar_path(identity))

    def _copied(self, files: Mapping[str, ObjectInfo]) -> Iterator[RecordBatch]:
        copy = partial(copy_images, corpus=self.corpus, listings=self.listings, columns=self.columns)
        size_bytes = sum(info.size_bytes for info in files.values())
        for content in self.run(copy, list(files.items()), size_bytes=size_bytes):
            yield from batches_of(content)

    def _estimated(self, files: Mapping[str, ObjectInfo]) -> Iterator[RecordBatch]:
        for info in files.values():
            yield from estimate_images(info, self.corpus, self.columns)

    def _files(self) -> dict[str, ObjectInfo]:
        """Return the files by a hash of all that their tars and listings depend on."""
        decisive = (_STAGE_VERSION, self.corpus.uri, asdict(self.columns))
        return {identity_of(*decisive, info.path, info.size_bytes, info.etag): info for info in self.files}


def estimate_images(info: ObjectInfo, corpus: Store, columns: ImageColumns) -> Iterator[RecordBatch]:
    """Yield about what `copy_images` would list, from the labels alone; a size is the file's mean.

    Keys lack the extension, so other images than those are for evaluation, but as many.
    """
    labels = list(iter_labels(corpus, info, columns, _BATCH_ROWS))
    num_rows = sum(len(column) for column in labels)
    first_row = 0
    for column in labels:
        rows = range(first_row, first_row + len(column))
        yield pa.RecordBatch.from_arrays(
            [
                pa.array([f"{info.path}/{row:08d}" for row in rows], pa.string()),
                pa.repeat(info.path, len(rows)),
                pa.nulls(len(rows), pa.int64()),
                pa.repeat(pa.scalar(info.size_bytes // num_rows, pa.int64()), len(rows)),
                pa.repeat(info.etag, len(rows)),
                column,
                pa.repeat(pa.scalar(split_of_path(info.path), pa.string()), len(rows)),
            ],
            schema=LISTING_SCHEMA,
        )
        first_row += len(rows)


def copy_images(
    file: tuple[str, ObjectInfo], *, corpus: Store, listings: FileListings, columns: ImageColumns
) -> bytes:
    """Copy a file's images into a tar named by the file's identity, keep their listing, and return it.

    Holds a batch of rows, and their listing compressed. The tar is made in the temporary folder. Raises as
    `iter_images`, and `TemporaryFolderFullError`.
    """
    identity, info = file
    with temporary_folder("stage-") as scratch:
        tar_path = scratch / "images.tar"
        with TarWriter(tar_path) as tar:
            content = encode_listing(_add_images(tar, info, corpus, columns))
        listings.folder.upload(tar_path, _tar_path(identity), keep_source=False)
    listings.keep(identity, content)
    return content


def _add_images(
    tar: TarWriter, info: ObjectInfo, corpus: Store, columns: ImageColumns
) -> Iterator[RecordBatch]:
    """Append the images and yield their rows."""
    split = split_of_path(info.path)
    images = iter_images(corpus, info, columns)
    # A file may hold other images under the same keys, and be listed by the same dataset for those.
    etag = f"{info.etag}:{columns.image}" if columns.image else info.etag

    def row_of(image: ParquetImage) -> dict[str, Any]:
        name = f"{image.row:08d}.{_extension(image.image_bytes)}"
        (offset,) = tar.add([(name, image.image_bytes)])
        return {
            "key": f"{info.path}/{name}", "path": info.path, "offset": offset,
            "size_bytes": len(image.image_bytes), "etag": etag, "labels": image.labels, "split": split,
        }  # fmt: skip

    rows = map(row_of, images)
    while chunk := list(islice(rows, _BATCH_ROWS)):
        yield pa.RecordBatch.from_pylist(chunk, schema=LISTING_SCHEMA)


def _extension(content: bytes) -> str:
    """Return what the first bytes say; what they do not say, the check of the image will refuse."""
    return next((name for magic, name in _EXTENSIONS.items() if content.startswith(magic)), "bin")


def _tar_path(identity: str) -> str:
    return f"{identity}.tar"
