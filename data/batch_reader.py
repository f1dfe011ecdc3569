"""Rows that an order names, read and decoded ahead of their use by a pool of threads.

The work of `prefetch_batches` steps is under way while the consumer holds a batch. A batch's rows are
cut into one share a thread; an error in a share surfaces in the consumer. Results do not depend on
the number of threads. Shape letters: B batch, H and W pixels, C channels (RGB).
"""

from collections import deque
from collections.abc import Callable, Generator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice, pairwise
from time import perf_counter

import numpy as np
import torch
from numpy.typing import NDArray

from data.decode import BadSampleError
from data.errors import InputError
from data.loader_stats import LoaderStats
from data.order import RankBatch
from data.prefetch import Prefetch, SampleReader
from data.tar_reader import StoredImage
from data.types import Batch

Pixels = NDArray[np.uint8]
DecodeRow = Callable[[bytes, int, Pixels], None]
"""Decodes bytes for a row of the rank's batch into its pixels."""
ReadSample = Callable[[int, int], StoredImage]
"""Reads the sample of a shard and row."""

_MIN_SHARE_ROWS = 8
"""Handing work to a thread costs about as much as decoding a tiny image."""


_LOOK_AHEAD_STEPS = 16
"""So far ahead shards and images are fetched. A step of 0.1 s gives a 64 MB shard 1.6 s to come."""


_NUM_NAMED = 3
"""Of the samples that an error is about."""


class TooManyBadSamplesError(InputError):
    """More samples than the budget allows could not be decoded; reading them again would not help."""


def name_some(reasons: Mapping[str, str]) -> str:
    """Name the last few bad samples that were met, each with its reason, for an error of one line."""
    return ", ".join(f"{key!r} ({reason})" for key, reason in list(reasons.items())[-_NUM_NAMED:])


@dataclass(frozen=True, slots=True)
class _Share:
    """What one thread learned about its rows."""

    labels: list[int]
    names: list[str]
    bad_rows: list[tuple[int, str, bool]]
    """Row of the batch, why, and whether its shard is lost."""
    stats: LoaderStats


@dataclass(frozen=True, slots=True)
class _Pending:
    """A batch under way."""

    step: int
    rows: RankBatch
    images_BHWC: torch.Tensor
    shares: "list[Future[_Share]]"


