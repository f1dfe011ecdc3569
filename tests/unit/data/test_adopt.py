"""WebDataset tars of somebody else's become a dataset where they lie."""

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from data import adopt_scan
from data.adopt import AdoptOptions, plan_tars
from data.adopt_scan import scan_tar
from data.append import append_snapshot
from data.collect import collect_garbage
from data.crop import DecodeConfig
from data.deduplicate import deduplicate
from data.errors import InputError
from data.image_check import ImageLimits
from data.loader import EvalLoader, TrainLoader
from data.order import OrderConfig
from data.retirement import retire_snapshot, retirement
from data.shard_write import write_shards_here
from data.sharding_config import ShardingConfig
from data.snapshot import load_snapshot
from data.snapshot_diff import diff_snapshots
from infra.folder_store import FolderStore
from tests.adopted_tars import OPTIONS, adopt, damages, reasons, rows, sample, two_splits, write_tar
from tests.image_samples import fill, png


@pytest.fixture
def dataset(tmp_path: Path) -> FolderStore:
    return two_splits(tmp_path)


def test_tars_are_indexed_where_they_lie(dataset: FolderStore) -> None:
    before = {info.path: dataset.get(info.path) for info in dataset.list()}
    snapshot = adopt(dataset)
    assert snapshot is not None
    assert snapshot.classes == ("0", "1")
    assert snapshot.stats["samples"] == {"train": 22, "eval": 5}
    assert [shard.path for shard in snapshot.splits["train"]] == ["train/0.tar", "train/1.tar"]
    assert {path: dataset.get(path) for path in before} == before
    for row in [*rows(dataset, snapshot), *rows(dataset, snapshot, "eval")]:
        content = dataset.get_range(row["path"], row["offset"], row["size"])
        assert Image.open(io.BytesIO(content)).size == (row["width"], row["height"])
        assert row["name"] == f"{row['path']}/{row['key']}.{row['extension']}"
    assert damages(snapshot, dataset) == []
    assert adopt(dataset) is None, "nothing is new"
    assert load_snapshot(dataset, "HEAD") == snapshot


def test_the_loader_reads_adopted_shards_as_our_own(dataset: FolderStore, tmp_path: Path) -> None:
    snapshot = adopt(dataset, classes=("cat", "dog"))
    assert snapshot is not None
    decode = DecodeConfig(image_size_px=8)
    order = OrderConfig(global_batch_size=4, num_lanes=2, shuffle_window=8, seed=0)
    about = {
        "store": dataset,
        "snapshot": snapshot,
        "decode": decode,
        "rank": 0,
        "world_size": 1,
        "cache": None,
    }
    loader = TrainLoader(split="train", order=order, **about)
    batches = list(loader.batches(0))
    keys = [key for batch in batches for key in batch.keys]
    assert len(keys) == len(set(keys)) == 20
    labels = {row["name"]: row["labels"][0] for row in rows(dataset, snapshot)}
    assert all(labels[key] == label for b in batches for key, label in zip(b.keys, b.labels_B, strict=True))
    found = [key for b in EvalLoader(split="eval", batch_size=4, **about).batches() for key in b.keys if key]
    assert sorted(found) == [f"val/0.tar/v{number}.png" for number in range(5)]
    assert loader.bad_samples == {}


def test_labels_from_json_and_names_from_a_list(tmp_path: Path) -> None:
    store = FolderStore(root=tmp_path)
    samples = [
        {"__key__": f"{n}", "png": png(n), "json": json.dumps({"label": n % 3, "name": "xyz"[n % 3]})}
        for n in range(9)
    ]
    write_tar(store, "all.tar", samples)
    by_number = adopt(store, replace(OPTIONS, label="json:label"), classes=("ant", "bee", "cow"))
    assert by_number is not None
    assert by_number.classes == ("ant", "bee", "cow")
    assert by_number.stats["train"] == {"ant": 3, "bee": 3, "cow": 3}
    retire_snapshot(store, by_number.id, "other labels")
    by_name = adopt(store, replace(OPTIONS, label="json:name"))
    assert by_name is not None
    assert by_name.stats["train"] == {"x": 3, "y": 3, "z": 3}


