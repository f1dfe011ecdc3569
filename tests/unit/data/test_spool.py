import os
import subprocess
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.backlog import Backlog
from data.spool import Spool
from data.temporary_folder import TemporaryFolderFullError

SCHEMA = pa.schema([("hash", pa.uint64()), ("name", pa.string())])


def batch(rows: list[tuple[int, str]]) -> pa.RecordBatch:
    hashes, names = zip(*rows, strict=True) if rows else ((), ())
    return pa.RecordBatch.from_arrays(
        [pa.array(hashes, pa.uint64()), pa.array(names, pa.string())], schema=SCHEMA
    )


def read(spool: Spool) -> list[tuple[int, str]]:
    tables = list(spool.parts())
    return [(row["hash"], row["name"]) for table in tables for row in table.to_pylist()]


hashes = st.one_of(st.integers(0, 2**64 - 1), st.integers(0, 3), st.integers(2**64 - 3, 2**64 - 1))


@settings(deadline=None)
@given(
    st.lists(st.lists(st.tuples(hashes, st.text(max_size=3)), max_size=9), max_size=8),
    st.sampled_from([0, 100, 10**6]),
    st.sampled_from([1, 2, 16]),
)
def test_rows_come_back_sorted_in_memory_and_from_disk(
    batches: list[list[tuple[int, str]]], memory_bytes: int, num_parts: int
) -> None:
    spool = Spool(SCHEMA, ("hash", "name"), memory_bytes=memory_bytes, num_parts=num_parts)
    for rows in batches:
        spool.add(batch(rows))
    expected = sorted((row for rows in batches for row in rows), key=lambda row: (row[0], row[1].encode()))
    assert spool.num_rows == len(expected)
    assert read(spool) == expected
    assert read(spool) == expected
    if expected:
        columns = [table.column_names for table in spool.parts(["name"])]
        assert all(names == ["name"] for names in columns)


def test_more_rows_than_memory_are_on_disk_and_leave_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    rng = np.random.default_rng(0)
    before = pa.total_allocated_bytes()
    spool = Spool(SCHEMA, ("hash", "name"), memory_bytes=200_000, num_parts=16)
    for _ in range(50):
        values = rng.integers(0, 2**64, 2000, dtype=np.uint64)
        spool.add(batch([(int(value), f"name {value}") for value in values]))
        assert pa.total_allocated_bytes() - before < 1_000_000
    assert os.listdir(tmp_path) == []
    num_parts, last = 0, -1
    for table in spool.parts():
        assert table.column("hash")[0].as_py() > last
        last = table.column("hash")[-1].as_py()
        num_parts += 1
    assert num_parts == 16
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("memory_bytes", [0, 150, 10**6])
def test_a_backlog_gives_back_what_it_was_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, memory_bytes: int
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    backlog = Backlog(SCHEMA, memory_bytes=memory_bytes)
    batches = [batch([(number, "n" * number)]) for number in range(20)]
    for one in batches:
        backlog.add(one)
    assert os.listdir(tmp_path) == []
    assert list(backlog) == batches


@pytest.mark.skipif(os.geteuid() != 0, reason="only root mounts a small disk")
def test_a_full_disk_is_one_clear_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(tmp_path)], check=True)
    try:
        monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
        spool = Spool(SCHEMA, ("hash", "name"), memory_bytes=400_000, num_parts=4)
        full = f"no space left in the temporary folder {tmp_path}.*TMPDIR"
        with pytest.raises(TemporaryFolderFullError, match=full):
            spool.add(batch([(number, f"name {number}" * 10) for number in range(8000)]))
        assert os.listdir(tmp_path) == []
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)
