"""What a benchmark leaves behind: rows, a table of them, and JSON files. Standard library only."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from tests.benchmarks.measure import Timings

_RATES = frozenset({"images/s", "samples/s", "bits"})
"""Units of which more is better."""
_COSTS = frozenset({"ms", "s", "MB"})
"""Units of which less is better."""
_SIGNIFICANT_DIGITS = 4


@dataclass(frozen=True, kw_only=True)
class Row:
    """One comparison of ours with one peer."""

    row: str
    """What was measured."""
    ours: float
    """Median over the repeats, in `unit`."""
    peer: float
    peer_version: str
    """The peer's name and version."""
    unit: str
    ratio: float
    """The median over the repeats of each repeat's ratio: not exactly that of the two medians.
    Above 1 means ours is better, whatever the unit."""
    repeats: int


def ratio(ours: float, peer: float, unit: str) -> float:
    """Return how many times better ours is: above 1 is better, for rates as for costs."""
    if ours <= 0 or peer <= 0:
        raise ValueError(f"ours is {ours} and the peer {peer} {unit}; both must be above 0")
    if unit in _RATES:
        return ours / peer
    if unit in _COSTS:
        return peer / ours
    raise ValueError(f"unit {unit!r} is not known; units: {', '.join(sorted(_RATES | _COSTS))}")


def rate_row(row: str, timings: Timings, *, num_items: int, unit: str, peer_version: str) -> Row:
    """Turn the seconds of calls that each handle `num_items` into a row of items a second."""
    ours = [num_items / seconds for seconds in timings.ours_s]
    peer = [num_items / seconds for seconds in timings.peer_s]
    ratios = [ratio(our, other, unit) for our, other in zip(ours, peer, strict=True)]
    return Row(
        row=row,
        ours=_rounded(median(ours)),
        peer=_rounded(median(peer)),
        peer_version=peer_version,
        unit=unit,
        ratio=_rounded(median(ratios)),
        repeats=len(ratios),
    )


def single_row(row: str, ours: float, peer: float, *, unit: str, peer_version: str) -> Row:
    """Return a row of what does not vary from repeat to repeat, as memory."""
    return Row(
        row=row,
        ours=_rounded(ours),
        peer=_rounded(peer),
        peer_version=peer_version,
        unit=unit,
        ratio=_rounded(ratio(ours, peer, unit)),
        repeats=1,
    )


def spread(timings: Timings) -> dict[str, Any]:
    """Return what a median hides: all seconds, in the order of the repeats."""
    return {
        "ours_s": [_rounded(seconds) for seconds in timings.ours_s],
        "peer_s": [_rounded(seconds) for seconds in timings.peer_s],
    }


def write_results(path: Path, rows: Sequence[Row], environment: Mapping[str, Any]) -> None:
    """Write NAME.json, a list of rows, and beside it NAME.env.json, where and how they were measured."""
    path.parent.mkdir(parents=True, exist_ok=True)
    _write_json(path.with_suffix(".env.json"), environment)
    _write_json(path, [asdict(row) for row in rows])


def read_rows(path: Path) -> list[Row]:
    """Read what `write_results` wrote."""
    return [Row(**values) for values in json.loads(path.read_text())]


def format_table(rows: Sequence[Row]) -> str:
    """Return the rows as a Markdown table, which is also what a terminal shows."""
    cells = [["row", "ours", "peer", "unit", "ratio", "repeats", "peer version"]]
    cells += [
        [r.row, _number(r.ours), _number(r.peer), r.unit, f"{r.ratio:.2f}", str(r.repeats), r.peer_version]
        for r in rows
    ]
    widths = [max(len(line[column]) for line in cells) for column in range(len(cells[0]))]
    is_number = [False, True, True, False, True, True, False]
    lines = [
        "| " + " | ".join(_pad(*cell) for cell in zip(line, widths, is_number, strict=True)) + " |"
        for line in cells
    ]
    rule = "|".join(
        "-" * (width + 1) + (":" if number else "-") for width, number in zip(widths, is_number, strict=True)
    )
    return "\n".join([lines[0], f"|{rule}|", *lines[1:]])


def _pad(text: str, width: int, is_number: bool) -> str:
    return text.rjust(width) if is_number else text.ljust(width)


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"


def _rounded(value: float) -> float:
    return float(f"{value:.{_SIGNIFICANT_DIGITS}g}")


def _write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n")
