from pathlib import Path

from data.append import append_snapshot
from data.build import build_snapshot
from data.retirement import retire_snapshot
from data.shard_write import write_shards_here
from data.sharding_config import ShardingConfig
from data.snapshot_diff import diff_snapshots
from infra.folder_store import FolderStore
from tests.small_dataset import encode, picture, small_dataset


def test_an_append_adds_its_samples_and_shares_all_shards(tmp_path: Path) -> None:
    dataset, first = small_dataset(tmp_path)
    incoming = FolderStore(root=tmp_path / "incoming")
    for index, (split, name) in enumerate(
        [("train", "a"), ("train", "a"), ("train", "c"), ("test", "c"), ("test", "b")]
    ):
        incoming.put(f"{split}/{name}/new{index}.png", encode(picture(24, 24, 500 + index), "png"))
    config = ShardingConfig()
    run_all = write_shards_here(incoming, dataset, config.limits)
    second = append_snapshot(first, incoming, dataset, config, run_all)
    assert second is not None
    found = diff_snapshots(first, second, dataset)
    assert found.added == {"train": {"a": 2, "c": 1}, "eval": {"b": 1, "c": 1}}
    assert found.removed == {"train": {}, "eval": {}}
    assert found.new_classes == ("c",)
    assert found.num_shards_shared == sum(len(shards) for shards in first.splits.values())
    back = diff_snapshots(second, first, dataset)
    assert back.removed == found.added
    assert back.added == {"train": {}, "eval": {}}


def test_classes_in_another_order_are_the_same_samples(tmp_path: Path) -> None:
    dataset, first = small_dataset(tmp_path)
    corpus = FolderStore(root=tmp_path / "corpus")
    config = ShardingConfig(classes=("b", "a"), shard_size_bytes=12_000)
    retire_snapshot(dataset, first.id, "the order of the classes")
    second = build_snapshot(corpus, dataset, config, write_shards_here(corpus, dataset, config.limits))
    assert second.classes == ("b", "a")
    found = diff_snapshots(first, second, dataset)
    assert found.added == found.removed == {"train": {}, "eval": {}}


def test_the_same_snapshot_differs_in_nothing(tmp_path: Path) -> None:
    dataset, snapshot = small_dataset(tmp_path)
    found = diff_snapshots(snapshot, snapshot, dataset)
    assert found.added == found.removed == {"train": {}, "eval": {}}
