"""Bins for a dataset card's bar charts; a bin is (where it stands, what it is called)."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from data.card_sample import CardSample

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


def size_bars(sample: CardSample) -> Iterator[tuple[str, Bars]]:
    """Yield the title and the bars of each chart of what the images are like."""
    for title, (columns, to_bin) in _SIZE_CHARTS.items():
        yield title, two_counts(_binned(sample, columns, to_bin))


def _longer_side(width: int, height: int) -> Bin:
    return by_power_of_two(max(width, height), "")


def _shape(width: int, height: int) -> Bin:
    return by_shape(width / height)


def _file_size(size_bytes: int) -> Bin:
    return by_power_of_two(size_bytes, "B")


def _mode(mode: str | None) -> Bin:
    return 0, mode or "not known"


def _stored_as(extension: str, is_new: bool) -> Bin:
    return 0, f"{extension}, {'encoded again' if is_new else 'as it was'}"


def _orientation(orientation: int | None) -> Bin:
    return orientation or 0, str(orientation or "not known")


_SIZE_CHARTS: Mapping[str, tuple[tuple[str, ...], Callable[..., Bin]]] = {
    "Longer side, px": (("width", "height"), _longer_side),
    "Shape, width to height": (("width", "height"), _shape),
    "File size in the shard": (("size",), _file_size),
    "Mode of the corpus's file": (("original_mode",), _mode),
    "Stored as": (("extension", "reencoded"), _stored_as),
    "EXIF orientation of the corpus's file": (("exif_orientation",), _orientation),
}
"""Title -> columns of the index, and the bin of their values."""


def _binned(
    sample: CardSample, columns: Sequence[str], to_bin: Callable[..., Bin]
) -> Iterator[tuple[Bin, str, int]]:
    """Yield (bin, split, count) for each combination of values in a shard."""
    for split, _, table in sample.tables:
        counted = table.select(list(columns)).group_by(list(columns)).aggregate([([], "count_all")])
        of_columns = [counted.column(name).to_pylist() for name in (*columns, "count_all")]
        for *values, count in zip(*of_columns, strict=True):
            yield to_bin(*values), split, count
