"""Memory and CPU time of a contender are those of all its processes."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from tests.benchmarks.process_tree import PeakMemory, cpu_s, descendants, kill_tree, pss_mb

# A child that starts a grandchild; the grandchild holds 64 MB, uses CPU, says so and sleeps.
_GRANDCHILD = """
import time
held = bytearray(b"x" * 64_000_000)
while time.process_time() < 0.3: pass
print("ready", flush=True)
time.sleep(600)
"""
_CHILD = f"import subprocess, sys\nsubprocess.run([sys.executable, '-c', {_GRANDCHILD!r}])"


@pytest.fixture
def tree() -> Iterator[int]:
    process = subprocess.Popen([sys.executable, "-c", _CHILD], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    yield process.pid
    kill_tree(process.pid)
    process.wait()
    process.stdout.close()


def test_the_tree_is_counted_whole(tree: int) -> None:
    assert len(descendants(tree)) == 2
    assert pss_mb(tree) > 64
    assert cpu_s(tree) >= 0.29
    with PeakMemory(tree) as peak:
        pass
    assert peak.mb > 64


def test_the_tree_is_killed_whole(tree: int) -> None:
    _, grandchild = descendants(tree)
    kill_tree(tree)
    deadline_s = time.monotonic() + 5
    while pss_mb(grandchild) and time.monotonic() < deadline_s:  # Its new parent must take note of its end.
        time.sleep(0.01)
    assert pss_mb(grandchild) == 0.0, f"process {grandchild} still runs"


def test_what_has_ended_counts_nothing() -> None:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    assert (pss_mb(process.pid), cpu_s(process.pid)) == (0.0, 0.0)


def test_a_name_with_spaces_does_not_shift_the_fields() -> None:
    """/proc/PID/stat holds the name in parentheses, which may hold spaces itself."""
    assert os.getpid() in descendants(os.getppid())
