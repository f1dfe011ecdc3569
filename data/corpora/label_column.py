"""A column of labels, however a table writes them, as lists of class names."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from data.arrow import Column, compute
from data.corpora.labels import class_name
from data.errors import InputError


def label_lists(
    column: Column, *, class_names: Sequence[str], separator: str, name: str, first_row: int
) -> Column:
    """Return an array of lists of class names from strings, whole numbers or lists of them.

    A string is cut at `separator` ("" for never). Class indices are looked up in `class_names`, if there
    are any. Raises `InputError`, naming the file `name` and the row (counted from `first_row`), for a label
    that is missing, empty or out of range, and for a column of another type.
    """
    values = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    if pa.types.is_dictionary(values.type):
        values = values.dictionary_decode()
    lists = _as_lists(values, separator, name)
    lengths = compute.list_value_length(lists).fill_null(0).to_numpy(zero_copy_only=False)
    if not lengths.all():
        row = first_row + int(np.argmin(lengths != 0))
        raise InputError(f"row {row} of {name} has no label: give at least one, or leave the row out")
    flat = lists.flatten().fill_null("").dictionary_encode()
    codes = flat.indices.to_numpy(zero_copy_only=False)
    rows = first_row + np.repeat(np.arange(len(lists)), lengths)
    _, firsts = np.unique(codes, return_index=True)  # codes are all of 0..n-1: the first row of each name
    names = [
        class_name(text, class_names, f"row {rows[first]} of {name}")
        for text, first in zip(flat.dictionary.to_pylist(), firsts.tolist(), strict=True)
    ]
    offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]), pa.int32())
    return pa.ListArray.from_arrays(offsets, pa.array(names, pa.string()).take(flat.indices))


def _as_lists(values: Column, separator: str, name: str) -> Column:
    """Return lists of strings; a missing value stays a null list."""
    kind = values.type
    is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind)
    item = kind.value_type if is_list else kind
    if not (pa.types.is_integer(item) or pa.types.is_string(item) or pa.types.is_large_string(item)):
        raise InputError(
            f"the label column of {name} has the type {kind}; strings, whole numbers and lists of them are "
            "allowed: convert it"
        )
    if is_list:
        return values.cast(pa.list_(pa.string()))
    texts = values.cast(pa.string())
    if separator and not pa.types.is_integer(item):
        return compute.split_pattern(texts, separator)
    ones = compute.if_else(texts.is_null(), 0, 1).to_numpy(zero_copy_only=False)
    offsets = pa.array(np.concatenate([[0], np.cumsum(ones)]), pa.int32())
    return pa.ListArray.from_arrays(offsets, texts.drop_null())
