"""Figures of a dataset card that come from lists beside the snapshot: rejects, and pairs that look alike."""

from collections.abc import Sequence
from typing import Any

from data.card_sample import SampledImage, draw
from data.html_page import Figure
from data.near_duplicate_report import NearDuplicate, read_near_duplicates
from data.shard_index import read_index
from data.snapshot import Snapshot
from data.store import Store

_MAX_REJECTS = 48
_MAX_PAIRS = 30


def reject_figures(rows: Sequence[dict[str, Any]]) -> list[Figure]:
    """Return figures of the first rejects that have a picture; every reason gets its share."""
    by_reason: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        if row["picture"] is not None:
            by_reason.setdefault(row["reason"], []).append(row)
    share = _MAX_REJECTS // max(1, len(by_reason))
    return [
        Figure(picture=row["picture"], title=row["reason"], lines=(row["key"], row["detail"]))
        for _, found in sorted(by_reason.items())
        for row in found[:share]
    ]


def near_pair_figures(dataset: Store, snapshot: Snapshot) -> list[Figure]:
    """Return the first pairs that look alike, side by side, leaks first."""
    assert snapshot.near_duplicates_path is not None
    pairs = read_near_duplicates(dataset, snapshot.near_duplicates_path, max_rows=_MAX_PAIRS)
    shards = {shard.path: shard for found in snapshot.splits.values() for shard in found}
    places = [place for pair in pairs for place in _places(pair)]
    images = {
        (path, row): SampledImage(split="", shard=shards[path], row=values)
        for path in sorted({path for path, _ in places})
        for row, values in _rows(dataset, shards[path], [row for other, row in places if other == path])
    }
    pictures = draw(dataset, [images[place] for place in places])
    return [
        Figure(
            picture=one,
            others=(other,),
            title=f"{pair.distance} of 64 bits differ{', train and eval' if pair.is_leak else ''}",
            lines=(f"{pair.twin_split}: {pair.twin_name}", f"{pair.split}: {pair.name}"),
        )
        for pair, one, other in zip(pairs, pictures[::2], pictures[1::2], strict=True)
        if one is not None and other is not None
    ]


def _places(pair: NearDuplicate) -> tuple[tuple[str, int], tuple[str, int]]:
    return (pair.twin_shard, pair.twin_row), (pair.shard, pair.row)


def _rows(dataset: Store, shard: Any, rows: Sequence[int]) -> list[tuple[int, dict[str, Any]]]:
    wanted = sorted(set(rows))
    return list(zip(wanted, read_index(dataset, shard).take(wanted).to_pylist(), strict=True))
