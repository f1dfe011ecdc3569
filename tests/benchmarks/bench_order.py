"""Opening an epoch's order: seconds, memory of a rank, and the batch of a step at random.

Each measurement is a process of its own, in turn: ours, peer, peer, ours, ... Mosaic's shuffle and
partition, and a permutation of all samples, hold 8 bytes or more a sample; ours holds shards only. At
300 million samples Mosaic would need more than 10 GB, so the large row has the permutation alone.
"""

import json
import subprocess
import sys
from dataclasses import replace
from statistics import median

import streaming

from tests.benchmarks.report import single_row
from tests.benchmarks.session import Session

SHARD_SIZE = 3_000
SMALL, LARGE = 10_000, 100_000
"""Shards: 30 million samples, and 300 million."""
REPEATS = 3
Cost = dict[str, float]


def main() -> None:
    session = Session.from_arguments("bench_order", ("mosaicml-streaming", "numpy"), num_threads=1)
    numpy_version = f"numpy {session.environment['versions']['numpy']} permutation"
    mosaic_version = f"Mosaic {streaming.__version__} py1e"
    _compare(session, "ours", "mosaic", SMALL, mosaic_version)
    _compare(session, "ours", "permutation", SMALL, numpy_version)
    _compare(session, "ours", "permutation", LARGE, numpy_version)
    _compare(session, "mixture", "permutation", LARGE, numpy_version)
    session.write()


def _compare(session: Session, own: str, peer: str, num_shards: int, peer_version: str) -> None:
    costs: dict[str, list[Cost]] = {own: [], peer: []}
    for repeat in range(REPEATS):
        for name in (own, peer) if repeat % 2 == 0 else (peer, own):
            costs[name].append(_cost(name, num_shards))
    what = f"{num_shards:,} shards, {num_shards * SHARD_SIZE // 10**6} million samples"
    label = f"{what}, three sources mixed" if own == "mixture" else what
    for field, unit, title in (("open_s", "s", "open an epoch"), ("memory_mb", "MB", "memory of a rank")):
        mine, other = (median(cost[field] for cost in costs[name]) for name in (own, peer))
        row = single_row(f"{title}, {label}", mine, other, unit=unit, peer_version=peer_version)
        session.rows.append(replace(row, repeats=REPEATS))
        session.announce(f"{row.row}: {row.ours} against {row.peer} {unit}, {peer_version}")
    slowest = max(cost["slowest_step_ms"] for cost in costs[own])
    usual = median(cost["random_step_ms"] for cost in costs[own])
    session.note(f"{label}: a random step, ms", {"median": usual, "slowest": slowest})
    session.announce(f"{label}: a random step takes {usual:.2f} ms, the slowest {slowest:.2f} ms")
    session.environment["repeats"][f"{label}, {peer_version}"] = costs


def _cost(name: str, num_shards: int) -> Cost:
    command = [sys.executable, "-m", "tests.benchmarks.order_cost", name, str(num_shards), str(SHARD_SIZE)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)} failed: {done.stderr.strip().splitlines()[-1:]}")
    return json.loads(done.stdout.splitlines()[-1])


if __name__ == "__main__":
    main()
