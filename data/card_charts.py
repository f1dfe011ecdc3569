"""Bins for a dataset card's bar charts; a bin is (where it stands, what it is called)."""

from collections import Counter
from collections.abc import Iterable

Bin = tuple[int, str]
Bars = list[tuple[str, tuple[int, int]]]

_SHAPES = (
    (0.5, "taller than 1:2"),
    (0.9, "upright"),
    (1.12, "about square"),
    (2.0, "wide"),
    (float("inf"), "wider than 2:1"),
)


def by_power_of_two(value: int, unit: str) -> Bin:
    """Return the bin of a whole number: 0, 1, 2, 3-4, 5-8, ...; with unit "B" in bytes, kiB, MiB, GiB."""
    power = max(0, value - 1).bit_length() if value else -1
    if power < 0:
        return power, "0"
    end, start = 2**power, 2 ** (power - 1) + 1 if power > 1 else 2**power
    if unit != "B":
        return power, f"{start:,}" if start == end else f"{start:,} to {end:,}"
    step = min(power // 10, 3)
    name = ("B", "kiB", "MiB", "GiB")[step]
    return power, f"up to {end >> (10 * step)} {name}"


def by_shape(ratio: float) -> Bin:
    """Return the bin of width / height."""
    return next((place, name) for place, (end, name) in enumerate(_SHAPES) if ratio <= end)


def two_counts(binned: Iterable[tuple[Bin, str, int]]) -> Bars:
    """Return bars of (train, eval) counts in the order of the bins; each item is (bin, split, count)."""
    counts: Counter[tuple[Bin, str]] = Counter()
    for bin_, split, count in binned:
        counts[bin_, split] += count
    bins = sorted({bin_ for bin_, _ in counts})
    return [(name, (counts[(place, name), "train"], counts[(place, name), "eval"])) for place, name in bins]