def test_numeric_labels_keep_their_number_beyond_nine(tmp_path: Path) -> None:
    store = FolderStore(root=tmp_path)
    write_tar(store, "all.tar", [sample(f"{n}", n % 12, n) for n in range(24)])
    snapshot = adopt(store)
    assert snapshot is not None
    assert snapshot.classes == tuple(str(n) for n in range(12))
    assert {row["labels"][0] for row in rows(store, snapshot) if row["key"] == "10"} == {10}


def test_a_number_is_a_place_among_names_that_are_numbers(tmp_path: Path) -> None:
    """With the class names 3, 1, 2 the label 1 became the class called 1, not the one in place 1."""
    store = FolderStore(root=tmp_path)
    write_tar(store, "all.tar", [sample(f"{n}", n % 3, n) for n in range(9)])
    snapshot = adopt(store, classes=("3", "1", "2"))
    assert snapshot is not None
    assert {(int(row["key"]) % 3, row["labels"][0]) for row in rows(store, snapshot)} == {
        (0, 0), (1, 1), (2, 2),
    }  # fmt: skip


def test_equal_numbers_written_otherwise_have_one_order(tmp_path: Path) -> None:
    """The order of 1, 01 and 001 was that of a set, so another one in each process."""
    store = FolderStore(root=tmp_path)
    labels = ["1", "001", "01", "2", "9" * 5000]
    write_tar(store, "all.tar", [sample(f"{n}", labels[n % 5], n) for n in range(10)])
    snapshot = adopt(store)
    assert snapshot is not None
    assert snapshot.classes == ("001", "01", "1", "2", "9" * 5000)


def test_a_damaged_receipt_is_none(tmp_path: Path) -> None:
    """It ended every later run in a traceback."""
    store = FolderStore(root=tmp_path)
    write_tar(store, "all.tar", [sample(f"{n}", n % 2, n) for n in range(8)])
    (plan,) = plan_tars(store, OPTIONS)
    scanned = scan_tar(plan, dataset=store)
    (receipt,) = store.list("receipts")
    for content in (b"", b"\xff", b"{}", b"[]"):
        store.put(receipt.path, content)
        assert scan_tar(plan, dataset=store) == scanned


def test_an_oversized_member_is_not_even_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A member of 1.5 GB was read into memory before its size was looked at."""
    store = FolderStore(root=tmp_path)
    big = {"__key__": "big", "png": b"x" * 10_000, "cls": "1"}
    write_tar(store, "all.tar", [big, *(sample(f"{n}", n % 2, n) for n in range(8))])
    read: list[int] = []
    get_range = adopt_scan._LocalFile.get_range

    def noted(file: Any, path: str, start: int, size_bytes: int) -> bytes:
        read.append(size_bytes)
        return get_range(file, path, start, size_bytes)

    monkeypatch.setattr(adopt_scan._LocalFile, "get_range", noted)
    snapshot = adopt(store, replace(OPTIONS, limits=ImageLimits(max_bytes=9_999)))
    assert snapshot is not None
    assert reasons(store, snapshot) == {"all.tar/big.png": "too_large"}
    assert 10_000 not in read


def test_an_append_and_another_adoption_go_on_from_it(dataset: FolderStore, tmp_path: Path) -> None:
    first = adopt(dataset, classes=("cat", "dog"))
    assert first is not None
    twin = png(3)
    incoming = fill(
        tmp_path / "in", {"train/emu/1.png": png(800), "train/cat/2.png": png(801), "train/cat/t.png": twin}
    )
    config = ShardingConfig()
    second = append_snapshot(
        first, incoming, dataset, config, write_shards_here(incoming, dataset, config.limits)
    )
    assert second is not None
    assert second.classes == ("cat", "dog", "emu")
    assert "duplicate" in reasons(dataset, second).values()
    write_tar(
        dataset, "train/9.tar", [sample("x", "emu", 850), sample("y", "fox", 851), sample("z", "cat", 852)]
    )
    third = adopt(dataset)
    assert third is not None
    assert (third.parent, third.classes) == (second.id, ("cat", "dog", "emu", "fox"))
    assert diff_snapshots(second, third, dataset).added["train"] == {"cat": 1, "emu": 1, "fox": 1}
    assert damages(third, dataset) == []


def test_an_adoption_goes_on_from_what_is_head_when_it_commits(
    dataset: FolderStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A snapshot that is retired while tars are looked at must not come back as an ancestor."""
    first = adopt(dataset)
    assert first is not None
    write_tar(dataset, "train/8.tar", [sample("x", 0, 850)])
    second = adopt(dataset)
    assert second is not None
    write_tar(dataset, "train/9.tar", [sample("y", 0, 851)])

    def deduplicate_while_another_retires(*args: Any, **options: Any) -> Any:
        if retirement(dataset, second.id) is None:
            retire_snapshot(dataset, second.id, "wrong labels")
        return deduplicate(*args, **options)

    monkeypatch.setattr("data.adopt.deduplicate", deduplicate_while_another_retires)
    third = adopt(dataset)
    assert third is not None
    assert (third.number, third.parent) == (3, first.id)


