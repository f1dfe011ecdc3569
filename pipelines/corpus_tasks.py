"""Read a corpus's own files (tars, Parquet) to list them: here if they are small, else as Ray tasks."""

import time
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from data.corpora.tasks import MapTasks
from infra.ray_tasks import stream_tasks
from pipelines.job import connect_to_ray

Item = TypeVar("Item")
Result = TypeVar("Result")

# Read here in a second or two; to start Ray takes longer.
_LITTLE_BYTES = 256 * 2**20
_LINE_EVERY_S = 2.0


def corpus_tasks(
    *, max_in_flight: int, announce: Callable[[str], None], connect: Callable[[], None] = connect_to_ray
) -> MapTasks:
    """Return what runs a reader's tasks, with a line of progress now and then."""

    def run(fn: Callable[[Item], Result], items: Sequence[Item], *, size_bytes: int) -> Iterator[Result]:
        if size_bytes < _LITTLE_BYTES or len(items) < 2:
            yield from map(fn, items)
            return
        connect()
        last_line_s = time.monotonic()
        for number, (_, result) in enumerate(stream_tasks(fn, items, max_in_flight=max_in_flight), start=1):
            if time.monotonic() - last_line_s >= _LINE_EVERY_S or number == len(items):
                announce(f"list  {number:,}/{len(items):,} files of {size_bytes / 1e9:,.1f} GB")
                last_line_s = time.monotonic()
            yield result

    return run
