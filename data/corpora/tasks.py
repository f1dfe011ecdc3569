"""How readers spread work over many files: they describe it, the caller runs it."""

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


class MapTasks(Protocol):
    """Runs a picklable function on every item, in any place; yields the results in any order."""

    def __call__(
        self, fn: Callable[[Item], Result], items: Sequence[Item], *, size_bytes: int
    ) -> Iterator[Result]:
        """`size_bytes` says about how much the items hold: little is not worth other processes."""
        ...


def map_here(fn: Callable[[Item], Result], items: Sequence[Item], *, size_bytes: int) -> Iterator[Result]:
    """Run one item after another in this process."""
    del size_bytes
    return map(fn, items)
