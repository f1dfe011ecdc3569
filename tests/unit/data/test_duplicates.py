from typing import Any

import pyarrow as pa
import pytest

from data.duplicates import SplitIndex, find_duplicates
from data.errors import InputError


def index(split: str, shard_path: str, *rows: tuple[str, str, int]) -> SplitIndex:
    table = pa.table(
        {
            "name": [row[0] for row in rows],
            "sha256": [row[1] for row in rows],
            "labels": [[row[2]] for row in rows],
        }
    )
    return SplitIndex(split=split, shard_path=shard_path, table=table)


def found(new: list[SplitIndex], **options: Any) -> list[tuple[str, str, str]]:
    return [(r.shard_path, r.name, r.reason) for r in find_duplicates(new, **options)]


def test_lowest_name_stays_within_a_split() -> None:
    new = [
        index("train", "t1", ("c", "H", 0), ("x", "X", 0)),
        index("train", "t2", ("b", "H", 0), ("a", "H", 0)),
        index("eval", "e1", ("z", "Z", 0), ("y", "Z", 0)),
    ]
    assert found(new, leak_policy="error") == [
        ("t2", "b", "duplicate"),
        ("t1", "c", "duplicate"),
        ("e1", "z", "duplicate"),
    ]


def test_another_label_is_told() -> None:
    (removal,) = find_duplicates([index("train", "t", ("a", "H", 0), ("b", "H", 3))], leak_policy="error")
    assert removal.detail == "same bytes as train image 'a', which has another label [0]"


def test_leaks_stop_or_go_by_policy() -> None:
    new = [
        index("train", "t", *((f"t{i}", f"H{i}", 0) for i in range(7)), ("t9", "H0", 0)),
        index("eval", "e", *((f"e{i}", f"H{i}", 0) for i in range(7)), ("e9", "H0", 0)),
    ]
    with pytest.raises(InputError, match=r"7 images .*'t0' = 'e0'; .*'t4' = 'e4' and 2 more; .*drop_train"):
        find_duplicates(new, leak_policy="error")
    assert found(new, leak_policy="drop_train") == [
        ("e", "e9", "duplicate"), *(("t", f"t{i}", "leak") for i in range(7)), ("t", "t9", "leak"),
    ]  # fmt: skip


def test_new_images_are_compared_with_the_known_ones() -> None:
    known = [index("train", "kt", ("kt", "T", 0)), index("eval", "ke", ("ke", "E", 0))]
    new = [
        index("train", "t", ("1", "T", 0), ("2", "E", 0), ("3", "N", 0)),
        index("eval", "e", ("4", "T", 0), ("5", "E", 0)),
    ]
    assert found(new, known=known, leak_policy="error") == [
        ("t", "1", "duplicate"), ("t", "2", "leak"), ("e", "4", "leak"), ("e", "5", "duplicate"),
    ]  # fmt: skip


def test_known_twins_are_left_alone() -> None:
    known = [index("train", "k", ("a", "H", 0), ("b", "H", 0))]
    assert found([index("train", "t", ("c", "C", 0))], known=known, leak_policy="error") == []
