"""Runs on an MLflow server: find or create them, and write to them without ever stopping training.

Only `MlflowClient` is used: the fluent API keeps its run in thread-local state, and the training loop is
not in the main thread.
"""

import json
import logging
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, Param, Run, RunTag
from mlflow.exceptions import MlflowException

from data.errors import InputError
from infra.tracking_check import brief, check_tracking
from infra.tracking_queue import TrackingQueue, last_logged_step

__all__ = ["RunRef", "Tracker", "check_tracking", "find_or_create_run", "last_logged_step"]

# MLflow's own limits (mlflow.utils.validation, 3.17).
_MAX_PARAMS_PER_BATCH = 100
_MAX_PARAM_CHARS = 6000
_MAX_KEY_CHARS = 250
_MAX_DIGEST_CHARS = 36
_NOT_IN_KEYS = re.compile(r"[^\w\-. :/]", re.ASCII)

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRef:
    """Which run to write to; picklable, so that rank 0 of another process can open its own `Tracker`."""

    tracking_uri: str
    run_id: str


def find_or_create_run(
    *,
    tracking_uri: str,
    experiment: str,
    identity: Mapping[str, str],
    name: str,
    parent_run_id: str | None = None,
    tags: Mapping[str, str] | None = None,
) -> RunRef:
    """Return the run whose tags hold `identity`, reopened if it had ended, or a new one.

    So a resumed job goes on in the run it began. Of several such runs the oldest is taken.

    Raises:
        InputError: the experiment was deleted, or `identity` is empty.
    """
    if not identity:
        raise InputError(f"run {name!r} has no identity: give at least one tag that names its job")
    client = MlflowClient(tracking_uri=tracking_uri)
    experiment_id = _experiment_id(client, experiment)
    # Neither quote may end the filter's string.
    clauses = [f"tags.`{key}` = '{value}'" for key, value in identity.items()]
    if any("'" in value or "`" in key for key, value in identity.items()):
        raise InputError(f"run identity {dict(identity)} holds a quote: use keys without one")
    found = client.search_runs(
        [experiment_id], " and ".join(clauses), max_results=1, order_by=["attributes.start_time ASC"]
    )
    if found:
        run_id = found[0].info.run_id
        if found[0].info.status != "RUNNING":
            client.update_run(run_id, status="RUNNING")
        return RunRef(tracking_uri=tracking_uri, run_id=run_id)
    # mlflow.parentRunId is what nests a run in the UI.
    parent = {"mlflow.parentRunId": parent_run_id} if parent_run_id else {}
    run = client.create_run(experiment_id, run_name=name, tags={**(tags or {}), **identity, **parent})
    return RunRef(tracking_uri=tracking_uri, run_id=run.info.run_id)


