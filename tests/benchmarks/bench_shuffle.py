"""How well an epoch is mixed, beside a full shuffle, webdataset's buffer and Mosaic's py1e.

No timings: the orders themselves are compared, of a corpus of ImageNet's shape (1000 classes of 1281
images, 600 a shard) and 8 ranks. `corpus order` is class after class. It is sharded in two ways: as
`pipelines/shard.py create` does, shuffled by a hash before it is cut, and in corpus order, as a foreign
dataset may come that is adopted in place. Beside the table it writes NAME.md and NAME.png.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import streaming
import webdataset
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from data.stable_hash import stable_hash
from tests.benchmarks.report import single_row
from tests.benchmarks.session import Session
from tests.benchmarks.shuffle_orders import (
    MOSAIC_BLOCK,
    NUM_RANKS,
    Order,
    full_shuffle,
    mosaic,
    ours,
    webdataset_buffer,
)

NUM_CLASSES, CLASS_SIZE, SHARD_SIZE, BATCH_SIZE = 1000, 1281, 600, 256
NUM_SAMPLES = NUM_CLASSES * CLASS_SIZE
WINDOWS = (1, 2_048, 16_384, 65_536, 262_144, NUM_SAMPLES)
"""Of ours; 16,384 is the default."""
WDS_BUFFERS = (1_000, 2_048)
"""Of each rank: the documentation's usual one, and 8 ranks' share of our default window."""
MOSAIC_BLOCKS = (16_384, 262_144, MOSAIC_BLOCK)
SHARDINGS = ("written by us", "adopted, class by class")


@dataclass(frozen=True, kw_only=True)
class Quality:
    """One loader's epoch."""

    family: str
    name: str
    classes_per_batch: float
    entropy_bits: float
    """Of the classes in a batch, the mean over batches."""
    neighbour_distance: float
    """Mean distance in the corpus of samples that follow each other, as a share of the corpus."""
    neighbour_correlation: float
    """Rank correlation of the corpus places of samples that follow each other."""
    mates_again: float
    """Of the others in a sample's batch, how many are in its batch in the next epoch as well; the mean."""
    shards_open: float
    """Shards between their first and last use, the mean over steps."""


