"""Parquet files with images in them: which columns, and their rows in bounded memory.

The layout is Hugging Face's: an image is a struct `{bytes, path}` or plain binary, a label a string or a
class index whose names stand in the schema's metadata (`datasets.Features`, key `huggingface`).
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from data.arrow import Column, RecordBatch, compute
from data.corpora.damage import naming_damage
from data.corpora.label_column import label_lists
from data.corpora.range_reader import open_file
from data.errors import InputError
from data.store import ObjectInfo, Store

# Rows decoded at a time; at 100 kB an image, some MB.
_BATCH_ROWS = 32
_READ_BUFFER_BYTES = 4 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageColumns:
    """Where the images and labels are; empty: found by type, or in the metadata."""

    image: str = ""
    label: str = "label"
    class_names: tuple[str, ...] = ()
    """What class indices stand for; without it, what the file's metadata says."""


class ParquetImage(NamedTuple):
    """One row."""

    row: int
    """From 0, in the file."""
    image_bytes: bytes
    labels: list[str]


def holds_images(schema: Any) -> bool:
    """Say whether a Parquet schema has a column that can be an image."""
    return any(_is_image(field.type) for field in schema)


def read_schema(store: Store, info: ObjectInfo) -> Any:
    """Return a Parquet file's Arrow schema; `InputError` where it is none."""
    with open_file(store, info) as file:
        return _open(file, info.path).schema_arrow


def iter_images(store: Store, info: ObjectInfo, columns: ImageColumns) -> Iterator[ParquetImage]:
    """Yield the rows of a file in their order, reading it once from front to back.

    Raises `InputError` for what is not Parquet, a column that is missing or ambiguous, a row without image
    bytes or label, and a class index without a name.
    """
    with open_file(store, info) as file:
        parquet = _open(file, info.path)
        image = _image_column(parquet.schema_arrow, columns, info.path)
        first_row = 0
        for batch, labels in _labelled(parquet, info.path, columns, [image], _BATCH_ROWS):
            contents = _contents(batch.column(image), info.path, first_row)
            for offset, content in enumerate(contents):
                yield ParquetImage(first_row + offset, content, labels[offset].as_py())
            first_row += batch.num_rows


def iter_labels(store: Store, info: ObjectInfo, columns: ImageColumns, batch_rows: int) -> Iterator[Column]:
    """Yield the labels of a file as columns of lists, without reading the images. Raises as `iter_images`."""
    with open_file(store, info) as file:
        parquet = _open(file, info.path)
        _image_column(parquet.schema_arrow, columns, info.path)
        for _, labels in _labelled(parquet, info.path, columns, [], batch_rows):
            yield labels


def _labelled(
    parquet: Any, name: str, columns: ImageColumns, others: list[str], batch_rows: int
) -> Iterator[tuple[RecordBatch, Column]]:
    """Yield batches of the label column and others, each with its labels as lists of class names."""
    label = _label_column(parquet.schema_arrow, columns, name)
    class_names = columns.class_names or _names_in_metadata(parquet.schema_arrow, label)
    first_row = 0
    for batch in _batches(parquet, name, batch_rows, [*others, label]):
        yield (
            batch,
            label_lists(
                batch.column(label), class_names=class_names, separator="", name=name, first_row=first_row
            ),
        )
        first_row += batch.num_rows


def _batches(parquet: Any, name: str, batch_rows: int, columns: list[str]) -> Iterator[RecordBatch]:
    with naming_damage(name):
        yield from parquet.iter_batches(batch_rows, columns=columns, use_threads=False)


def _open(file: Any, path: str) -> Any:
    with naming_damage(path):
        # Buffered: a column chunk is streamed, not held as a whole.
        return pq.ParquetFile(file, buffer_size=_READ_BUFFER_BYTES, pre_buffer=False)


def _is_binary(kind: Any) -> bool:
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def _is_image(kind: Any) -> bool:
    if not pa.types.is_struct(kind):
        return _is_binary(kind)
    return any(field.name == "bytes" and _is_binary(field.type) for field in kind)


def _image_column(schema: Any, columns: ImageColumns, path: str) -> str:
    found = [field.name for field in schema if _is_image(field.type)]
    there = ", ".join(schema.names)
    if columns.image:
        if columns.image not in found:
            raise InputError(
                f"{path} has no column {columns.image!r} with image bytes; its columns are {there}: correct "
                "image_column"
            )
        return _only(schema, columns.image, path)
    if len(found) != 1:
        what = f"{len(found)} columns" if found else "no column"
        raise InputError(f"{path} has {what} with image bytes among {there}: give image_column")
    return found[0]


def _label_column(schema: Any, columns: ImageColumns, path: str) -> str:
    if columns.label not in schema.names:
        raise InputError(
            f"{path} has no column {columns.label!r}; its columns are {', '.join(schema.names)}: give "
            "label_column"
        )
    return _only(schema, columns.label, path)


def _only(schema: Any, column: str, path: str) -> str:
    if (number := schema.names.count(column)) > 1:
        raise InputError(f"{path} has {number} columns {column!r}: rename all but one")
    return column


def _names_in_metadata(schema: Any, label: str) -> tuple[str, ...]:
    """Return the names of a `ClassLabel`, or of a list of them; none where the metadata has none.

    Metadata of another shape is somebody else's, and has none.
    """
    text = (schema.metadata or {}).get(b"huggingface")
    try:
        feature: Any = json.loads(text)["info"]["features"][label] if text else {}
        while "names" not in feature:
            feature = feature[0] if isinstance(feature, list) else feature["feature"]
        names = feature["names"]
    except (ValueError, KeyError, TypeError, IndexError):
        return ()
    is_list = isinstance(names, list) and all(isinstance(name, str) for name in names)
    return tuple(names) if is_list else ()


def _contents(column: Any, path: str, first_row: int) -> list[bytes]:
    contents = compute.struct_field(column, "bytes") if pa.types.is_struct(column.type) else column
    if contents.null_count:
        row = first_row + compute.index(contents.is_null(), True).as_py()
        raise InputError(
            f"row {row} of {path} has no image bytes; images that are files of their own are listed in a "
            "manifest: give one, or leave the row out"
        )
    return contents.to_pylist()
