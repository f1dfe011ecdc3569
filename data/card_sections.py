"""The parts of a dataset card, each a piece of HTML; "" where there is nothing to say."""

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from data.card_charts import by_power_of_two, size_bars, two_counts
from data.card_sample import CardSample, draw, images_of_classes
from data.card_twins import near_pair_figures, reject_figures
from data.html_page import Figure, bar_chart, escape, figures, table, tiles
from data.quarantine import read_quarantine
from data.snapshot import Snapshot
from data.split import SPLITS
from data.store import Store

_MAX_CLASSES = 40
_MAX_PICTURES = 320
_MAX_EACH = 9
_MAX_ROWS = 30
_SMALL_PX = 96
_KEY = '<p class="dim"><i class="key first"></i>train<i class="key second"></i>eval</p>'
_LINKS = (
    *(("classes", "Images"), ("class-sizes", "Class sizes"), ("image-sizes", "Image sizes")),
    *(("left-out", "Left out"), ("duplicates", "Duplicates"), ("shards", "Shards")),
    *(("parent", "Parent"), ("provenance", "Provenance")),
)


def head(snapshot: Snapshot) -> str:
    """The title, links to the parts, and the main numbers."""
    samples, sizes = snapshot.stats["samples"], snapshot.stats["size_bytes"]
    near = snapshot.stats.get("near_duplicates", {})
    rejects = sum(snapshot.stats["rejects"].values())
    leaks = near.get("leaks", 0)
    numbers = [
        *((f"{split} images", f"{samples[split]:,}", False) for split in _splits(snapshot)),
        ("classes", f"{len(snapshot.classes):,}", False),
        ("in shards", size_text(sum(sizes.values())), False),
        ("left out", f"{rejects:,}", rejects > 0),
        ("near-duplicate pairs", f"{near.get('pairs', 0):,}", False),
        ("near leaks, train and eval", f"{leaks:,}", leaks > 0),
    ]
    links = "".join(f'<a href="#{name}">{escape(title)}</a>' for name, title in _LINKS)
    parent = f"appended to {snapshot.parent}" if snapshot.parent else "the first of its dataset"
    return (
        f'<h1>Dataset card</h1><p class="dim">Snapshot <code>{escape(snapshot.id)}</code>, '
        f"{escape(parent)}.</p><nav>{links}</nav>{tiles(numbers)}"
    )