def measure(family: str, name: str, order_SB: Order, next_SB: Order, corpus_N: NDArray[np.int64]) -> Quality:
    """Judge an order, and the next epoch's, over shards with the corpus' samples in the order `corpus_N`."""
    places_SB = corpus_N[order_SB]
    classes_SB = np.sort(places_SB // CLASS_SIZE, axis=1)
    flat = places_SB.reshape(-1).astype(np.float64)
    return Quality(
        family=family,
        name=name,
        classes_per_batch=float((np.diff(classes_SB, axis=1) > 0).sum(axis=1).mean() + 1),
        entropy_bits=float(np.mean([_entropy_bits(row) for row in classes_SB])),
        neighbour_distance=float(np.abs(np.diff(flat)).mean() / NUM_SAMPLES),
        neighbour_correlation=float(np.corrcoef(flat[:-1], flat[1:])[0, 1]),
        mates_again=_mates_again(order_SB, next_SB),
        shards_open=_shards_open(order_SB // SHARD_SIZE),
    )


def _entropy_bits(classes_B: NDArray[np.int64]) -> float:
    _, counts = np.unique(classes_B, return_counts=True)
    shares = counts / counts.sum()
    return float(-(shares * np.log2(shares)).sum())


def _mates_again(order_SB: Order, next_SB: Order) -> float:
    steps_N = np.full((2, NUM_SAMPLES), -1)
    for steps, order in zip(steps_N, (order_SB, next_SB), strict=True):
        steps[order.reshape(-1)] = np.repeat(np.arange(len(order)), order.shape[1])
    both = (steps_N >= 0).all(axis=0)
    _, counts = np.unique(steps_N[0, both] * len(next_SB) + steps_N[1, both], return_counts=True)
    return float((counts * (counts - 1)).sum() / counts.sum())


def _shards_open(shards_SB: NDArray[np.int64]) -> float:
    num_steps = len(shards_SB)
    num_shards = int(shards_SB.max()) + 1
    first, last = np.full(num_shards, num_steps), np.full(num_shards, -1)
    steps = np.repeat(np.arange(num_steps), shards_SB.shape[1])
    np.minimum.at(first, shards_SB.reshape(-1), steps)
    np.maximum.at(last, shards_SB.reshape(-1), steps)
    used = last >= 0
    return float((last[used] - first[used] + 1).sum() / num_steps)


MakeOrder = Callable[[NDArray[np.int64], int], Order]
"""(shard sizes, epoch) -> order."""


def loaders() -> list[tuple[str, str, MakeOrder]]:
    """Return (family, name, how to make its order) of everything compared."""
    found: list[tuple[str, str, MakeOrder]] = []
    for window in WINDOWS:
        found.append(("ours", f"ours, window {window:,}", lambda s, e, w=window: ours(s, BATCH_SIZE, w, e)))
    for size in WDS_BUFFERS:
        name = f"webdataset, buffer {size:,} a rank"
        found.append(("webdataset", name, lambda s, e, n=size: webdataset_buffer(s, BATCH_SIZE, n, e)))
    for block in MOSAIC_BLOCKS:
        default = " (default)" if block == MOSAIC_BLOCK else ""
        name = f"Mosaic py1e, block {block:,}{default}"
        found.append(("Mosaic", name, lambda s, e, n=block: mosaic(s, BATCH_SIZE, n, e)))
    found.append(("full shuffle", "full shuffle", lambda s, e: full_shuffle(NUM_SAMPLES, BATCH_SIZE, e)))
    return found


def shardings() -> dict[str, NDArray[np.int64]]:
    """Return, for each way of sharding, the corpus place of each sample in the order of the shards."""
    keys = pa.array(f"{place // CLASS_SIZE:04d}/{place % CLASS_SIZE:05d}.jpg" for place in range(NUM_SAMPLES))
    hashes = stable_hash(keys, seed=0, purpose="order")
    return dict(zip(SHARDINGS, (np.argsort(hashes), np.arange(NUM_SAMPLES)), strict=True))


def main() -> None:
    session = Session.from_arguments(
        "bench_shuffle", ("mosaicml-streaming", "webdataset", "numpy"), num_threads=1
    )
    sizes = np.array([SHARD_SIZE] * (NUM_SAMPLES // SHARD_SIZE), dtype=np.int64)
    assert sizes.sum() == NUM_SAMPLES
    corpora = shardings()
    qualities: dict[str, list[Quality]] = {name: [] for name in corpora}
    for family, name, make_order in loaders():
        order_SB, next_SB = make_order(sizes, 1), make_order(sizes, 2)
        assert len(np.unique(order_SB)) == order_SB.size, f"{name} repeats samples"
        for sharding, corpus_N in corpora.items():
            quality = measure(family, name, order_SB, next_SB, corpus_N)
            qualities[sharding].append(quality)
            session.announce(f"{sharding}: {quality}")
    _add_rows(session, qualities)
    text = "\n\n".join(f"Shards {name}:\n\n{table(found)}" for name, found in qualities.items())
    session.write()
    session.out.with_suffix(".md").write_text(text + "\n")
    plot(qualities, session.out.with_suffix(".png"))


def _add_rows(session: Session, qualities: dict[str, list[Quality]]) -> None:
    """Compare our default window with what the peers do by default, and with equal memory."""
    peers = {
        "webdataset": f"webdataset {webdataset.__version__}",
        "Mosaic": f"Mosaic {streaming.__version__}",
    }
    for sharding, found in qualities.items():
        own = next(quality for quality in found if quality.name == "ours, window 16,384")
        for peer in (quality for quality in found if quality.family in peers):
            session.rows.append(
                single_row(
                    f"{sharding}: entropy, window 16,384 against {peer.name}",
                    own.entropy_bits,
                    peer.entropy_bits,
                    unit="bits",
                    peer_version=peers[peer.family],
                )
            )


def table(qualities: list[Quality]) -> str:
    """Return the Markdown table of one way of sharding."""
    lines = [
        "| order | classes in a batch | entropy, bits | neighbours' distance | neighbours' correlation "
        "| batch-mates again | shards open |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    lines += [
        f"| {q.name} | {q.classes_per_batch:.1f} | {q.entropy_bits:.2f} | {q.neighbour_distance:.3f} "
        f"| {q.neighbour_correlation:.3f} | {q.mates_again:.2f} | {q.shards_open:,.0f} |"
        for q in qualities
    ]
    return "\n".join(lines)


def plot(qualities: dict[str, list[Quality]], path: Path) -> None:
    """Draw what each way of sharding leaves to be wished, against the shards that are open for it."""
    figure = Figure(figsize=(10, 3.8), layout="constrained")
    panels = figure.subplots(1, 2)
    own, adopted = (qualities[name] for name in SHARDINGS)
    _panel(panels[0], own, "mates_again")
    panels[0].set(yscale="log", ylabel=f"of {BATCH_SIZE - 1} batch-mates, met again next epoch")
    _panel(panels[1], adopted, "entropy_bits")
    panels[1].set(ylabel=f"class entropy of a batch of {BATCH_SIZE}, bits")
    for panel, name in zip(panels, SHARDINGS, strict=True):
        panel.set(title=f"shards {name}", xscale="log")
        panel.set_xlabel(f"shards open, of {NUM_SAMPLES // SHARD_SIZE:,}")
        panel.grid(alpha=0.3)
    panels[1].legend(loc="lower right")
    figure.suptitle(f"{NUM_CLASSES} classes, {NUM_RANKS} ranks; numbers at ours: shuffle_window", fontsize=9)
    figure.savefig(path, dpi=80)


def _panel(panel: Axes, found: list[Quality], field: str) -> None:
    full = next(quality for quality in found if quality.family == "full shuffle")
    panel.axhline(getattr(full, field), color="grey", linestyle=":", label="full shuffle")
    for family, marker in (("ours", "o"), ("webdataset", "s"), ("Mosaic", "^")):
        points = [(q.shards_open, getattr(q, field)) for q in found if q.family == family]
        panel.plot(*zip(*points, strict=True), marker=marker, label=family)
    for quality in (quality for quality in found if quality.family == "ours"):
        panel.annotate(
            quality.name.rpartition(" ")[2],
            (quality.shards_open, getattr(quality, field)),
            xytext=(3, 5),
            textcoords="offset points",
            fontsize=7,
        )


if __name__ == "__main__":
    main()
