"""Samples that training could not decode, of all ranks: counted in MLflow, listed, fatal past a budget."""

import json
from collections.abc import Mapping, Set
from typing import Any, Protocol, TypeVar

from torch import distributed

from coatnet.worker import Worker
from data.loader import TooManyBadSamplesError, name_some
from data.store import ObjectNotFoundError, Store
from infra.tracking import Tracker

METRIC = "data/bad_samples"
ARTIFACT = "bad_samples.json"


class BadSource(Protocol):
    """`data.loader.TrainLoader` and `EvalLoader` are; what they tell grows."""

    @property
    def bad_samples(self) -> Mapping[str, str]:
        """Key -> why it cannot be decoded."""
        ...

    @property
    def lost_samples(self) -> Set[str]:
        """Those of them whose shard is gone or damaged, and may come back."""
        ...


Source = TypeVar("Source", bound=BadSource)


class BadSamples:
    """Adds up what the ranks' loaders met in a stage, also before it was stopped and resumed.

    It is reported before each checkpoint, where all ranks are in step: what a killed run met after its last
    one, the resumed run meets again, and counts once by its key.
    """

    def __init__(
        self, worker: Worker, source: BadSource, tracker: Tracker | None, max_allowed: int, *, stage: Store
    ) -> None:
        """`source` is this rank's. The stage's folder keeps the count."""
        self._worker, self._tracker = worker, tracker
        self._sources: tuple[BadSource, ...] = (source,)
        self._max_allowed = max_allowed
        self._stage = stage
        self.reasons: Mapping[str, str] = _load(stage)
        """Key -> why, of all ranks, as of the last report."""
        self._listed: Mapping[str, str] = {}

    def watch(self, evaluation: Source) -> Source:
        """Count what an evaluation meets as well, until the next one; a report must come between them."""
        self._sources = (self._sources[0], evaluation)
        return evaluation

    def is_past_budget(self) -> bool:
        """Return whether this rank alone knows of too many: then all ranks should stop and report."""
        return len(self.reasons.keys() | self._own().keys()) > self._max_allowed

    def report(self, num_steps: int) -> None:
        """Count and list them; every rank calls it. Raises `TooManyBadSamplesError`, on all ranks alike."""
        found, lost = self._gather()
        self.reasons = {**self.reasons, **found}
        if self._worker.rank == 0 and self.reasons != self._listed:
            self._keep({key: reason for key, reason in self.reasons.items() if key not in lost})
        if self._tracker is not None:
            self._tracker.log_metrics(num_steps, {METRIC: float(len(self.reasons))})
            if self.reasons != self._listed:
                self._tracker.log_json(ARTIFACT, self.reasons)
        self._listed = self.reasons
        if len(self.reasons) > self._max_allowed:
            if self._tracker is not None:
                self._tracker.flush()  # No checkpoint follows that would do it.
            raise TooManyBadSamplesError(
                f"{len(self.reasons)} samples of all ranks cannot be decoded, runtime.max_bad_samples allows "
                f"{self._max_allowed}; among them {name_some(self.reasons)}: build the dataset again "
                "or allow more"
            )

    def _keep(self, lasting: Mapping[str, str]) -> None:
        """Write down what no restored shard would mend, for a resumed run."""
        if lasting:
            self._stage.put(ARTIFACT, json.dumps(lasting).encode())

    def _own(self) -> dict[str, str]:
        return {key: reason for source in self._sources for key, reason in source.bad_samples.items()}

    def _gather(self) -> tuple[dict[str, str], set[str]]:
        own = (self._own(), {key for source in self._sources for key in source.lost_samples})
        if self._worker.world_size == 1:
            return own
        of_ranks: list[Any] = [None] * self._worker.world_size
        distributed.all_gather_object(of_ranks, own)
        reasons = dict(sorted(item for found, _ in of_ranks for item in found.items()))
        return reasons, {key for _, lost in of_ranks for key in lost}


def _load(stage: Store) -> dict[str, str]:
    try:
        return json.loads(stage.get(ARTIFACT))
    except ObjectNotFoundError:
        return {}
