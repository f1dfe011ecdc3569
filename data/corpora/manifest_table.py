"""The rows of a CSV, TSV or Parquet manifest, as a stream of columns."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import csv

from data.arrow import Column, RecordBatch, compute
from data.corpora.damage import naming_damage
from data.corpora.label_column import label_lists
from data.corpora.labels import SPLIT_WORDS
from data.corpora.range_reader import open_file
from data.errors import InputError
from data.store import ObjectInfo, Store

MANIFEST_SCHEMA: Any = pa.schema(
    [
        ("row", pa.int64()),  # of a text file, its line (the header is 1); of Parquet, from 0
        ("uri", pa.string()),
        ("labels", pa.list_(pa.string())),
        ("split", pa.string()),
    ]
)

_BATCH_ROWS = 65_536
DELIMITERS = {"csv": ",", "tsv": "\t"}
"""By the extension of a text manifest."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ManifestColumns:
    """Which columns a manifest has, and how its labels are written."""

    uri: str = "uri"
    label: str = "label"
    split: str = "split"
    """Need not be there."""
    label_separator: str = ";"
    """Stands between several labels of an image; "" where a label may hold it."""
    class_names: tuple[str, ...] = ()
    """What class indices stand for; without it an index is the class's name."""


def read_manifest(store: Store, info: ObjectInfo, columns: ManifestColumns) -> Iterator[RecordBatch]:
    """Yield batches of `MANIFEST_SCHEMA`; only one is held.

    Raises `InputError`, naming the file and the row, for a column that is missing, a row without uri or
    label, a split that is not known, and what is not a table.
    """
    extension = info.path.rpartition(".")[2].lower()
    with naming_damage(f"manifest {info.path}"), open_file(store, info) as file:
        if extension == "parquet":
            row, batches = 0, _parquet_batches(file, info.path, columns)
        else:
            row, batches = 2, _text_batches(file, info.path, columns, DELIMITERS[extension])
        for batch in batches:
            yield _checked(batch, info.path, columns, row)
            row += batch.num_rows


def _parquet_batches(file: Any, name: str, columns: ManifestColumns) -> Iterator[RecordBatch]:
    parquet = pq.ParquetFile(file, buffer_size=1 << 20, pre_buffer=False)
    return parquet.iter_batches(_BATCH_ROWS, columns=_chosen(parquet.schema_arrow.names, name, columns))


def _text_batches(file: Any, name: str, columns: ManifestColumns, delimiter: str) -> Iterator[RecordBatch]:
    parsing = csv.ParseOptions(delimiter=delimiter)
    header = csv.open_csv(file, parse_options=parsing).schema.names
    chosen = _chosen(header, name, columns)
    file.seek(0)
    converting = csv.ConvertOptions(
        include_columns=chosen, column_types=dict.fromkeys(chosen, pa.string()), strings_can_be_null=False
    )
    return csv.open_csv(file, parse_options=parsing, convert_options=converting)


def _chosen(names: list[str], name: str, columns: ManifestColumns) -> list[str]:
    for option in ("uri", "label"):
        if getattr(columns, option) not in names:
            raise InputError(
                f"manifest {name} has no column {getattr(columns, option)!r}; its columns are "
                f"{', '.join(names)}: rename one, or give {option}_column"
            )
    chosen = [column for column in (columns.uri, columns.label, columns.split) if column in names]
    for column in chosen:
        if (number := names.count(column)) > 1:
            raise InputError(f"manifest {name} has {number} columns {column!r}: rename all but one")
    return chosen


def _checked(batch: RecordBatch, name: str, columns: ManifestColumns, first_row: int) -> RecordBatch:
    uris = batch.column(columns.uri).cast(pa.string()).fill_null("")
    if (place := compute.index(uris, "").as_py()) >= 0:
        raise InputError(f"row {first_row + place} of {name} has no uri: give one, or remove the row")
    labels = label_lists(
        batch.column(columns.label), class_names=columns.class_names, separator=columns.label_separator,
        name=name, first_row=first_row,
    )  # fmt: skip
    if columns.split in batch.schema.names:
        splits = _splits(batch.column(columns.split), name, first_row)
    else:
        splits = pa.nulls(batch.num_rows, pa.string())
    rows = pa.array(np.arange(first_row, first_row + batch.num_rows))
    return pa.RecordBatch.from_arrays([rows, uris, labels, splits], schema=MANIFEST_SCHEMA)


def _splits(column: Column, name: str, first_row: int) -> Column:
    words = column.cast(pa.string()).fill_null("").dictionary_encode()
    splits: list[str | None] = []
    for word in words.dictionary.to_pylist():
        split = SPLIT_WORDS.get(word.strip().lower())
        if split is None and word.strip():
            row = first_row + compute.index(column.cast(pa.string()), word).as_py()
            raise InputError(
                f"row {row} of {name} has the split {word!r}: train, eval (or test, val) or none is allowed"
            )
        splits.append(split)
    return pa.array(splits, pa.string()).take(words.indices)
