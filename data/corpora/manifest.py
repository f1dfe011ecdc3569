"""Images named by a manifest: a table of `uri,label[,split]` beside them."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any
from urllib.parse import unquote

import pyarrow as pa

from data.arrow import Column, RecordBatch, Table, compute
from data.corpora.manifest_table import ManifestColumns, read_manifest
from data.errors import InputError
from data.listing import LISTING_SCHEMA
from data.spool import Spool
from data.stable_hash import stable_hash
from data.store import ObjectInfo, Store

_BATCH_ROWS = 65_536
_MEMORY_BYTES = 64 << 20
_NAMED = 3
# Rows of the manifest and objects of the store, to be sorted together: equal paths lie side by side.
_JOIN_SCHEMA: Any = pa.schema(
    [
        ("hash", pa.uint64()),
        ("path", pa.string()),
        ("row", pa.int64()),  # null: an object
        ("labels", pa.list_(pa.string())),
        ("split", pa.string()),
        ("size_bytes", pa.int64()),
        ("etag", pa.string()),
    ]
)
# An empty part, `.` or `..`.
_NOT_A_PATH = r"(^|/)\.{0,2}(/|$)"


@dataclass(frozen=True, slots=True, kw_only=True)
class ManifestReader:
    """Lists the images of a manifest; a key and a path are the image's path below `root`.

    Sizes and etags come from one listing of `root`, joined on disk where they do not fit in memory.
    """

    folder: Store
    """Where the manifest is."""
    manifest: ObjectInfo
    root: Store
    """The corpus: what uris are relative to, or below."""
    columns: ManifestColumns = field(default_factory=ManifestColumns)

    @property
    def uri(self) -> str:
        """The manifest's."""
        return f"{self.folder.uri}/{self.manifest.path}"

    def record_batches(self) -> Iterator[RecordBatch]:
        """Yield the images.

        Raises `InputError` as `read_manifest`, and for a uri that is not below the root or not there.
        """
        spool = Spool(_JOIN_SCHEMA, ("hash", "path"), memory_bytes=_MEMORY_BYTES)
        for batch in read_manifest(self.folder, self.manifest, self.columns):
            paths = self._paths(batch)
            spool.add(_side(paths, row=batch["row"], labels=batch["labels"], split=batch["split"]))
        objects = self.root.scan()
        while chunk := list(islice(objects, _BATCH_ROWS)):
            paths = pa.array([info.path for info in chunk], pa.string())
            spool.add(
                _side(
                    paths, size_bytes=[info.size_bytes for info in chunk], etag=[info.etag for info in chunk]
                )
            )
        yield from self._joined(spool)

    def _paths(self, batch: RecordBatch) -> Column:
        """Return the uris relative to the root."""
        paths = batch["uri"]
        for prefix in _prefixes(self.root.uri):
            rest = compute.utf8_slice_codeunits(paths, len(prefix))
            paths = compute.if_else(compute.starts_with(paths, prefix), rest, paths)
        paths = compute.replace_substring_regex(paths, r"^(\./)+", "")
        wrong = compute.match_substring_regex(paths, _NOT_A_PATH)
        if (place := compute.index(wrong, True).as_py()) >= 0:
            raise InputError(
                f"row {batch['row'][place]} of {self.manifest.path} has the uri "
                f"{batch['uri'][place].as_py()[:300]!r}, which is not below "
                f"{self.root.uri}: give relative uris, or the folder of all images as root"
            )
        return paths

    def _joined(self, spool: Spool) -> Iterator[RecordBatch]:
        num_missing, missing = 0, _JOIN_SCHEMA.empty_table()
        for part in spool.parts():
            is_object = part["row"].is_null()
            objects, rows = part.filter(is_object), part.filter(compute.invert(is_object))
            places = compute.index_in(rows["path"], value_set=objects["path"].combine_chunks())
            lost = rows.filter(places.is_null())
            num_missing += lost.num_rows
            missing = pa.concat_tables([missing, lost]).sort_by("row").slice(0, _NAMED)
            if not num_missing:
                yield from _listing(rows, objects.take(places)).to_batches(max_chunksize=_BATCH_ROWS)
        if num_missing:
            names = ", ".join(f"{row['path']!r} (row {row['row']})" for row in missing.to_pylist())
            raise InputError(
                f"{num_missing} images of {self.manifest.path} are not in {self.root.uri}: {names}"
                f"{' ...' if num_missing > _NAMED else ''}; add them, remove their rows, or correct root"
            )


def _prefixes(root_uri: str) -> list[str]:
    """Return how an absolute uri below the root may begin."""
    prefixes = [f"{root_uri}/"]
    if root_uri.startswith("file://"):
        folder = unquote(root_uri.removeprefix("file://"))
        prefixes += [f"file://{folder}/", f"{folder}/"]
    return prefixes


def _side(paths: Column, **columns: Any) -> RecordBatch:
    """Return one side's columns for the join; the other side's are null."""
    columns |= {"hash": stable_hash(paths, seed=0, purpose="manifest"), "path": paths}
    arrays: list[Column] = []
    for name, kind in zip(_JOIN_SCHEMA.names, _JOIN_SCHEMA.types, strict=True):
        values = columns.get(name)
        if values is None:
            values = pa.nulls(len(paths), kind)
        arrays.append(values if isinstance(values, pa.Array) else pa.array(values, kind))
    return pa.RecordBatch.from_arrays(arrays, schema=_JOIN_SCHEMA)


def _listing(rows: Table, objects: Table) -> Table:
    columns = {
        "key": rows["path"], "path": rows["path"], "offset": pa.nulls(rows.num_rows, pa.int64()),
        "size_bytes": objects["size_bytes"], "etag": objects["etag"], "labels": rows["labels"],
        "split": rows["split"],
    }  # fmt: skip
    return pa.table(columns, schema=LISTING_SCHEMA)
