"""The order of ILSVRC's class numbers, from the development kit's `meta.mat`."""

import io
from typing import Any

import scipy.io

from data.errors import InputError

META_NAME = "meta.mat"

_loadmat: Any = scipy.io.loadmat
"""It has no types."""


def parse_meta(content: bytes, name: str) -> tuple[str, ...]:
    """Return the synset ids by class number, which counts from 1.

    Source: the readme of ILSVRC2012's development kit. A struct array `synsets`; those without children are
    the classes. Raises InputError for a file that is not that.
    """
    try:
        synsets = _loadmat(io.BytesIO(content), squeeze_me=True, variable_names=["synsets"])["synsets"]
        numbered = {
            int(one["ILSVRC2012_ID"]): str(one["WNID"]) for one in synsets if int(one["num_children"]) == 0
        }
    except MemoryError:
        raise
    except Exception as error:  # SciPy raises some ten unrelated types for what is no such file.
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise InputError(
            f"{name} is not ILSVRC2012's {META_NAME} ({reason}): give the development kit's, or a text file "
            "with one synset id a line"
        ) from None
    if not numbered or sorted(numbered) != list(range(1, len(numbered) + 1)):
        raise InputError(f"{name} does not number its {len(numbered)} classes from 1 on: give another one")
    return tuple(numbered[number] for number in range(1, len(numbered) + 1))
