"""The worker's end of `infra.ray_runtime`."""

import contextlib
import logging
import os
import threading
from collections import deque
from dataclasses import asdict
from types import TracebackType
from typing import Any

import ray
import ray.train
import ray.train.torch
import torch
from ray.exceptions import ActorUnavailableError, RayError

from coatnet.progress import Progress
from infra.ray_channel import Failure

_EXCHANGE_INTERVAL_S = 0.25


class RayWorker:
    """A `coatnet.worker.Worker` in a Ray Train worker.

    A thread carries progress to the driver and commands back, so that neither costs the training
    thread anything. A context manager.
    """

    def __init__(self, channel: Any, num_threads: int) -> None:
        context = ray.train.get_context()
        self.rank: int = context.get_world_rank()
        self.world_size: int = context.get_world_size()
        self.local_rank: int = context.get_local_rank()
        self.device: torch.device = ray.train.torch.get_device()
        self._channel = channel
        self._outbox: deque[Progress] = deque()
        self._stop = threading.Event()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._exchange_until_done, name="channel", daemon=True)
        torch.set_num_threads(num_threads)  # of this thread, the one that trains
        # Ray Train sets the root logger to INFO, and boto3 then tells where its credentials are from.
        logging.getLogger().setLevel(logging.WARNING)

    def report(self, progress: Progress) -> None:
        """Queue rank 0's progress for the driver."""
        if self.rank == 0:
            self._outbox.append(progress)

    def should_stop(self) -> bool:
        """Return whether the driver asked for a stop."""
        return self._stop.is_set()

    def fail(self, failure: Failure) -> None:
        """Tell the driver why this worker ends. A lost channel must not hide the error itself."""
        with contextlib.suppress(RayError):
            ray.get(self._channel.fail.remote(failure))

    def __enter__(self) -> "RayWorker":
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._done.set()
        self._thread.join()

    def _exchange_until_done(self) -> None:
        while not self._done.wait(_EXCHANGE_INTERVAL_S):
            self._exchange()
        self._exchange()

    def _exchange(self) -> None:
        progress = [asdict(self._outbox.popleft()) for _ in range(len(self._outbox))]
        try:
            command = str(ray.get(self._channel.exchange.remote(progress)))
        except ActorUnavailableError:  # the network, for a moment: asked again at the next turn
            return
        except RayError:  # the driver is gone, and Ray will end this process: save what there is
            command = "stop"
        if command != "go":
            self._stop.set()
        if command == "abort":
            os._exit(1)
