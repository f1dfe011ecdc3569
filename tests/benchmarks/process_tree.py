"""Memory and CPU time of a process and all that it started, from /proc. Linux only, standard library only."""

import os
import signal
import threading
from pathlib import Path
from types import TracebackType

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_SAMPLE_EVERY_S = 0.25


def descendants(pid: int) -> list[int]:
    """Return `pid` and its living children, theirs, and so on."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and (fields := _stat(int(entry.name))):
            children.setdefault(int(fields[1]), []).append(int(entry.name))
    found = [pid]
    for known in found:  # Grows while it is walked.
        found += children.get(known, [])
    return found


def pss_mb(pid: int) -> float:
    """Return the tree's proportional set size in MB: a page that n processes share counts 1/n in each."""
    total_kb = 0
    for process in descendants(pid):
        try:
            lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
        except (FileNotFoundError, ProcessLookupError):
            continue  # It ended since it was found.
        total_kb += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return total_kb * 1024 / 1e6


def cpu_s(pid: int) -> float:
    """Return the tree's CPU seconds, user and system; ended children count where they were waited for."""
    ticks = 0
    for process in descendants(pid):
        if fields := _stat(process):
            ticks += sum(int(value) for value in fields[11:15])  # utime, stime, cutime, cstime
    return ticks / _TICKS_PER_S


def kill_tree(pid: int) -> None:
    """Kill the process and all that it started."""
    for process in descendants(pid):
        try:
            os.kill(process, signal.SIGKILL)
        except ProcessLookupError:
            continue  # It ended since it was found.


class PeakMemory:
    """Samples the tree's memory in a thread while a `with` block runs; `mb` is the largest seen."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self.mb = 0.0

    def __enter__(self) -> "PeakMemory":
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()

    def _sample(self) -> None:
        while True:
            self.mb = max(self.mb, pss_mb(self._pid))
            if self._stop.wait(_SAMPLE_EVERY_S):
                return


def _stat(pid: int) -> list[str]:
    """Return the fields of /proc/PID/stat after the name, the state first; none if it is gone."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return []
    # The name may hold spaces and parentheses; what follows its last one is numbers.
    return text.rpartition(")")[2].split()
