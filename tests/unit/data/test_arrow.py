"""What Arrow's tables are turned into, and at what price."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa

from data.arrow import to_numpy
from tests.small_dataset import small_dataset


def test_numbers_are_viewed_by_value() -> None:
    column = pa.chunked_array([pa.array([7, 8, 9], pa.uint32())[1:], pa.array([2**32 - 1], pa.uint32())])
    assert to_numpy(column).dtype == np.uint32
    assert to_numpy(column).tolist() == [8, 9, 2**32 - 1]
    assert to_numpy(pa.array([], pa.int64())).tolist() == []


_READ_ALL = """
import sys
from pathlib import Path
from data.snapshot import load_snapshot
from data.tar_reader import ShardReader
from infra.folder_store import FolderStore

store = FolderStore(root=Path(sys.argv[1]))
shards = load_snapshot(store, "HEAD").splits["train"]
reader = ShardReader(store, shards, None)
places = [(i, row) for i, shard in enumerate(shards) for row in range(shard.num_samples)]
print(sum(len(reader.read(*place).image_bytes) > 0 for place in places))
print(*sorted({"pandas", "pyarrow.dataset"} & set(sys.modules)))
"""


def test_reading_a_dataset_imports_no_pandas(tmp_path: Path) -> None:
    """It did, by way of `pyarrow.parquet.read_table` and `Array.to_numpy`: 36 MB in every rank."""
    store, _ = small_dataset(tmp_path, num_train=24)
    command = [sys.executable, "-c", _READ_ALL, str(store.root)]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert printed.splitlines() == ["24", ""]
