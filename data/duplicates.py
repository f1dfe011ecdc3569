"""Find images that stand in a dataset twice, over the shard indexes alone."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from data.errors import InputError
from data.shard_index import Table

LeakPolicy = Literal["error", "drop_train"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitIndex:
    """A shard's index and where it belongs."""

    split: str
    shard_path: str
    table: Table


@dataclass(frozen=True, slots=True, kw_only=True)
class Removal:
    """One sample that must go."""

    split: str
    shard_path: str
    name: str
    reason: str
    """`duplicate` (the same bytes in the same split) or `leak` (in the other one)."""
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class _Place:
    split: str
    shard_path: str
    name: str
    labels: tuple[int, ...]


def find_duplicates(
    new: Sequence[SplitIndex], *, known: Sequence[SplitIndex] = (), leak_policy: LeakPolicy
) -> list[Removal]:
    """Return the samples of `new` to remove, sorted by name, so that no image bytes come twice.

    Within a split the lowest name stays; a sample that `known` has already goes. A sample whose
    twin in the other split is known goes as a leak. Of twins in both splits of `new` the train
    one goes with `drop_train`; with `error` they are an `InputError` that names up to five pairs.
    """
    repeated = _repeated_hashes([*new, *known])
    new_places, known_places = _places(new, repeated), _places(known, repeated)
    removals: list[Removal] = []
    leaks: list[tuple[_Place, _Place]] = []
    for sha256 in repeated:
        fresh: list[_Place] = []
        for place in new_places[sha256]:
            if known_places[sha256]:
                removals.append(_removal(place, known_places[sha256][0]))
            else:
                fresh.append(place)
        train = [place for place in fresh if place.split == "train"]
        evaluation = [place for place in fresh if place.split == "eval"]
        removals += [_removal(place, evaluation[0]) for place in evaluation[1:]]
        if train and evaluation:
            leaks.append((train[0], evaluation[0]))
            removals += [_removal(place, evaluation[0]) for place in train]
        else:
            removals += [_removal(place, train[0]) for place in train[1:]]
    if leaks and leak_policy == "error":
        _raise_leaks(leaks)
    return sorted(removals, key=lambda removal: removal.name)


def _repeated_hashes(indexes: Iterable[SplitIndex]) -> set[str]:
    seen: Counter[str] = Counter()
    for index in indexes:
        seen.update(index.table.column("sha256").to_pylist())
    return {sha256 for sha256, count in seen.items() if count > 1}


def _places(indexes: Iterable[SplitIndex], hashes: set[str]) -> dict[str, list[_Place]]:
    """Return where each of the hashes stands, by name."""
    places: defaultdict[str, list[_Place]] = defaultdict(list)
    for index in indexes:
        for sha256, name, labels in _columns(index.table):
            if sha256 in hashes:
                place = _Place(
                    split=index.split, shard_path=index.shard_path, name=name, labels=tuple(labels)
                )
                places[sha256].append(place)
    for found in places.values():
        found.sort(key=lambda place: place.name)
    return places


def _columns(table: Table) -> Iterator[tuple[str, str, list[int]]]:
    columns = (table.column(name).to_pylist() for name in ("sha256", "name", "labels"))
    return zip(*columns, strict=True)


def _removal(place: _Place, twin: _Place) -> Removal:
    other_label = "" if place.labels == twin.labels else f", which has another label {list(twin.labels)}"
    return Removal(
        split=place.split,
        shard_path=place.shard_path,
        name=place.name,
        reason="duplicate" if place.split == twin.split else "leak",
        detail=f"same bytes as {twin.split} image {twin.name!r}{other_label}",
    )


def _raise_leaks(leaks: list[tuple[_Place, _Place]]) -> None:
    leaks = sorted(leaks, key=lambda pair: pair[0].name)
    pairs = "; ".join(f"{train.name!r} = {evaluation.name!r}" for train, evaluation in leaks[:5])
    more = f" and {len(leaks) - 5} more" if len(leaks) > 5 else ""
    raise InputError(
        f"{len(leaks)} images stand in both train and eval: {pairs}{more}; remove one of each pair, "
        "or set leak_policy to drop_train"
    )
