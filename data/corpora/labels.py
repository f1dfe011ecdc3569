"""What labels and splits are called in the formats that others write."""

import re
from collections.abc import Sequence

from data.errors import InputError

SPLIT_WORDS = {
    "train": "train", "training": "train",
    "eval": "eval", "test": "eval", "val": "eval", "valid": "eval", "validation": "eval", "dev": "eval",
}  # fmt: skip

_MAX_INDEX_DIGITS = 20  # `int` refuses thousands of digits


def split_of_path(path: str) -> str | None:
    """Return the split that a file's name or its folders say: `data/train-00000-of-00004.parquet`.

    The last word that names a split counts; None where none does.
    """
    words = re.split(r"[^a-z]+", path.lower())
    return next((SPLIT_WORDS[word] for word in reversed(words) if word in SPLIT_WORDS), None)


def parse_class_list(text: str, name: str) -> tuple[str, ...]:
    """Return the class names of a file `name` with one a line; InputError where it is not that."""
    classes = tuple(line.strip() for line in text.strip().splitlines())
    if not classes:
        raise InputError(f"class list {name!r} is empty: give one class name a line")
    if "" in classes:
        raise InputError(f"class list {name!r} has an empty line {classes.index('') + 1}: give a name")
    seen: set[str] = set()
    for number, label in enumerate(classes, start=1):
        if label in seen:
            raise InputError(f"class list {name!r} names {label!r} again in line {number}: name each once")
        seen.add(label)
    return classes


def class_name(value: str | int, class_names: Sequence[str], where: str) -> str:
    """Return the name that a label stands for: a class index where there is a class list, else itself.

    `where` opens the message of the InputError for an empty label and for an index without a name.
    """
    text = str(value).strip()
    if not text:
        raise InputError(f"{where} has an empty label: give a class")
    if not class_names or not text.removeprefix("-").isdecimal():
        return text
    index = int(text) if len(text) <= _MAX_INDEX_DIGITS else -1
    if not 0 <= index < len(class_names):
        shown, number = text[:_MAX_INDEX_DIGITS], len(class_names)
        raise InputError(
            f"{where} has the label {shown}; the class list has {number} names, so 0 to {number - 1} are "
            "allowed: correct the list, or leave the files without labels out"
        )
    return class_names[index]