def test_gc_frees_the_index_and_never_the_tar(dataset: FolderStore) -> None:
    tars = {info.path: info.etag for info in dataset.list()}
    snapshot = adopt(dataset)
    assert snapshot is not None
    retire_snapshot(dataset, snapshot.id, "x")
    collect_garbage(dataset, grace_s=0)
    left = {info.path: info.etag for info in dataset.list()}
    assert tars.items() <= left.items()
    assert not [path for path in left if path.startswith(("indexes/", "scans/", "receipts/"))]
    again = adopt(dataset)
    assert again is not None
    assert again.number == 2
    assert damages(again, dataset) == []


def test_damage_is_found(dataset: FolderStore) -> None:
    snapshot = adopt(dataset)
    assert snapshot is not None
    shard = snapshot.splits["train"][0]
    content = dataset.get(shard.path)
    spoilt = bytearray(content)
    spoilt[2000] ^= 1
    dataset.put(shard.path, bytes(spoilt))
    assert damages(snapshot, dataset) == [shard.path]
    dataset.delete(shard.path)
    assert damages(snapshot, dataset) == [shard.path]
    dataset.put(shard.path, content + bytes(512))
    with pytest.raises(InputError, match=r"train/0\.tar has \d+ bytes, \d+ when adopted"):
        plan_tars(dataset, OPTIONS)


@pytest.mark.parametrize(
    ("options", "path", "split"),
    [
        ({}, "a/imagenet-val-000.tar", "eval"), ({}, "x/train-valley.tar", "train"), ({}, "x/0.tar", "train"),
        ({}, "test/0.tar", "eval"), ({"split": "eval"}, "train/0.tar", "eval"),
        ({}, "test/of/train000.tar", "train"),
        ({"eval_tars": "*-9*.tar"}, "train/part-90.tar", "eval"), ({"split": "train"}, "val/0.tar", "train"),
    ],
)  # fmt: skip
def test_the_split_of_a_tar(tmp_path: Path, options: dict[str, Any], path: str, split: str) -> None:
    store = FolderStore(root=tmp_path)
    store.put(path, b"")
    (plan,) = plan_tars(store, AdoptOptions(**options))
    assert plan.split == split


def test_bad_input_is_one_clear_line(tmp_path: Path) -> None:
    store = FolderStore(root=tmp_path)
    for wrong in (
        {"label": "txt"},
        {"label": "json:"},
        {"split": "both"},
        {"tars": ""},
        {"max_reject_fraction": 2},
    ):
        with pytest.raises(InputError, match=next(iter(wrong))):
            AdoptOptions(**wrong)  # pyright: ignore[reportArgumentType]
    with pytest.raises(InputError, match=r"no tar in .* matches '\*\.tar'"):
        adopt(store)
    write_tar(store, "bad.tar", [sample("x", 7, 0), sample("y", 0, 1)])
    with pytest.raises(InputError, match=r"'bad\.tar' has the label '7'; with 2 classes"):
        adopt(store, classes=("a", "b"))
    with pytest.raises(InputError, match="2 of 2 images cannot be used"):
        adopt(store, replace(OPTIONS, label="json:x", max_reject_fraction=0.1))
    assert not list(store.list("snapshots"))


@pytest.mark.parametrize("label", [[], None, "", 1.5, [""]])
def test_a_sample_without_a_label_is_a_reject(tmp_path: Path, label: object) -> None:
    store = FolderStore(root=tmp_path)
    odd = {"__key__": "x", "png": png(0), "json": {"l": label}}
    write_tar(store, "0.tar", [odd, {"__key__": "y", "png": png(1), "json": {"l": [3]}}])
    snapshot = adopt(store, replace(OPTIONS, label="json:l"))
    assert snapshot is not None
    assert reasons(store, snapshot) == {"0.tar/x.png": "no_label"}
