"""Ours alone, without any image: time and memory of listing, planning, snapshots and duplicates by size.

Each size runs in a process of its own. The rows compare the largest size measured with the bars that the
product set itself, 60 s and 1 GB a step; a ratio above 1 is within. All sizes stand in the .env.json, and
in scale.png beside it, with a dashed line on to the three billion images of JFT-3B: the power law through
the last two sizes, which is a guess and not a measurement.
"""

import os
import tempfile
from dataclasses import asdict
from pathlib import Path

from tests.benchmarks.contender import Contender
from tests.benchmarks.report import single_row
from tests.benchmarks.scale import Point, extrapolate, plot_scale
from tests.benchmarks.scale_steps import SAMPLES_PER_SHARD
from tests.benchmarks.session import Session

_MODULE = "tests.benchmarks.scale_steps"
_SIZES = {
    "listing": tuple(10**power for power in (4, 5, 6, 7)),
    "snapshots": tuple(SAMPLES_PER_SHARD * 10**power for power in (2, 3, 4, 5)),
    "exact": tuple(SAMPLES_PER_SHARD * shards for shards in (10, 100, 1000)),
    "near": tuple(10**power for power in (4, 5, 6)),
}
"""Images, for each of `scale_steps.STEPS`."""
_JFT_IMAGES = 3e9
_BAR_S = 60.0
_BAR_MB = 1000.0


def main() -> None:
    session = Session.from_arguments("bench_scale", ("pyarrow", "numpy"))
    curves: dict[str, list[Point]] = {}
    for group, sizes in _SIZES.items():
        for num_images in sizes:
            for step, measured in run(session.out.parent, group, num_images).items():
                curves.setdefault(step, []).append(Point(num_images=num_images, **measured))
                session.announce(
                    f"{step}, {num_images:,}: {measured['seconds']:.2f} s, {measured['peak_mb']:.0f} MB"
                )
    for step, points in curves.items():
        last = points[-1]
        for what, ours, bar, unit in (
            ("time", last.seconds, _BAR_S, "s"),
            ("peak memory", last.peak_mb, _BAR_MB, "MB"),
        ):
            row = f"{step}, {last.num_images:,} images, {what}"
            session.rows.append(single_row(row, ours, bar, unit=unit, peer_version="the bar"))
        session.note(f"{step}: all sizes", [asdict(point) for point in points])
        guess_s = extrapolate([(p.num_images, p.seconds) for p in points], _JFT_IMAGES)
        guess_mb = extrapolate([(p.num_images, p.peak_mb) for p in points], _JFT_IMAGES)
        session.note(f"{step}: at 3 billion images, extrapolated", f"{guess_s:.0f} s, {guess_mb:.0f} MB")
    plot_scale(session.out.with_name("scale.png"), curves, until_images=_JFT_IMAGES)
    session.write()


def run(scratch: Path, group: str, num_images: int) -> dict[str, dict[str, float]]:
    """Run a group's steps at one size in a new process."""
    with (
        tempfile.TemporaryDirectory(prefix="bench-scale-", dir=scratch) as folder,
        Contender(group, _MODULE, cores=os.sched_getaffinity(0)) as contender,
    ):
        return contender.ask("run", num_images=num_images, folder=folder)


if __name__ == "__main__":
    main()
