"""Map a function over items as Ray tasks. Imports little: every task's process imports this module."""

from collections.abc import Callable, Generator, Iterable, Sequence
from typing import Any, TypeVar

import ray
from ray.exceptions import RayTaskError

from data.store import StoreError

Item = TypeVar("Item")
Result = TypeVar("Result")

_TRANSIENT: Any = [StoreError, OSError]
"""Raised by a task that is worth running again; Ray's own annotation knows only bool."""


def stream_tasks(
    fn: Callable[[Item], Result],
    items: Iterable[Item],
    *,
    max_in_flight: int,
    num_cpus_per_task: float = 1,
    num_gpus_per_task: int = 0,
    max_retries: int = 3,
) -> Generator[tuple[int, Result]]:
    """Call `fn` on every item as Ray tasks; yield (the item's number, result) in the order tasks finish.

    At most `max_in_flight` are submitted at a time, and items are taken only as they are submitted: there
    may be any number of them. A task whose process dies, or that raises StoreError or another OSError,
    runs again; any other exception, or a task that keeps failing, is raised here as it is. The rest is
    cancelled then, and where the caller stops asking. A task without GPUs may see all of its node's.
    """
    remote_fn = ray.remote(
        num_cpus=num_cpus_per_task,
        num_gpus=num_gpus_per_task,
        max_retries=max_retries,
        retry_exceptions=_TRANSIENT,
    )(_call)
    pending: dict[Any, int] = {}
    upcoming = enumerate(items)
    is_exhausted = False
    try:
        while True:
            while len(pending) < max_in_flight and not is_exhausted:
                if (submitted := next(upcoming, None)) is None:
                    is_exhausted = True
                else:
                    pending[remote_fn.remote(fn, submitted[1])] = submitted[0]
            if not pending:
                return
            finished, _ = ray.wait(list(pending), num_returns=1)
            for reference in finished:
                yield pending.pop(reference), _get(reference)
    finally:
        for reference in pending:
            ray.cancel(reference, force=False)


def run_tasks(
    fn: Callable[[Item], Result],
    items: Sequence[Item],
    *,
    max_in_flight: int,
    num_cpus_per_task: float = 1,
    num_gpus_per_task: int = 0,
    max_retries: int = 3,
    on_done: Callable[[int, Result], None] | None = None,
) -> list[Result]:
    """Do what `stream_tasks` does to its end; return the results in the items' order.

    `on_done(index, result)` is called in this thread in the order tasks finish.
    """
    results: dict[int, Result] = {}
    for index, result in stream_tasks(
        fn,
        items,
        max_in_flight=max_in_flight,
        num_cpus_per_task=num_cpus_per_task,
        num_gpus_per_task=num_gpus_per_task,
        max_retries=max_retries,
    ):
        results[index] = result
        if on_done is not None:
            on_done(index, result)
    return [results[index] for index in range(len(items))]


def _call(fn: Callable[[Any], Any], item: Any) -> Any:
    return fn(item)


def _get(reference: Any) -> Any:
    try:
        return ray.get(reference)
    except RayTaskError as error:
        raise error.cause from error
