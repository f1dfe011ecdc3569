"""Samples that training could not decode, of all ranks: counted in MLflow, listed, fatal past a budget."""

import json
from collections.abc import Mapping
from typing import Any

from torch import distributed

from coatnet.worker import Worker
from data.loader import TooManyBadSamplesError
from data.store import ObjectNotFoundError, Store
from infra.tracking import Tracker

METRIC = "data/bad_samples"
ARTIFACT = "bad_samples.json"


class BadSamples:
    """Adds up what the ranks' loaders met in a stage, also before it was stopped and resumed.

    What an epoch met before a kill, and did not report, is met again in the next one if there is one.
    """

    def __init__(
        self,
        worker: Worker,
        own: Mapping[str, str],
        tracker: Tracker | None,
        max_allowed: int,
        *,
        stage: Store,
    ) -> None:
        """`own` is the loader's mapping of key -> why, which grows. The stage's folder keeps the count."""
        self._worker, self._own, self._tracker = worker, own, tracker
        self._max_allowed = max_allowed
        self._stage = stage
        self.reasons: Mapping[str, str] = _load(stage)
        """Key -> why, of all ranks, as of the last report."""

    def report(self, num_steps: int) -> None:
        """Count and list them; every rank calls it. Raises `TooManyBadSamplesError`, on all ranks alike."""
        known = self.reasons
        self.reasons = {**known, **self._gather()}
        if self._tracker is not None:
            self._tracker.log_metrics(num_steps, {METRIC: float(len(self.reasons))})
            if self.reasons:
                self._tracker.log_json(ARTIFACT, self.reasons)
        if len(self.reasons) > self._max_allowed:
            key, reason = next(reversed(self.reasons.items()))
            raise TooManyBadSamplesError(
                f"{len(self.reasons)} samples of all ranks cannot be decoded, runtime.max_bad_samples allows "
                f"{self._max_allowed}; one is {key!r} ({reason}): build the dataset again or allow more"
            )
        # Only now: once a lost shard is back, a resumed run must not fail for what it had counted.
        if self._worker.rank == 0 and self.reasons != known:
            self._stage.put(ARTIFACT, json.dumps(self.reasons).encode())

    def _gather(self) -> dict[str, str]:
        own = dict(self._own)
        if self._worker.world_size == 1:
            return own
        of_ranks: list[Any] = [None] * self._worker.world_size
        distributed.all_gather_object(of_ranks, own)
        return dict(sorted(item for rank in of_ranks for item in rank.items()))


def _load(stage: Store) -> dict[str, str]:
    try:
        return json.loads(stage.get(ARTIFACT))
    except ObjectNotFoundError:
        return {}