def class_pictures(dataset: Store, snapshot: Snapshot, sample: CardSample) -> str:
    """A row of pictures for each class; the largest and the smallest where there are many."""
    counts = _class_counts(snapshot)
    labels = _shown_classes(counts)
    each = max(4, min(_MAX_EACH, _MAX_PICTURES // max(1, len(labels))))
    found = images_of_classes(sample, labels, each)
    flat = [image for label in labels for image in found.get(label, [])]
    pictures = iter(zip(flat, draw(dataset, flat), strict=True))
    rows: list[str] = []
    for label in labels:
        name, (train, evaluation) = snapshot.classes[label], counts[label]
        shown = [
            Figure(
                picture=picture,
                title=f"{image.row['width']}x{image.row['height']}",
                lines=(image.row["name"],),
                is_small=max(image.row["width"], image.row["height"]) < _SMALL_PX,
            )
            for image, picture in (next(pictures) for _ in found.get(label, []))
            if picture is not None
        ]
        grid = figures(shown) if shown else '<p class="dim">None in the shards that were looked at.</p>'
        rows.append(f"<h3>{escape(name)} <small>{train:,} train, {evaluation:,} eval</small></h3>{grid}")
    return _section("classes", "Images", _how_many(labels, counts, "pictures"), *rows)


def class_sizes(snapshot: Snapshot) -> str:
    """How many images each class has."""
    counts = _class_counts(snapshot)
    labels = _shown_classes(counts)
    largest_first = sorted(labels, key=lambda label: (-sum(counts[label]), label))
    bars = [(snapshot.classes[label], counts[label]) for label in largest_first]
    charts = [bar_chart("Images of each class", bars)]
    if len(labels) < len(counts):
        totals = two_counts((by_power_of_two(sum(pair), ""), "train", 1) for pair in counts)
        charts.append(bar_chart("Classes by their number of images", totals))
    return _section("class-sizes", "Class sizes", _how_many(labels, counts, "bars"), _KEY, _charts(charts))


def image_sizes(sample: CardSample) -> str:
    """Sizes, shapes and kinds of the images that were looked at."""
    drawn = [bar_chart(title, bars) for title, bars in size_bars(sample)]
    note = (
        f"From {sample.num_images:,} images in {len(sample.tables):,} of {sample.num_shards:,} shards, "
        "which are shuffled."
    )
    return _section("image-sizes", "Image sizes", note, _KEY, _charts(drawn))


def left_out(dataset: Store, snapshot: Snapshot) -> str:
    """The rejects: how many for which reason, and what they look like."""
    reasons = snapshot.stats["rejects"]
    if not reasons or snapshot.quarantine_path is None:
        return _section("left-out", "Left out", "Nothing: every image of the listing is in the snapshot.")
    rows = [
        row
        for row in read_quarantine(dataset, snapshot.quarantine_path, max_rows=50_000)
        if row["reason"] not in _TWINS
    ]
    shown = reject_figures(rows)
    rest = [row for row in rows if row["picture"] is None][:_MAX_ROWS]
    parts = [table(("reason", "images"), _largest_first(reasons)), "<p></p>", figures(shown, "whole")]
    if rest:
        names = [(row["reason"], row["key"], row["detail"]) for row in rest]
        parts += ["<h3>Without a picture</h3>", table(("reason", "image", "detail"), names)]
    note = f"All are in {snapshot.quarantine_path}, with their reasons; this shows the first."
    return _section("left-out", "Left out", note, *parts)


_TWINS = ("duplicate", "leak", "near_duplicate", "near_leak")


def duplicates(dataset: Store, snapshot: Snapshot) -> str:
    """What stood in the corpus twice, and what looks like something else."""
    near = snapshot.stats.get("near_duplicates", {})
    exact = {reason: snapshot.stats["rejects"].get(reason, 0) for reason in _TWINS}
    parts: list[str] = []
    if snapshot.quarantine_path is not None and any(exact.values()):
        rows = read_quarantine(dataset, snapshot.quarantine_path, max_rows=50_000)
        twins = [row for row in rows if row["reason"] in _TWINS]
        parts += ["<h3>Dropped</h3>", table(("dropped as", "images"), _largest_first(exact)), "<p></p>"]
        parts.append(figures(reject_figures(twins), "whole"))
        names = [(row["reason"], row["key"], row["detail"]) for row in twins if row["picture"] is None]
        parts.append(table(("reason", "image", "detail"), names[:_MAX_ROWS]) if names else "")
    if snapshot.near_duplicates_path is not None:
        shown = near_pair_figures(dataset, snapshot)
        parts += ["<h3>Alike, both in the snapshot</h3>", figures(shown, "wide")]
    note = (
        f"{exact['duplicate']:,} exact duplicates and {exact['leak']:,} exact leaks were dropped. "
        f"{near.get('pairs', 0):,} pairs look alike, {near.get('leaks', 0):,} of them across train and eval."
    )
    return _section("duplicates", "Duplicates", note, *parts)


def shard_sizes(snapshot: Snapshot) -> str:
    """How large the shards are."""
    shards = [(split, shard) for split, found in snapshot.splits.items() for shard in found]
    charts = [
        bar_chart(
            "Shards by size",
            two_counts((by_power_of_two(shard.size_bytes, "B"), split, 1) for split, shard in shards),
        ),
        bar_chart(
            "Shards by number of images",
            two_counts((by_power_of_two(shard.num_samples, ""), split, 1) for split, shard in shards),
        ),
    ]
    note = f"{len(shards):,} shards, {size_text(sum(shard.size_bytes for _, shard in shards))}."
    return _section("shards", "Shards", note, _KEY, _charts(charts))


def parent_diff(snapshot: Snapshot, parent: Snapshot | None) -> str:
    """What the snapshot has that its parent has not, by the numbers of both."""
    if parent is None:
        return _section("parent", "Parent", "This is the first snapshot of the dataset.")
    rows: list[tuple[str, ...]] = []
    splits = _splits(snapshot)
    for name in snapshot.classes:
        more = [snapshot.stats[split][name] - parent.stats[split].get(name, 0) for split in splits]
        if any(more):
            rows.append((name, "new" if name not in parent.classes else "", *(f"{n:+,}" for n in more)))
    rows.sort(key=lambda row: -sum(int(cell.replace(",", "")) for cell in row[2:]))
    shared = sum(len(set(snapshot.splits[split]) & set(parent.splits.get(split, ()))) for split in splits)
    note = f"Parent {parent.id}; {shared:,} shards are its own, {len(rows):,} classes have more images."
    grid = table(("class", "", *splits), rows[:_MAX_ROWS])
    more = f'<p class="dim">and {len(rows) - _MAX_ROWS:,} more classes</p>' if len(rows) > _MAX_ROWS else ""
    return _section("parent", "Parent", note, grid, more)


def provenance(snapshot: Snapshot, source: Mapping[str, Any]) -> str:
    """Where the images come from and what made the snapshot of them."""
    rows = [
        ("corpus", source.get("corpus", "not kept")),
        *sorted(source.get("versions", {}).items()),
        *(("config " + key, json.dumps(value)) for key, value in sorted(source.get("config", {}).items())),
        ("listing", ", ".join(snapshot.listing_paths)),
        ("listing digest", snapshot.listing_digest),
        ("content sha256", snapshot.content_sha256),
    ]
    return _section("provenance", "Provenance", "", table(("", ""), rows))


def size_text(size_bytes: float) -> str:
    """Return a size in a unit that fits: `3.4 MB`."""
    units = ("B", "kB", "MB", "GB", "TB")
    step = min(len(units) - 1, max(0, (len(str(round(size_bytes))) - 1) // 3))
    return f"{size_bytes / 1000**step:,.{min(step, 1)}f} {units[step]}"


def _section(name: str, title: str, note: str, *parts: str) -> str:
    text = f"<p>{escape(note)}</p>" if note else ""
    return f'<section id="{name}"><h2>{escape(title)}</h2>{text}{"".join(parts)}</section>'


def _charts(charts: Iterable[str]) -> str:
    return f'<div class="charts">{"".join(charts)}</div>'


def _splits(snapshot: Snapshot) -> list[str]:
    """Return the splits, train first: a snapshot that was read has its mappings in another order."""
    return [split for split in SPLITS if split in snapshot.splits]


def _class_counts(snapshot: Snapshot) -> list[tuple[int, int]]:
    """Return (train, eval) images of each class, by label."""
    train, evaluation = (snapshot.stats.get(split, {}) for split in ("train", "eval"))
    return [(train.get(name, 0), evaluation.get(name, 0)) for name in snapshot.classes]


def _shown_classes(counts: list[tuple[int, int]]) -> list[int]:
    """Return all labels, or the largest and the smallest halves of a page: there trouble is."""
    if len(counts) <= _MAX_CLASSES:
        return list(range(len(counts)))
    by_size = sorted(range(len(counts)), key=lambda label: (-sum(counts[label]), label))
    return by_size[: _MAX_CLASSES // 2] + by_size[-_MAX_CLASSES // 2 :]


def _how_many(labels: list[int], counts: list[tuple[int, int]], what: str) -> str:
    if len(labels) == len(counts):
        return ""
    return f"{what.capitalize()} of the {len(labels) // 2} largest and smallest of {len(counts):,} classes."


def _largest_first(counts: Mapping[str, int]) -> list[tuple[str, str]]:
    return [(name, f"{count:,}") for name, count in Counter(counts).most_common() if count]
