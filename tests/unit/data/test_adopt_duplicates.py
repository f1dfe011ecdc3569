"""What an adopted tar has that the dataset has, or that looks like it."""

from dataclasses import replace
from pathlib import Path

import pytest

from data.errors import InputError
from data.shard_index import read_index
from data.sharding_config import NearPolicy
from data.snapshot import load_snapshot
from infra.folder_store import FolderStore
from tests.adopted_tars import OPTIONS, adopt, damages, reasons, rows, sample, two_splits, write_tar
from tests.card_dataset import scene
from tests.image_samples import encode


@pytest.fixture
def dataset(tmp_path: Path) -> FolderStore:
    return two_splits(tmp_path)


@pytest.mark.parametrize("policy", ["report", "drop", "off"])
def test_images_that_look_alike_are_told_or_left_out(dataset: FolderStore, policy: NearPolicy) -> None:
    """Adopted tars were never searched for near duplicates."""
    alike = [
        {
            "__key__": f"alike{quality}",
            "jpg": encode(scene(5), "JPEG", quality=quality),
            "cls": "1",
        }
        for quality in (95, 80)
    ]
    write_tar(dataset, "train/2.tar", alike)
    snapshot = adopt(dataset, replace(OPTIONS, near_duplicates=policy))
    assert snapshot is not None
    found = [row["key"] for row in rows(dataset, snapshot) if row["path"] == "train/2.tar"]
    assert found == (["alike95"] if policy == "drop" else ["alike95", "alike80"])
    counts = {"pairs": 1, "leaks": 0, "dropped": int(policy == "drop")}
    assert snapshot.stats["near_duplicates"] == ({} if policy == "off" else counts)
    assert (snapshot.near_duplicates_path is not None) == (policy == "report")
    if policy == "drop":
        assert reasons(dataset, snapshot) == {"train/2.tar/alike80.jpg": "near_duplicate"}
    assert snapshot.stats["samples"]["train"] == 22 + len(found)
    assert damages(snapshot, dataset) == []


def test_tars_of_look_alikes_alone_add_nothing(dataset: FolderStore) -> None:
    """Each run committed another empty snapshot, for the tars stayed new."""
    policy = replace(OPTIONS, near_duplicates="drop")
    write_tar(dataset, "train/2.tar", [{"__key__": "scene", "png": encode(scene(5), "PNG"), "cls": "1"}])
    snapshot = adopt(dataset, policy)
    assert snapshot is not None
    alike = {"__key__": "alike", "jpg": encode(scene(5), "JPEG", quality=90), "cls": "1"}
    write_tar(dataset, "train/3.tar", [alike])
    assert adopt(dataset, policy) is None
    assert load_snapshot(dataset, "HEAD") == snapshot


def test_twice_the_same_image_is_left_out_of_the_index_only(dataset: FolderStore) -> None:
    write_tar(dataset, "train/2.tar", [sample("twin", 1, 3), sample("new", 1, 700), sample("leak", 1, 901)])
    with pytest.raises(
        InputError, match=r"stand in both train and eval: 'train/2\.tar/leak\.png' = 'val/0\.tar/v1"
    ):
        adopt(dataset)
    snapshot = adopt(dataset, replace(OPTIONS, leak_policy="drop_train"))
    assert snapshot is not None
    assert reasons(dataset, snapshot) == {"train/2.tar/twin.png": "duplicate", "train/2.tar/leak.png": "leak"}
    (shard,) = (shard for shard in snapshot.splits["train"] if shard.path == "train/2.tar")
    assert read_index(dataset, shard).column("key").to_pylist() == ["new"]
    assert shard.num_samples == 1
    assert snapshot.stats["samples"]["train"] == 23
    assert damages(snapshot, dataset) == []
