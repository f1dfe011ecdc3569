"""Which snapshot a stage reads, and where it is."""

from dataclasses import dataclass
from typing import Any

from data.snapshot import Snapshot
from data.store import Store
from infra.store import open_store
from pipelines.stage import StageRecord


@dataclass(frozen=True, kw_only=True)
class DatasetRef:
    """A pinned snapshot and its dataset."""

    path: str
    """Below the root, or a URI of its own."""
    snapshot_id: str
    classes: tuple[str, ...]

    @staticmethod
    def of(snapshot: Snapshot, path: str) -> "DatasetRef":
        """Return a reference to a snapshot of the dataset at `path`."""
        return DatasetRef(path=path, snapshot_id=snapshot.id, classes=snapshot.classes)

    @staticmethod
    def from_record(record: StageRecord) -> "DatasetRef":
        """Read the reference that a dataset stage left."""
        output = record.output
        return DatasetRef(
            path=output["dataset_path"], snapshot_id=output["snapshot_id"], classes=tuple(output["classes"])
        )

    def to_output(self) -> dict[str, Any]:
        """Return the plain values that `from_record` reads."""
        return {
            "dataset_path": self.path,
            "snapshot_id": self.snapshot_id,
            "classes": list(self.classes),
        }


def open_dataset(root: Store, path: str, *, max_wait_s: float = 60.0) -> Store:
    """Return the store of a `DatasetRef.path`; one below the root is as patient as the root."""
    return open_store(path, max_wait_s=max_wait_s) if "://" in path else root.sub(path)
