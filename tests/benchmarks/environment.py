"""What the numbers depend on beside the code: the machine, its load, versions. Standard library only."""

import os
import platform
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

_BUSY_LOAD_PER_CORE = 0.25


def describe(*, num_threads: int, distributions: Sequence[str]) -> dict[str, Any]:
    """Return the machine and the installed versions of `distributions`, as JSON values.

    Call it before measuring: it holds the load average that others make. A benchmark's own threads
    would count as load later.
    """
    return {
        "date_utc": datetime.now(UTC).isoformat(timespec="seconds"),
        "cpu_model": cpu_model(),
        "num_cores": num_cores(),
        "num_threads": num_threads,
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "load_average_before": [round(value, 2) for value in os.getloadavg()],
        "platform": platform.platform(),
        "python": sys.version.split()[0],
        "versions": {name: metadata.version(name) for name in distributions},
    }


def num_cores() -> int:
    """Return how many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def cpu_model() -> str:
    """Return the processor's name, as far as the system tells it."""
    path = Path("/proc/cpuinfo")
    if path.is_file():
        for line in path.read_text().splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name" and value.strip():
                return value.strip()
    return platform.processor() or platform.machine()


def one_line(environment: dict[str, Any]) -> str:
    """Return what belongs under a table of results."""
    versions = ", ".join(f"{name} {version}" for name, version in environment["versions"].items())
    load = environment["load_average_before"][0]
    busy = " (BUSY: do not quote these numbers)" if is_busy(load, environment["num_cores"]) else ""
    return (
        f"{environment['cpu_model']}, {environment['num_cores']} cores, "
        f"{environment['num_threads']} thread(s); load before {load}{busy}; "
        f"Python {environment['python']}; {versions}"
    )


def is_busy(load: float, cores: int) -> bool:
    """Say whether other processes took so much of the machine that absolute numbers mean little."""
    return load > _BUSY_LOAD_PER_CORE * cores
