"""WebDataset tars of somebody else's, adopted, and what is in the result."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import webdataset

from data.adopt import AdoptOptions, adopt_tars, plan_tars
from data.adopt_scan import ScannedTar, TarPlan, scan_tar
from data.shard_index import parquet_table, read_index
from data.snapshot import Snapshot
from data.store import Store
from data.verify import verify_lists, verify_shard
from infra.folder_store import FolderStore
from tests.image_samples import jpeg, png

Sample = Mapping[str, Any]
OPTIONS = AdoptOptions(max_reject_fraction=1.0)


def write_tar(dataset: FolderStore, path: str, samples: Sequence[Sample]) -> None:
    (dataset.root / path).parent.mkdir(parents=True, exist_ok=True)
    with webdataset.TarWriter(str(dataset.root / path), mtime=0) as writer:
        for sample in samples:
            writer.write(sample)


def sample(key: str, label: int | str, seed: int, extension: str = "png") -> Sample:
    return {"__key__": key, extension: (png if extension == "png" else jpeg)(seed), "cls": str(label)}


def adopt(
    dataset: Store, options: AdoptOptions = OPTIONS, classes: Sequence[str] | None = None
) -> Snapshot | None:
    def scan_all(plans: Sequence[TarPlan]) -> list[ScannedTar]:
        return [scan_tar(plan, dataset=dataset) for plan in plans]

    return adopt_tars(dataset, options, scan_all, plans=plan_tars(dataset, options), classes=classes)


def rows(dataset: Store, snapshot: Snapshot, split: str = "train") -> list[dict[str, Any]]:
    return [row for one in snapshot.splits[split] for row in read_index(dataset, one).to_pylist()]


def reasons(dataset: Store, snapshot: Snapshot) -> dict[str, str]:
    assert snapshot.quarantine_path is not None
    return {
        row["key"]: row["reason"] for row in parquet_table(dataset.get(snapshot.quarantine_path)).to_pylist()
    }


def damages(snapshot: Snapshot, dataset: Store) -> list[str]:
    shards = [shard for found in snapshot.splits.values() for shard in found]
    found = [damage for shard in shards for damage in verify_shard(shard, dataset=dataset)]
    return [damage.path for damage in (*found, *verify_lists(snapshot, dataset))]


def two_splits(folder: Path) -> FolderStore:
    """Two train tars and an eval one, of the classes 0 and 1, with folders and dots in their keys."""
    store = FolderStore(root=folder / "wds")
    for tar in range(2):
        some = [sample(f"a/{number:03d}", number % 2, 100 * tar + number) for number in range(10)]
        write_tar(store, f"train/{tar}.tar", [*some, sample("b", 1, 100 * tar + 50, "jpg")])
    write_tar(store, "val/0.tar", [sample(f"v{number}", number % 2, 900 + number) for number in range(5)])
    return store
