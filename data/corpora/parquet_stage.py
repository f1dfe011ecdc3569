"""Parquet with images as a corpus: each file's images are copied once, front to back, into a plain tar.

A shard's images lie anywhere in the corpus, and one row of a compressed Parquet file cannot be read
without the row group around it. See docs/decisions/0009-corpora.md.
"""

import contextlib
import hashlib
import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import islice
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from data.arrow import RecordBatch
from data.corpora.labels import split_of_path
from data.corpora.parquet_images import ImageColumns, iter_images, iter_labels
from data.corpora.tasks import MapTasks
from data.listing import LISTING_SCHEMA
from data.store import ObjectInfo, ObjectNotFoundError, Store
from data.tar_write import TarWriter
from data.temporary_folder import temporary_folder

# Raise it when the tar or the listing written for the same file changes.
_STAGE_VERSION = 2
_BATCH_ROWS = 8192
_EXTENSIONS = {
    b"\xff\xd8\xff": "jpg", b"\x89PNG": "png", b"GIF8": "gif", b"RIFF": "webp", b"BM": "bmp",
    b"II*\0": "tif", b"MM\0*": "tif",
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class ParquetReader:
    """Lists Parquet files with images; a key is FILE/ROW.EXTENSION, a path is a tar in `staging`.

    A file's listing is kept in `staging` beside its tar. The tar is wanted only until its images stand
    in shards: `unstage` removes it then, and `stage` makes it again where it is wanted after all.
    """

    corpus: Store
    files: tuple[ObjectInfo, ...]
    staging: Store
    run: MapTasks
    columns: ImageColumns = field(default_factory=ImageColumns)
    is_dry_run: bool = False
    """Copy nothing; of files that were not copied before, list an estimate."""

    @property
    def uri(self) -> str:
        """The corpus's."""
        return self.corpus.uri

    def record_batches(self) -> Iterator[RecordBatch]:
        """Yield the images of all files, whose bytes are copied first if that was not done before.

        The split is what a file's path says, see `split_of_path`. Raises as `iter_images`.
        """
        there = self._staged()
        new = [info for info in self.files if self._listing_path(info) not in there]
        if not self.is_dry_run:
            self._copy(new)
        for info in self.files:
            if self.is_dry_run and info in new:
                yield from estimate_images(info, self.corpus, self.columns)
            else:
                yield from self._listing(info).iter_batches(_BATCH_ROWS)

    def stage(self) -> None:
        """Copy the images of the listed files whose tar is not there."""
        there = self._staged()
        self._copy(
            [
                info
                for info in self.files
                if self._listing_path(info) not in there or not self._tars(info) <= there
            ]
        )

    def unstage(self) -> None:
        """Remove the tars of the listed files; their listings stay.

        A tar whose listing is gone is left to gc: it cannot be told.
        """
        for info in self.files:
            with contextlib.suppress(ObjectNotFoundError):
                for path in self._tars(info):
                    self.staging.delete(path)

    def _copy(self, files: Sequence[ObjectInfo]) -> None:
        copy = partial(copy_images, corpus=self.corpus, staging=self.staging, columns=self.columns)
        for _ in self.run(copy, files, size_bytes=sum(info.size_bytes for info in files)):
            pass

    def _staged(self) -> set[str]:
        return {info.path for info in self.staging.list()}

    def _listing_path(self, info: ObjectInfo) -> str:
        return _listing_path(info, self.corpus, self.columns)

    def _listing(self, info: ObjectInfo) -> Any:
        return pq.ParquetFile(pa.BufferReader(self.staging.get(self._listing_path(info))))

    def _tars(self, info: ObjectInfo) -> set[str]:
        """Return the path of the tar that a file's listing names; none where it has no row."""
        return set(self._listing(info).read(["path"]).column("path").unique().to_pylist())


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


def copy_images(info: ObjectInfo, *, corpus: Store, staging: Store, columns: ImageColumns) -> None:
    """Copy one file's images into a tar named by its content, and then write their listing.

    Holds a batch of rows, and about 100 bytes an image. The tar is made in the temporary folder. Raises as
    `iter_images`, and `TemporaryFolderFullError`.
    """
    with temporary_folder("stage-") as scratch:
        tar_path = scratch / "images.tar"
        with TarWriter(tar_path) as tar:
            rows = _add_images(tar, info, corpus, columns)
            tables = [pa.Table.from_pylist(chunk, schema=LISTING_SCHEMA) for chunk in _chunks(rows)]
        listing = pa.concat_tables(tables) if tables else LISTING_SCHEMA.empty_table()
        path = f"{tar.sha256[:16]}.tar"
        if listing.num_rows:
            staging.upload(tar_path, path, keep_source=False)
    place = LISTING_SCHEMA.get_field_index("path")
    listing = listing.set_column(place, LISTING_SCHEMA.field(place), pa.repeat(path, listing.num_rows))
    sink = io.BytesIO()
    pq.write_table(listing, sink, compression="zstd")
    staging.put(_listing_path(info, corpus, columns), sink.getvalue())


def _add_images(
    tar: TarWriter, info: ObjectInfo, corpus: Store, columns: ImageColumns
) -> Iterator[dict[str, Any]]:
    """Append the images and yield their rows, without the path that is known only at the end."""
    split = split_of_path(info.path)
    for image in iter_images(corpus, info, columns):
        name = f"{image.row:08d}.{_extension(image.image_bytes)}"
        (offset,) = tar.add([(name, image.image_bytes)])
        yield {
            "key": f"{info.path}/{name}", "offset": offset,
            "size_bytes": len(image.image_bytes), "etag": info.etag, "labels": image.labels, "split": split,
        }  # fmt: skip


def _chunks(rows: Iterator[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    while chunk := list(islice(rows, _BATCH_ROWS)):
        yield chunk


def _extension(content: bytes) -> str:
    """Return what the first bytes say; what they do not say, the check of the image will refuse."""
    return next((name for magic, name in _EXTENSIONS.items() if content.startswith(magic)), "bin")


def _listing_path(info: ObjectInfo, corpus: Store, columns: ImageColumns) -> str:
    """Name all that the listing depends on."""
    identity = [_STAGE_VERSION, corpus.uri, asdict(info), asdict(columns)]
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
    return f"{digest[:16]}.parquet"
