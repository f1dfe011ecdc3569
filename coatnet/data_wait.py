"""How much of the time training waits for data: what tells a starved GPU from a slow model."""

import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

Item = TypeVar("Item")


class DataWait:
    """Splits the time of a loop into waiting for its next item and working on it."""

    def __init__(self) -> None:
        self._waited_s = self._worked_s = 0.0

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
            yield item
            self._worked_s += time.perf_counter() - got_s

    def take_share(self) -> float:
        """Return the share of the time since the last call that was spent waiting, 0 to 1."""
        total_s = self._waited_s + self._worked_s
        share = self._waited_s / total_s if total_s else 0.0
        self._waited_s = self._worked_s = 0.0
        return share
