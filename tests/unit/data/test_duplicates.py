import hashlib
import uuid
from pathlib import Path
from typing import Any

import pytest

from data.duplicates import SplitShard, find_duplicates
from data.errors import InputError
from data.shard_index import INDEX_SCHEMA, parquet_bytes
from data.store import Store
from data.types import ShardInfo
from infra.store import open_store


@pytest.fixture
def dataset(tmp_path: Path) -> Store:
    return open_store(str(tmp_path))


def index(dataset: Store, split: str, path: str, *rows: tuple[str, str, int | tuple[int, ...]]) -> SplitShard:
    """Write an index of (name, image, label or labels) rows."""
    names = INDEX_SCHEMA.names
    found = [
        dict.fromkeys(names)
        | {"name": name, "sha256": hashlib.sha256(image.encode()).hexdigest(), "labels": labels}
        for name, image, label in rows
        for labels in [[label] if isinstance(label, int) else list(label)]
    ]
    content = parquet_bytes(found, INDEX_SCHEMA)
    index_path = f"{uuid.uuid4()}.parquet"
    dataset.put(index_path, content)
    info = ShardInfo(
        path=path, index_path=index_path, num_samples=len(rows), size_bytes=0, crc32c=0, sha256="",
        index_sha256=hashlib.sha256(content).hexdigest(),
    )  # fmt: skip
    return SplitShard(split=split, info=info)


def found(dataset: Store, new: list[SplitShard], **options: Any) -> list[tuple[str, str, str]]:
    return [(r.shard_path, r.name, r.reason) for r in find_duplicates(dataset, new, **options).removals]


def test_lowest_name_stays_within_a_split(dataset: Store) -> None:
    new = [
        index(dataset, "train", "t1", ("c", "H", 0), ("x", "X", 0)),
        index(dataset, "train", "t2", ("b", "H", 0), ("a", "H", 0)),
        index(dataset, "eval", "e1", ("z", "Z", 0), ("y", "Z", 0)),
    ]
    assert found(dataset, new, leak_policy="error") == [
        ("t2", "b", "duplicate"),
        ("t1", "c", "duplicate"),
        ("e1", "z", "duplicate"),
    ]
    assert found(dataset, new[::-1], leak_policy="error") == found(dataset, new, leak_policy="error")


def test_another_label_is_told(dataset: Store) -> None:
    new = [index(dataset, "train", "t", ("a", "H", 0), ("b", "H", 3))]
    found_now = find_duplicates(dataset, new, leak_policy="error")
    assert found_now.label_counts == {("train", 0): 1, ("train", 3): 0}
    (removal,) = found_now.removals
    assert removal.detail == "same bytes as train image 'a', which has another label [0]"


def test_images_known_with_another_label_are_counted_where_both_have_one(dataset: Store) -> None:
    """A renamed class folder was a heap of duplicates, of which nothing said that all had one other label."""
    known = [index(dataset, "train", "k", ("a", "A", 0), ("b", "B", 0), ("c", "C", 1), ("m", "M", (0, 1)))]
    new = [
        index(dataset, "train", "t", ("ta", "A", 2), ("tc", "C", 1), ("tm", "M", 2), ("tx", "X", 0)),
        index(dataset, "eval", "e", ("ea", "A", 2), ("eb", "B", (0, 2)), ("ex", "X", 2)),
    ]
    assert find_duplicates(dataset, new, known=known, leak_policy="drop_train").relabelled == {(2, 0): 2}


def test_leaks_stop_or_go_by_policy(dataset: Store) -> None:
    new = [
        index(dataset, "train", "t", *((f"t{i}", f"H{i}", 0) for i in range(7)), ("t9", "H0", 0)),
        index(dataset, "eval", "e", *((f"e{i}", f"H{i}", 0) for i in range(7)), ("e9", "H0", 0)),
    ]
    message = r"7 images .*'t0' = 'e0'; .*'t4' = 'e4' and 2 more; .*drop_train or drop_eval"
    with pytest.raises(InputError, match=message):
        find_duplicates(dataset, new, leak_policy="error")
    assert found(dataset, new, leak_policy="drop_train") == [
        ("e", "e9", "duplicate"), *(("t", f"t{i}", "leak") for i in range(7)), ("t", "t9", "leak"),
    ]  # fmt: skip
    assert found(dataset, new, leak_policy="drop_eval") == [
        *(("e", f"e{i}", "leak") for i in range(7)), ("e", "e9", "leak"), ("t", "t9", "duplicate"),
    ]  # fmt: skip


@pytest.mark.parametrize("policy", ["error", "drop_train", "drop_eval"])
def test_new_images_are_compared_with_the_known_ones_which_stay(dataset: Store, policy: str) -> None:
    known = [index(dataset, "train", "kt", ("kt", "T", 0)), index(dataset, "eval", "ke", ("ke", "E", 0))]
    new = [
        index(dataset, "train", "t", ("1", "T", 0), ("2", "E", 0), ("3", "N", 0)),
        index(dataset, "eval", "e", ("4", "T", 0), ("5", "E", 0)),
    ]
    assert found(dataset, new, known=known, leak_policy=policy) == [
        ("t", "1", "duplicate"), ("t", "2", "leak"), ("e", "4", "leak"), ("e", "5", "duplicate"),
    ]  # fmt: skip


def test_known_twins_are_left_alone(dataset: Store) -> None:
    known = [index(dataset, "train", "k", ("a", "H", 0), ("b", "H", 0))]
    new = [index(dataset, "train", "t", ("c", "C", 0))]
    assert found(dataset, new, known=known, leak_policy="error") == []


def test_a_repeated_image_costs_a_second_look_at_its_shards_only(
    dataset: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    shards = [
        index(dataset, "train", f"t{i}", *((f"{i}/{j}", f"{i} {j}", 0) for j in range(9))) for i in range(70)
    ]
    shards.append(index(dataset, "train", "twin", ("0/twin", "40 3", 0)))
    read: list[str] = []
    get = type(dataset).get
    monkeypatch.setattr(type(dataset), "get", lambda self, path: read.append(path) or get(self, path))
    assert found(dataset, shards, leak_policy="error") == [("t40", "40/3", "duplicate")]
    assert sorted(read) == sorted(
        [*(shard.info.index_path for shard in shards), *(shards[i].info.index_path for i in (40, 70))]
    )
