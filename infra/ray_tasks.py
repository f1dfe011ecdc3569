"""Map a function over items as Ray tasks. Imports little: every task's process imports this module."""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import ray
from ray.exceptions import RayTaskError

from data.store import StoreError

Item = TypeVar("Item")
Result = TypeVar("Result")

_TRANSIENT: Any = [StoreError, OSError]
"""Raised by a task that is worth running again; Ray's own annotation knows only bool."""


def run_tasks(
    fn: Callable[[Item], Result],
    items: Sequence[Item],
    *,
    max_in_flight: int,
    num_cpus_per_task: float = 1,
    max_retries: int = 3,
    on_done: Callable[[int, Result], None] | None = None,
) -> list[Result]:
    """Call `fn` on every item as Ray tasks; return the results in the items' order.

    At most `max_in_flight` are submitted at a time. A task whose process dies, or that raises
    StoreError or another OSError, runs again; any other exception, or a task that keeps failing,
    cancels the rest and is raised here as it is. `on_done(index, result)` is called in this thread
    in the order tasks finish.
    """
    remote_fn = ray.remote(num_cpus=num_cpus_per_task, max_retries=max_retries, retry_exceptions=_TRANSIENT)(
        _call
    )
    results: dict[int, Result] = {}
    pending: dict[Any, int] = {}
    upcoming = iter(enumerate(items))
    try:
        while len(results) < len(items):
            while len(pending) < max_in_flight and (submitted := next(upcoming, None)) is not None:
                index, item = submitted
                pending[remote_fn.remote(fn, item)] = index
            finished, _ = ray.wait(list(pending), num_returns=1)
            for reference in finished:
                index = pending.pop(reference)
                results[index] = _get(reference)
                if on_done is not None:
                    on_done(index, results[index])
    finally:
        for reference in pending:
            ray.cancel(reference, force=False)
    return [results[index] for index in range(len(items))]


def _call(fn: Callable[[Any], Any], item: Any) -> Any:
    return fn(item)


def _get(reference: Any) -> Any:
    try:
        return ray.get(reference)
    except RayTaskError as error:
        raise error.cause from error
