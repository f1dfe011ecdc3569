"""Beyond what was measured a step follows its last power law."""

from pathlib import Path

import pytest

from tests.benchmarks.scale import Point, extrapolate, plot_scale


def test_a_power_law_goes_on() -> None:
    assert extrapolate([(1, 5.0), (10, 2.0), (100, 20.0)], 10_000) == pytest.approx(2000)
    assert extrapolate([(100, 20.0), (1, 5.0), (10, 20.0)], 1e9) == pytest.approx(20)


def test_noise_never_becomes_a_gain() -> None:
    """Memory that fell by chance between two sizes must not fall on for ever."""
    assert extrapolate([(10, 21.0), (100, 20.0)], 1e9) == 20.0


def test_the_plot_is_the_same_each_time(tmp_path: Path) -> None:
    curves = {
        "list": [Point(num_images=n, seconds=n / 1e5, peak_mb=100 + n / 1e4) for n in (1000, 10_000)],
        "open": [Point(num_images=n, seconds=n / 1e7, peak_mb=90) for n in (3000, 30_000)],
    }
    for name in ("a.png", "b.png"):
        plot_scale(tmp_path / name, curves, until_images=3e9)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