class Tracker:
    """Writes to one run. Metrics and artifacts go through a background thread; the rest is immediate.

    Metric points at or before the last step that the run already had when this tracker first used the
    metric are left out, so that a resumed run repeats no step. Call `flush` before a checkpoint is written:
    then every step up to the checkpoint is on the server.
    """

    def __init__(self, ref: RunRef, *, capacity: int = 10_000) -> None:
        self.ref = ref
        self._client = MlflowClient(tracking_uri=ref.tracking_uri)
        self._queue = TrackingQueue(client=self._client, run_id=ref.run_id, capacity=capacity)

    @property
    def num_dropped(self) -> int:
        """Return how many metric points and artifacts were lost, because MLflow was down or refused them."""
        return self._queue.num_dropped

    def log_metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Queue one step's metrics; never blocks on the server and never raises for it."""
        timestamp_ms = time.time_ns() // 1_000_000
        clean = {clean_key(key): float(value) for key, value in values.items()}
        self._queue.put_metrics(step, timestamp_ms, clean)

    def log_bytes(self, path: str, content: bytes) -> None:
        """Queue an artifact; `path` is relative to the run's artifacts."""
        self._queue.put_artifact(path, content)

    def log_text(self, path: str, text: str) -> None:
        """Queue a text as an artifact, UTF-8."""
        self.log_bytes(path, text.encode())

    def log_json(self, path: str, value: Any) -> None:
        """Queue a value as a JSON artifact."""
        self.log_text(path, json.dumps(value, indent=1))

    def log_params(self, values: Mapping[str, Any]) -> None:
        """Log a nested mapping as `a.b.c` parameters; what the run already has stays as it is.

        MLflow allows a parameter one value. One that differs now (a resumed job may change its runtime) is
        kept as the tag `changed.KEY`.
        """
        flat = flatten_params(values)
        run = self._client.get_run(self.ref.run_id)
        there = run.data.params
        new = [Param(key, value) for key, value in flat.items() if key not in there]
        for start in range(0, len(new), _MAX_PARAMS_PER_BATCH):
            batch = new[start : start + _MAX_PARAMS_PER_BATCH]
            self._client.log_batch(self.ref.run_id, params=batch, synchronous=True)
        changed = {key: value for key, value in flat.items() if key in there and there[key] != value}
        self.set_tags({f"changed.{key}"[:_MAX_KEY_CHARS]: value for key, value in changed.items()})

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Set tags at once."""
        items = [RunTag(key, value) for key, value in tags.items()]
        for start in range(0, len(items), _MAX_PARAMS_PER_BATCH):
            batch = items[start : start + _MAX_PARAMS_PER_BATCH]
            self._client.log_batch(self.ref.run_id, tags=batch, synchronous=True)

    def log_dataset(self, *, snapshot_id: str, name: str, uri: str, context: str) -> None:
        """Log a dataset snapshot as the run's input; repeating it changes nothing.

        Args:
            snapshot_id: the digest shown in the UI, at most 36 characters.
            name: the dataset's name.
            uri: where it is.
            context: what the run did with it, e.g. `training` or `evaluation`.
        """
        if len(snapshot_id) > _MAX_DIGEST_CHARS:
            raise InputError(
                f"dataset digest {snapshot_id!r} has {len(snapshot_id)} characters: "
                f"MLflow allows {_MAX_DIGEST_CHARS}"
            )
        dataset = Dataset(name, snapshot_id, "coatnet_snapshot", json.dumps({"uri": uri}))
        tags = [InputTag("mlflow.data.context", context)]
        self._client.log_inputs(self.ref.run_id, [DatasetInput(dataset, tags)])

    def last_logged_step(self, metric: str) -> int | None:
        """Return the highest step of a metric on the server, or None."""
        return last_logged_step(self._client, self.ref.run_id, clean_key(metric))

    def flush(self, timeout_s: float = 30.0) -> bool:
        """Wait until all that is queued is on the server; False if the time was not enough."""
        return self._queue.flush(timeout_s)

    def finish(
        self, status: Literal["FINISHED", "FAILED", "KILLED"] = "FINISHED", *, timeout_s: float = 60.0
    ) -> bool:
        """Flush, stop the thread and end the run; return whether everything arrived.

        It does not raise when the server is away: training has ended, and its results are in the store.
        """
        arrived = self.close(timeout_s=timeout_s)
        try:
            if self.num_dropped:
                self.set_tags({"tracking.dropped": str(self.num_dropped)})
            self._client.set_terminated(self.ref.run_id, status=status)
        except Exception as error:
            _logger.warning("MLflow run %s could not be ended: %s", self.ref.run_id, brief(error))
            return False
        return arrived

    def close(self, *, timeout_s: float = 30.0) -> bool:
        """Flush and stop the thread; the run stays open for another process."""
        return self._queue.close(timeout_s)

    def run(self) -> Run:
        """Return the run as the server has it."""
        return self._client.get_run(self.ref.run_id)


def flatten_params(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Return `{"a.b": "1"}` for `{"a": {"b": 1}}`; long values are cut to MLflow's limit and end in `...`."""
    flat: dict[str, str] = {}
    for key, value in values.items():
        path = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            flat |= flatten_params(value, f"{path}.")
        else:
            text = str(value)
            is_long = len(text) > _MAX_PARAM_CHARS
            flat[clean_key(path)] = text[: _MAX_PARAM_CHARS - 3] + "..." if is_long else text
    return flat


def clean_key(key: str) -> str:
    """Return a metric's or parameter's name with what MLflow refuses replaced by `_`."""
    return _NOT_IN_KEYS.sub("_", key)[:_MAX_KEY_CHARS]


def _experiment_id(client: MlflowClient, name: str) -> str:
    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            return client.create_experiment(name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
            found = client.get_experiment_by_name(name)  # another job was faster
    if found is None or found.lifecycle_stage != "active":
        raise InputError(f"MLflow experiment {name!r} is deleted: restore it or name another")
    return found.experiment_id
