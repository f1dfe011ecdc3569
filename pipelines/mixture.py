"""Snapshots mixed into a phase's training images: from the config to what the loader reads."""

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

from data.errors import InputError
from data.lease import pin
from data.mixture import WeightsFrom, check_schedule
from data.retirement import check_live
from data.snapshot import load_snapshot
from data.sources import Mixture, Source, check_classes
from data.store import Store, StoreError
from infra.store import check_store, open_store


@dataclass(frozen=True, kw_only=True)
class SourceConfig:
    """One snapshot to mix in, beside the phase's own images."""

    dataset: str
    """Where the snapshots are: s3://bucket/path, file:///path or a path. Not part of the identity."""
    snapshot: str
    """A snapshot's id; `pipelines/shard.py show` prints it."""
    weight: float
    """Its share of each global batch; the phase's own images take what is left of 1."""
    later_weights: dict[int, float] = field(default_factory=dict[int, float])
    """Other shares from later epochs on, by epoch counted from 0: {5: 0.2}."""

    def __post_init__(self) -> None:
        if not self.dataset:
            raise InputError("a source of the mixture has no dataset: say where its snapshots are")
        if self.snapshot in ("", "HEAD"):
            raise InputError(
                f"the mixture's snapshot of {self.dataset} is {self.snapshot!r}; give an id, as "
                "pipelines/shard.py show prints it: HEAD may be another one tomorrow"
            )
        if wrong := [epoch for epoch in self.later_weights if epoch < 1]:
            raise InputError(
                f"later_weights of {self.dataset} begins with epoch {wrong[0]}; it must be at least 1"
            )

    def weight_at(self, epoch: int) -> float:
        """Return the share in an epoch."""
        begun = [start for start in self.later_weights if start <= epoch]
        return self.later_weights[max(begun)] if begun else self.weight


def mixture_schedule(sources: Sequence[SourceConfig]) -> tuple[WeightsFrom, ...]:
    """Return the weights of all sources by epoch, the phase's own images first; () without a mixture.

    Raises InputError for weights that cannot be, and for a snapshot named twice.
    """
    if not sources:
        return ()
    ids = [source.snapshot for source in sources]
    if twice := [name for name in ids if ids.count(name) > 1]:
        raise InputError(f"snapshot {twice[0]} is named twice in the mixture: name it once, with one weight")
    entries: list[WeightsFrom] = []
    for epoch in sorted({0, *(epoch for source in sources for epoch in source.later_weights)}):
        weights = [source.weight_at(epoch) for source in sources]
        own = round(1.0 - sum(weights), 9)
        if own < 0:
            raise InputError(
                f"the mixture's weights from epoch {epoch} on add up to {sum(weights):g}; they must leave "
                "room for the phase's own images: at most 1"
            )
        entries.append(WeightsFrom(from_epoch=epoch, weights=(own, *weights)))
    return check_schedule(entries, 1 + len(sources))


def mixture_identity(sources: Sequence[SourceConfig]) -> Mapping[str, Any]:
    """Return what a mixture adds to a stage's identity: ids and weights, never where the data is."""
    if not sources:
        return {}
    ids = [source.snapshot for source in sources]
    return {"mixture": {"snapshots": ids, "weights": mixture_schedule(sources)}}


def open_mixture(sources: Sequence[SourceConfig], *, max_wait_s: float = 60.0) -> Mixture | None:
    """Load the snapshots that are mixed in; None without a mixture. InputError where one is not there.

    It waits for a store that is away: workers that start again call it. Commands call `check_stores` first.
    """
    if not sources:
        return None
    opened: list[Source] = []
    for source in sources:
        store = open_store(source.dataset, max_wait_s=max_wait_s)
        opened.append(Source(store=store, snapshot=load_snapshot(store, source.snapshot)))
    return Mixture(sources=tuple(opened), schedule=mixture_schedule(sources))


def check_stores(sources: Sequence[SourceConfig]) -> None:
    """Raise InputError within seconds where a snapshot's store cannot be read."""
    for source in sources:
        check_store(open_store(source.dataset), writable=False)


@contextmanager
def pin_mixture(
    sources: Sequence[SourceConfig], *, max_wait_s: float, announce: Callable[[str], None]
) -> Generator[None]:
    """Hold a lease on each snapshot that is mixed in, see `pin_or_warn`."""
    with ExitStack() as pins:
        for source in sources:
            store = open_store(source.dataset, max_wait_s=max_wait_s)
            pins.enter_context(pin_or_warn(store, source.snapshot, announce))
        yield


@contextmanager
def pin_or_warn(store: Store, snapshot_id: str, announce: Callable[[str], None]) -> Generator[None]:
    """Hold a lease on a snapshot, so that gc leaves it alone.

    Its store may be open for reading only: then a warning must do. Raises InputError for a retired one.
    """
    with ExitStack() as pins:
        try:
            pins.enter_context(pin(store, snapshot_id))
        except StoreError as error:
            check_live(store, snapshot_id)
            announce(
                f"warning: no lease on snapshot {snapshot_id} ({error}): a gc of {store.uri} would free it "
                "under this job if it is retired meanwhile"
            )
        yield


def check_mixture(
    name: str, sources: Sequence[SourceConfig], *, classes: Sequence[str], num_lanes: int
) -> None:
    """Raise InputError, before work starts, where a phase's mixture cannot be read or does not fit."""
    check_stores(sources)
    mixture = open_mixture(sources)
    if mixture is None:
        return
    for source in mixture.sources:
        check_live(source.store, source.snapshot.id)
        check_classes(source.snapshot, classes, name)
        num_samples = source.snapshot.stats["samples"]["train"]
        if num_samples < num_lanes:
            raise InputError(
                f"snapshot {source.snapshot.id} of {name}'s mixture has {num_samples} images for training, "
                f"fewer than recipe.{name}.num_lanes {num_lanes}: leave it out, or lower num_lanes"
            )
