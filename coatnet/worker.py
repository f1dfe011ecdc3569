"""The training loop's only view of what started it: one process, torchrun or a cluster."""

import os
import threading
from collections.abc import Callable
from typing import Protocol

import torch
from torch import distributed

from coatnet.progress import Progress, format_progress

COLLECTIVE_TIMEOUT_S = 600
"""So long ranks wait for one another; what one of them waits for must take less."""


class Worker(Protocol):
    """One of `world_size` processes that train together.

    Where world_size > 1, torch.distributed's default process group is initialised.
    """

    @property
    def rank(self) -> int:
        """0 to world_size - 1; rank 0 logs and saves."""
        ...

    @property
    def world_size(self) -> int:
        """Number of processes."""
        ...

    @property
    def local_rank(self) -> int:
        """Rank among the processes of this node."""
        ...

    @property
    def device(self) -> torch.device:
        """Where this process computes."""
        ...

    def report(self, progress: Progress) -> None:
        """Show progress. Cheap, never raises; ranks other than 0 are ignored."""
        ...

    def should_stop(self) -> bool:
        """Tell whether a stop was asked for. Asked on every step; ranks may differ for a while."""
        ...


class LocalWorker:
    """A worker that is a plain process: alone, or one of torchrun's."""

    def __init__(
        self,
        *,
        rank: int = 0,
        world_size: int = 1,
        local_rank: int = 0,
        device: torch.device | None = None,
        show: Callable[[str], None] = print,
    ) -> None:
        self.rank = rank
        self.world_size = world_size
        self.local_rank = local_rank
        self.device = device or default_device(local_rank)
        self._show = show
        self._stop = threading.Event()

    def report(self, progress: Progress) -> None:
        """Print a line on rank 0."""
        if self.rank == 0:
            self._show(format_progress(progress))

    def should_stop(self) -> bool:
        """Return whether `stop` was called."""
        return self._stop.is_set()

    def stop(self) -> None:
        """Ask for a stop after the current step; safe to call from a signal handler."""
        self._stop.set()


def default_device(local_rank: int) -> torch.device:
    """Return this process's GPU, or the CPU where there is none."""
    return torch.device("cuda", local_rank) if torch.cuda.is_available() else torch.device("cpu")


def start_torchrun_worker() -> LocalWorker:
    """Join the process group that torchrun's variables describe; without them, be alone.

    For entry points only: it reads RANK, WORLD_SIZE and LOCAL_RANK, and torch reads MASTER_ADDR
    and MASTER_PORT.
    """
    worker = LocalWorker(
        rank=int(os.environ.get("RANK", "0")),
        world_size=int(os.environ.get("WORLD_SIZE", "1")),
        local_rank=int(os.environ.get("LOCAL_RANK", "0")),
    )
    if worker.world_size > 1:
        if worker.device.type == "cuda":
            torch.cuda.set_device(worker.device)
        distributed.init_process_group("nccl" if worker.device.type == "cuda" else "gloo")
    return worker
