"""The background thread between training and MLflow: bounded, retrying, and honest about what it lost."""

import io
import logging
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from mlflow import MlflowClient
from mlflow.entities import Metric
from mlflow.exceptions import MlflowException

from infra.tracking_check import ask_server, brief, without_login

_MAX_METRICS_PER_BATCH = 1000  # MLflow's limit
_MAX_QUEUED_ARTIFACT_BYTES = 256 << 20
# Points are gathered this long, so that a fast loop costs the server one request a second.
_GATHER_S = 1.0
_FIRST_WAIT_S = 0.5
_LONGEST_WAIT_S = 30.0
# A refusal by content is final; everything else (no connection, 5xx, 429, 401 after a rotated password)
# may be better later.
_FINAL_STATUS = frozenset({400, 404})

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class _MetricsItem:
    step: int
    timestamp_ms: int
    values: Mapping[str, float]

    @property
    def num_points(self) -> int:
        return len(self.values)


@dataclass(frozen=True, slots=True, kw_only=True)
class _ArtifactItem:
    path: str
    content: bytes


_Item = _MetricsItem | _ArtifactItem


class TrackingQueue:
    """Sends metrics and artifacts in order. When it is full, what comes is dropped and counted."""

    def __init__(self, *, client: MlflowClient, run_id: str, capacity: int) -> None:
        self._client = client
        self._run_id = run_id
        self._capacity = capacity
        self._items: deque[_Item] = deque()
        self._artifact_bytes = 0
        self._num_in_flight = 0
        self._num_flushing = 0
        self._first_new_step: dict[str, int] = {}
        self._changed = threading.Condition()
        self._is_closed = False
        self._give_up = threading.Event()
        self.num_dropped = 0
        # A daemon: a server that never comes back must not keep the process alive.
        self._thread = threading.Thread(target=self._run, name="mlflow-tracking", daemon=True)
        self._thread.start()

    def put_metrics(self, step: int, timestamp_ms: int, values: Mapping[str, float]) -> None:
        """Append one step's metrics, or drop and count them."""
        item = _MetricsItem(step=step, timestamp_ms=timestamp_ms, values=values)
        with self._changed:
            if self._is_closed or len(self._items) >= self._capacity:
                self._count_drop(item.num_points, "the queue is full or closed")
                return
            self._items.append(item)
            self._changed.notify_all()

    def put_artifact(self, path: str, content: bytes) -> None:
        """Append an artifact, or drop and count it."""
        with self._changed:
            fits = self._artifact_bytes + len(content) <= _MAX_QUEUED_ARTIFACT_BYTES or not self._items
            if self._is_closed or len(self._items) >= self._capacity or not fits:
                self._count_drop(1, f"the queue is full or closed ({path})")
                return
            self._artifact_bytes += len(content)
            self._items.append(_ArtifactItem(path=path, content=content))
            self._changed.notify_all()

    def flush(self, timeout_s: float) -> bool:
        """Wait until nothing is queued or in flight; False if the time was not enough."""
        with self._changed:
            self._num_flushing += 1
            self._changed.notify_all()
            try:
                return self._changed.wait_for(lambda: not self._items and not self._num_in_flight, timeout_s)
            finally:
                self._num_flushing -= 1

    def close(self, timeout_s: float) -> bool:
        """Flush, then stop; what is left by then is dropped and counted. True if nothing was ever lost."""
        is_flushed = self.flush(timeout_s)
        with self._changed:
            if not self._is_closed:
                left = sum(item.num_points if isinstance(item, _MetricsItem) else 1 for item in self._items)
                left += self._num_in_flight
                if left:
                    self._count_drop(left, "MLflow was away until the end")
            self._is_closed = True
            self._items.clear()
            self._give_up.set()
            self._changed.notify_all()
        return is_flushed and self.num_dropped == 0

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: bool(self._items) or self._is_closed)
                self._changed.wait_for(lambda: bool(self._num_flushing) or self._is_closed, _GATHER_S)
                if self._is_closed:
                    return
                metrics, artifact = self._take()
                num_points = len(metrics) + (artifact is not None)
                self._num_in_flight = num_points
            if artifact is not None:
                self._send(lambda item=artifact: self._send_artifact(item), num_points)
            else:
                self._send(lambda batch=metrics: self._send_metrics(batch), num_points)
            with self._changed:
                self._num_in_flight = 0
                if artifact is not None:
                    self._artifact_bytes -= len(artifact.content)
                self._changed.notify_all()

    def _take(self) -> tuple[list[Metric], _ArtifactItem | None]:
        """Return the next artifact, or as many metric points as fit in a request."""
        first = self._items[0]
        if isinstance(first, _ArtifactItem):
            self._items.popleft()
            return [], first
        metrics: list[Metric] = []
        while self._items:
            item = self._items[0]
            if isinstance(item, _ArtifactItem):
                break
            if metrics and len(metrics) + item.num_points > _MAX_METRICS_PER_BATCH:
                break
            self._items.popleft()
            metrics += [
                Metric(key, value, item.timestamp_ms, item.step) for key, value in item.values.items()
            ]
        return metrics, None

    def _send(self, action: Callable[[], None], num_points: int) -> None:
        """Run `action` until it succeeds, is refused for good, or the queue gives up."""
        wait_s, started = _FIRST_WAIT_S, time.monotonic()
        while not self._give_up.is_set():
            try:
                self._check_server()
                action()
            except Exception as error:
                if isinstance(error, MlflowException) and error.get_http_status_code() in _FINAL_STATUS:
                    with self._changed:
                        self._count_drop(num_points, f"MLflow refuses them: {brief(error)}")
                    return
                if wait_s == _FIRST_WAIT_S:
                    _logger.warning("MLflow does not take the metrics now, trying on: %s", brief(error))
                self._give_up.wait(wait_s * random.uniform(0.5, 1.0))
                wait_s = min(2 * wait_s, _LONGEST_WAIT_S)
            else:
                if wait_s > _FIRST_WAIT_S:
                    _logger.info("MLflow takes metrics again after %.0f s", time.monotonic() - started)
                return

    def _check_server(self) -> None:
        # The client retries for minutes inside a call; a quick question first keeps the retries ours.
        status = ask_server(self._client.tracking_uri).status_code
        if status != 200:
            raise ConnectionError(f"{without_login(self._client.tracking_uri)} answers {status}")

    def _send_metrics(self, metrics: list[Metric]) -> None:
        new = [metric for metric in metrics if metric.step >= self._find_first_new_step(metric.key)]
        for start in range(0, len(new), _MAX_METRICS_PER_BATCH):
            # A retry after a lost answer is harmless: the server ignores an equal point.
            batch = new[start : start + _MAX_METRICS_PER_BATCH]
            self._client.log_batch(self._run_id, metrics=batch, synchronous=True)

    def _send_artifact(self, item: _ArtifactItem) -> None:
        self._client.log_stream(self._run_id, io.BytesIO(item.content), item.path)

    def _find_first_new_step(self, key: str) -> int:
        if key not in self._first_new_step:
            last = last_logged_step(self._client, self._run_id, key)
            # Without any point a negative step may be new as well.
            self._first_new_step[key] = -(2**62) if last is None else last + 1
        return self._first_new_step[key]

    def _count_drop(self, num_points: int, reason: str) -> None:
        before, self.num_dropped = self.num_dropped, self.num_dropped + num_points
        # Said at the first loss and at every thousandth, so that the log stays readable.
        if before == 0 or before // 1000 != self.num_dropped // 1000:
            _logger.warning("%d points or artifacts for MLflow lost so far: %s", self.num_dropped, reason)


def last_logged_step(client: MlflowClient, run_id: str, metric: str) -> int | None:
    """Return the highest step of a metric on the server, or None."""
    return max((point.step for point in client.get_metric_history(run_id, metric)), default=None)
