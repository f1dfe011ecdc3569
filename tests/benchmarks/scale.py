"""How a step's time and memory grow with its size, as a plot and beyond what was measured."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure


@dataclass(frozen=True, kw_only=True)
class Point:
    """One step at one size."""

    num_images: int
    seconds: float
    peak_mb: float


def extrapolate(points: Sequence[tuple[float, float]], x: float) -> float:
    """Return y at `x` on the power law through the last two of (x, y), by x; no less than the last y."""
    (x1, y1), (x2, y2) = sorted(points)[-2:]
    slope = max(0.0, math.log(y2 / y1) / math.log(x2 / x1))
    return y2 * (x / x2) ** slope


def plot_scale(path: Path, curves: Mapping[str, Sequence[Point]], *, until_images: float) -> None:
    """Draw seconds and memory against images, both axes logarithmic, dashed up to `until_images`."""
    with mpl.rc_context({"svg.hashsalt": "scale"}):
        figure = Figure(figsize=(10, 4.5), layout="constrained")
        left, right = figure.subplots(1, 2)
        for panel, quantity, title in (
            (left, "seconds", "seconds"),
            (right, "peak_mb", "peak resident memory, MB"),
        ):
            for number, (step, points) in enumerate(curves.items()):
                _draw(
                    panel,
                    f"C{number}",
                    step,
                    [(p.num_images, getattr(p, quantity)) for p in points],
                    until_images,
                )
            panel.set(xscale="log", yscale="log", xlabel="images", title=title)
            panel.axvline(until_images, color="grey", linestyle=":", label="3 billion (JFT-3B)")
            panel.grid(visible=True, which="major", alpha=0.3)
        left.axhline(60, color="black", linewidth=0.8, label="the bar: 60 s, 1 GB")
        right.axhline(1000, color="black", linewidth=0.8)
        left.legend(fontsize="small")
        figure.savefig(path, dpi=110, metadata={"Software": None})


def _draw(panel: Any, color: str, step: str, points: Sequence[tuple[float, float]], until: float) -> None:
    xs, ys = zip(*sorted(points), strict=True)
    panel.plot(xs, ys, "o-", color=color, label=step, markersize=4)
    panel.plot([xs[-1], until], [ys[-1], extrapolate(points, until)], "--", color=color)
