"""The files and the table of a benchmark: others read them, so their form is fixed."""

import json
from pathlib import Path

import pytest

from tests.benchmarks.measure import Timings
from tests.benchmarks.report import (
    Row,
    format_table,
    rate_row,
    ratio,
    read_rows,
    single_row,
    write_results,
)

FIELDS = ["row", "ours", "peer", "peer_version", "unit", "ratio", "repeats"]


def row(name: str = "forward") -> Row:
    timings = Timings(ours_s=[0.5, 0.5, 0.5], peer_s=[1.0, 1.0, 1.0])
    return rate_row(name, timings, num_items=10, unit="images/s", peer_version="peer 1.0")


@pytest.mark.parametrize("unit", ["images/s", "samples/s"])
def test_more_is_better_for_rates(unit: str) -> None:
    assert ratio(30.0, 10.0, unit) == 3.0


@pytest.mark.parametrize("unit", ["ms", "s", "MB"])
def test_less_is_better_for_costs(unit: str) -> None:
    """Guards the direction: 30 ms against 10 ms must not read as three times better."""
    assert ratio(30.0, 10.0, unit) == pytest.approx(1 / 3)


def test_a_unit_without_a_direction_is_refused() -> None:
    with pytest.raises(ValueError, match="'frogs' is not known; units: MB"):
        ratio(1.0, 1.0, "frogs")


def test_no_ratio_of_nothing() -> None:
    with pytest.raises(ValueError, match=r"ours is 0\.0"):
        ratio(0.0, 1.0, "ms")


def test_row_of_rates() -> None:
    found = row()
    assert (found.ours, found.peer, found.ratio, found.repeats) == (20.0, 10.0, 2.0, 3)


def test_ratio_is_taken_within_each_repeat() -> None:
    """A machine that slows down half-way slows both of a repeat: the ratio must not move."""
    timings = Timings(ours_s=[1.0, 1.0, 8.0], peer_s=[2.0, 2.0, 16.0])
    found = rate_row("x", timings, num_items=1, unit="images/s", peer_version="p")
    assert found.ratio == 2.0
    # The medians of the sides come from different repeats here; their quotient would be 0.25.
    timings = Timings(ours_s=[8.0, 8.0, 1.0], peer_s=[16.0, 2.0, 2.0])
    found = rate_row("x", timings, num_items=1, unit="images/s", peer_version="p")
    assert (found.ours, found.peer, found.ratio) == (0.125, 0.5, 2.0)


def test_row_of_one_measurement() -> None:
    found = single_row("peak memory", 200.0, 300.0, unit="MB", peer_version="peer 1.0")
    assert (found.ratio, found.repeats) == (1.5, 1)


def test_files(tmp_path: Path) -> None:
    """NAME.json is a list of rows with just these fields; whatever else is known stands beside it."""
    path = tmp_path / "new" / "bench_x.json"
    rows = [row("a"), row("b")]
    write_results(path, rows, {"cpu_model": "a processor"})
    content = json.loads(path.read_text())
    assert [list(entry) for entry in content] == [FIELDS, FIELDS]
    assert json.loads((tmp_path / "new" / "bench_x.env.json").read_text()) == {"cpu_model": "a processor"}
    assert read_rows(path) == rows


def test_table_is_aligned_markdown() -> None:
    long = Row(
        row="a longer name", ours=123_456.0, peer=0.01234, peer_version="p 1", unit="ms", ratio=0.5, repeats=9
    )
    lines = format_table([row(), long]).splitlines()
    assert len({len(line) for line in lines}) == 1
    assert [cell.strip() for cell in lines[0].strip("|").split("|")][:5] == [
        "row", "ours", "peer", "unit", "ratio",
    ]  # fmt: skip
    assert set(lines[1]) <= set("|-:")
    assert "| 123,456 | 0.01234 |" in lines[3]
