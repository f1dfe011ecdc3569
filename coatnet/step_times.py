"""Where the time of training steps goes, on the host: what tells a starved GPU from a slow model."""

import time
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

Item = TypeVar("Item")


class StepTimes:
    """Splits the time of a loop into waiting for its next item and working on it; names parts of the work.

    Nothing waits for the device: a part's time is what the host spends on handing it over.
    """

    def __init__(self) -> None:
        self._reset()

    def _reset(self) -> None:
        self._num_items = 0
        self._waited_s = self._worked_s = 0.0
        self._parts_s: dict[str, float] = {}

    def watch(self, items: Iterable[Item]) -> Iterator[Item]:
        """Yield the items, and measure."""
        iterator = iter(items)
        while True:
            asked_s = time.perf_counter()
            try:
                item = next(iterator)
            except StopIteration:
                return
            got_s = time.perf_counter()
            self._waited_s += got_s - asked_s
            self._num_items += 1
            yield item
            self._worked_s += time.perf_counter() - got_s

    @contextmanager
    def part(self, name: str) -> Generator[None]:
        """Measure a part of the work."""
        started_s = time.perf_counter()
        yield
        self._parts_s[name] = self._parts_s.get(name, 0.0) + time.perf_counter() - started_s

    def take(self) -> dict[str, float]:
        """Return metrics of the time since the last call: means over a step, and the share of waiting."""
        if self._num_items == 0:
            return {}
        taken = {f"data/{name}_s": seconds / self._num_items for name, seconds in self._parts_s.items()}
        taken["data/wait_s"] = self._waited_s / self._num_items
        taken["train/data_wait_share"] = self._waited_s / (self._waited_s + self._worked_s)
        self._reset()
        return taken
