"""What every benchmark module starts and ends with: its options, progress lines, the results' files."""

import argparse
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tests.benchmarks.environment import describe
from tests.benchmarks.measure import Timings, side_by_side
from tests.benchmarks.report import Row, rate_row, spread, write_results


class Session:
    """Collects the rows of one benchmark and writes them at the end."""

    def __init__(self, name: str, out: Path, num_threads: int, distributions: Sequence[str]) -> None:
        self.name = name
        self.out = out
        self.rows: list[Row] = []
        self.environment: dict[str, Any] = {
            "benchmark": name,
            **describe(num_threads=num_threads, distributions=distributions),
            "settings": {},
            "repeats": {},
        }
        self._start_s = time.monotonic()

    @classmethod
    def from_arguments(
        cls,
        name: str,
        distributions: Sequence[str],
        *,
        num_threads: int | None = None,
        arguments: Sequence[str] | None = None,
    ) -> "Session":
        """Read the options that `tests.benchmarks.run` passes; `num_threads` overrides what it says."""
        parser = argparse.ArgumentParser(prog=name)
        parser.add_argument("--out", type=Path, required=True)
        parser.add_argument("--threads", type=int, required=True)
        options = parser.parse_args(arguments)
        return cls(name, options.out, num_threads or options.threads, distributions)

    @property
    def num_threads(self) -> int:
        """The threads that torch may use."""
        return self.environment["num_threads"]

    def announce(self, line: str) -> None:
        """Print one line of progress."""
        print(f"{self.name} {time.monotonic() - self._start_s:4.0f}s: {line}", flush=True)

    def note(self, key: str, value: object) -> None:
        """Keep a fact about how it was measured, e.g. the peer's settings that a sweep chose."""
        self.environment["settings"][key] = value

    def compare(
        self,
        row: str,
        ours: Callable[[], object],
        peer: Callable[[], object],
        *,
        num_items: int,
        unit: str,
        peer_version: str,
        repeats: int,
        clock: Callable[[], float] = time.perf_counter,
    ) -> Row:
        """Time two calls that each handle `num_items`, and add the row."""
        timings = side_by_side(ours, peer, repeats=repeats, clock=clock)
        return self.add(row, timings, num_items=num_items, unit=unit, peer_version=peer_version)

    def add(self, row: str, timings: Timings, *, num_items: int, unit: str, peer_version: str) -> Row:
        """Add the row of timings taken already."""
        result = rate_row(row, timings, num_items=num_items, unit=unit, peer_version=peer_version)
        self.rows.append(result)
        self.environment["repeats"][row] = spread(timings)
        self.announce(f"{row}: {result.ours} against {result.peer} {unit}, ratio {result.ratio:.2f}")
        return result

    def write(self) -> None:
        """Write the results' two files."""
        self.environment["seconds"] = round(time.monotonic() - self._start_s)
        write_results(self.out, self.rows, self.environment)
