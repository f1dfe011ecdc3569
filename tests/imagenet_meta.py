"""A `meta.mat` as ILSVRC2012's development kit has it: a column of structs, written as MATLAB does."""

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import scipy.io

Synset = tuple[int, str, int]
"""ILSVRC2012_ID, WNID, num_children."""


def meta(synsets: Sequence[Synset]) -> bytes:
    kinds: Any = [(name, object) for name in ("ILSVRC2012_ID", "WNID", "words", "num_children", "children")]
    rows = np.zeros((len(synsets), 1), dtype=kinds)
    for row, (number, wnid, num_children) in zip(rows[:, 0], synsets, strict=True):
        row["ILSVRC2012_ID"], row["WNID"], row["words"] = float(number), wnid, "a, b"
        row["num_children"], row["children"] = float(num_children), np.arange(num_children, dtype=float)
    stream = io.BytesIO()
    scipy.io.savemat(stream, {"synsets": rows}, do_compression=True)
    return stream.getvalue()
