"""Time two implementations side by side, so that a busy machine slows both. Standard library only."""

import gc
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

_MIN_TIMED_S = 0.2
"""A timed stretch shorter than this is mostly the noise of the scheduler."""


@dataclass(frozen=True, kw_only=True)
class Timings:
    """Seconds for one call, one entry a repeat; entries of one repeat were taken one after the other."""

    ours_s: list[float]
    peer_s: list[float]


def side_by_side(
    ours: Callable[[], object],
    peer: Callable[[], object],
    *,
    repeats: int,
    min_timed_s: float = _MIN_TIMED_S,
    clock: Callable[[], float] = time.perf_counter,
) -> Timings:
    """Time both in turn, ABBA: ours, peer, peer, ours, ...: neither always goes first.

    Each call runs before, to warm up, and again if it is short: that tells how many calls of both make a
    stretch of at least `min_timed_s`. Python's cyclic garbage is collected between stretches, never
    inside one.
    """
    if repeats < 1:
        raise ValueError(f"repeats is {repeats}; it must be at least 1")
    quickest_s = min(_warm_up(call, min_timed_s, clock) for call in (ours, peer))
    num_calls = max(1, math.ceil(min_timed_s / max(quickest_s, 1e-6)))
    timings = Timings(ours_s=[], peer_s=[])
    for repeat in range(repeats):
        turn = [(ours, timings.ours_s), (peer, timings.peer_s)]
        for call, seconds in turn if repeat % 2 == 0 else reversed(turn):
            seconds.append(_stretch(call, num_calls, clock) / num_calls)
    return timings


def in_turn(calls: Mapping[str, Callable[[], float]], *, repeats: int) -> dict[str, list[float]]:
    """Run calls that tell their own seconds, round by round, every other round backwards.

    One round before warms up, and is not counted.
    """
    if repeats < 1:
        raise ValueError(f"repeats is {repeats}; it must be at least 1")
    for call in calls.values():
        call()
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for repeat in range(repeats):
        names = list(calls) if repeat % 2 == 0 else list(reversed(calls))
        for name in names:
            seconds[name].append(calls[name]())
    return seconds


def _warm_up(call: Callable[[], object], min_timed_s: float, clock: Callable[[], float]) -> float:
    """Return the seconds of one call, without the work that only the first one has."""
    first_s = _stretch(call, 1, clock)
    return first_s if first_s > 10 * min_timed_s else _stretch(call, 1, clock)


def _stretch(call: Callable[[], object], num_calls: int, clock: Callable[[], float]) -> float:
    gc.collect()
    gc.disable()
    try:
        start_s = clock()
        for _ in range(num_calls):
            call()
        return clock() - start_s
    finally:
        gc.enable()