class BatchReader:
    """Turns the rows that an order names into batches, ahead of their use."""

    def __init__(
        self,
        reader: SampleReader,
        image_size_px: int,
        *,
        num_threads: int,
        prefetch_batches: int,
        max_bad_samples: int | None,
    ) -> None:
        """With `max_bad_samples` None whoever reads the batches looks at `bad_samples` and decides."""
        for name, value in (("num_threads", num_threads), ("max_bad_samples", max_bad_samples or 0)):
            if value < 0:
                raise InputError(f"{name} is {value}; it must not be negative.")
        if prefetch_batches < 1:
            raise InputError(f"prefetch_batches is {prefetch_batches}; it must be at least 1.")
        self._reader = reader
        self._size_px = image_size_px
        self._num_threads = num_threads
        self._prefetch_batches = prefetch_batches
        self._max_bad_samples = max_bad_samples
        self.bad_samples: dict[str, str] = {}
        """Key -> why it cannot be decoded."""
        self.lost_samples: set[str] = set()
        """Those of them whose shard is gone or damaged, and may come back."""
        self._stats = LoaderStats()

    def take_stats(self) -> LoaderStats:
        """Return the counts since the last call. For the consumer's thread."""
        taken, self._stats = self._stats, LoaderStats()
        return taken

    def batches(
        self,
        epoch: int,
        steps: range,
        rows_at: Callable[[int], RankBatch],
        decoder_for: Callable[[RankBatch], DecodeRow],
    ) -> Generator[Batch]:
        """Yield the batches of `steps`. Closing the iterator, or an error, stops the threads."""
        self._reader.start_epoch()
        # Not `with executor`: that would first finish all that is under way.
        executor = ThreadPoolExecutor(self._num_threads, "decode") if self._num_threads else None
        prefetch = Prefetch(self._reader) if executor else None
        read = prefetch.read if prefetch else self._reader.read
        pending: deque[_Pending] = deque()
        planned = self._plan(steps, rows_at, prefetch)

        def start_until(depth: int) -> None:
            while len(pending) < depth and (item := next(planned, None)) is not None:
                step, rows = item
                pending.append(self._start(step, rows, read, decoder_for(rows), executor))

        depth = self._prefetch_batches if executor else 0
        try:
            start_until(max(1, depth))
            while pending:
                self._stats.num_ready += sum(all(s.done() for s in batch.shares) for batch in pending)
                batch = self._finish(pending.popleft(), epoch)
                start_until(depth)
                yield batch
                start_until(1)
        finally:
            if executor is not None:
                executor.shutdown(wait=True, cancel_futures=True)
            if prefetch is not None:
                prefetch.close()

    @staticmethod
    def _plan(
        steps: range, rows_at: Callable[[int], RankBatch], prefetch: Prefetch | None
    ) -> Generator[tuple[int, RankBatch]]:
        """Yield each step's rows; with `prefetch`, look some steps further and ask for what they consist of.

        The first step does not wait for that: the distance grows by one a step.
        """
        planned: deque[tuple[int, RankBatch]] = deque()
        ahead = iter(steps)
        while True:
            num_new = 2 if prefetch is not None and len(planned) < _LOOK_AHEAD_STEPS else 1
            for step in islice(ahead, num_new):
                rows = rows_at(step)
                planned.append((step, rows))
                if prefetch is not None:
                    prefetch.want(rows)
            if not planned:
                return
            yield planned.popleft()

    def _start(
        self,
        step: int,
        rows: RankBatch,
        read: ReadSample,
        decode: DecodeRow,
        executor: ThreadPoolExecutor | None,
    ) -> _Pending:
        size_px = self._size_px
        images_BHWC = torch.empty(
            (len(rows.weights_B), size_px, size_px, 3),
            dtype=torch.uint8,
            pin_memory=torch.cuda.is_available(),
        )
        pixels_BHWC: Pixels = images_BHWC.numpy()
        num_real = int(np.count_nonzero(rows.weights_B))
        shares: list[Future[_Share]] = []
        for share in _cut(num_real, self._num_threads):
            if executor is not None:
                shares.append(executor.submit(_read_share, rows, share, read, decode, pixels_BHWC))
            else:
                done: Future[_Share] = Future()
                done.set_result(_read_share(rows, share, read, decode, pixels_BHWC))
                shares.append(done)
        return _Pending(step, rows, images_BHWC, shares)

    def _finish(self, pending: _Pending, epoch: int) -> Batch:
        """Wait for a batch's shares; the first error among them surfaces here, in the consumer."""
        shares = [share.result() for share in pending.shares]
        for share in shares:
            self._stats.add(share.stats)
        self._stats.num_batches += 1
        names = [name for share in shares for name in share.names]
        weights_B = torch.from_numpy(pending.rows.weights_B)
        labels_B = torch.zeros(len(weights_B), dtype=torch.int64)
        labels_B[: len(names)] = torch.tensor(
            [x for share in shares for x in share.labels], dtype=torch.int64
        )
        for row, reason, is_lost in (bad for share in shares for bad in share.bad_rows):
            weights_B[row] = 0.0
            if is_lost:
                self.lost_samples.add(names[row])
            self.bad_samples[names[row]] = reason
        self._check_budget()
        _fill_padding(pending.images_BHWC, len(names))
        return Batch(
            images_BHWC=pending.images_BHWC,
            labels_B=labels_B,
            weights_B=weights_B,
            positions_B=torch.from_numpy(pending.rows.positions_B),
            keys=(*names, *([""] * (len(weights_B) - len(names)))),
            epoch=epoch,
            step=pending.step,
        )

    def _check_budget(self) -> None:
        if self._max_bad_samples is not None and len(self.bad_samples) > self._max_bad_samples:
            raise TooManyBadSamplesError(
                f"{len(self.bad_samples)} samples cannot be read or decoded, max_bad_samples allows "
                f"{self._max_bad_samples}; among them {name_some(self.bad_samples)}: build the dataset again"
            )


def _read_share(
    rows: RankBatch, share: range, read: ReadSample, decode: DecodeRow, pixels_BHWC: Pixels
) -> _Share:
    """Read and decode some rows of a batch. An image that is none becomes black."""
    labels: list[int] = []
    names: list[str] = []
    bad_rows: list[tuple[int, str, bool]] = []
    stats = LoaderStats(num_images=len(share))
    shards, shard_rows = rows.shard_B.tolist(), rows.row_B.tolist()
    for row in share:
        started_s = perf_counter()
        stored = read(shards[row], shard_rows[row])
        fetched_s = perf_counter()
        try:
            if stored.problem:
                raise BadSampleError(stored.problem)
            decode(stored.image_bytes, row, pixels_BHWC[row])
        except BadSampleError as error:
            pixels_BHWC[row] = 0
            bad_rows.append((row, str(error), bool(stored.problem)))
        labels.append(stored.label)
        names.append(stored.name)
        stats.fetch_s += fetched_s - started_s
        stats.decode_s += perf_counter() - fetched_s
        stats.read_bytes += len(stored.image_bytes)
        stats.num_cached += stored.is_cached
        stats.num_fetched_again += stored.is_fetched_again
    return _Share(labels, names, bad_rows, stats)


def _cut(num_rows: int, num_threads: int) -> list[range]:
    """Cut rows into at most `num_threads` shares of nearly equal length, none very short."""
    num_shares = max(1, min(num_threads, num_rows // _MIN_SHARE_ROWS))
    edges = [num_rows * index // num_shares for index in range(num_shares + 1)]
    return [range(first, end) for first, end in pairwise(edges)]


def _fill_padding(images_BHWC: torch.Tensor, num_real: int) -> None:
    """Repeat real images in the padding: their weight is 0, but BatchNorm sees every row."""
    num_rows = len(images_BHWC)
    if num_real == 0:
        images_BHWC.zero_()
    for first in range(num_real, num_rows, max(1, num_real)):
        end = min(first + num_real, num_rows)
        images_BHWC[first:end] = images_BHWC[: end - first]
