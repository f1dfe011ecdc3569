"""Checkpoints in a store: everything a run needs to go on as if it had not been stopped.

One object holds one checkpoint: safetensors, with the clock as JSON in its metadata. Its name is
`step-{step:09d}-{sha256}.safetensors`; the hash is of the whole object, so that what is loaded is
what was saved, and nothing is ever unpickled.
"""

import hashlib
import json
import logging
import re
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from data.errors import InputError
from data.store import ObjectNotFoundError, Store, StoreError

_FORMAT = 2
_NAME = re.compile(r"step-(\d{9})-([0-9a-f]{64})\.safetensors")
_RETRY_WAITS_S = (1.0, 4.0)
"""Between attempts to save, on top of the store's own retries."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A training run between two steps. Tensors are named as in the model."""

    step: int
    """Finished optimizer steps over all epochs."""
    cursor: Mapping[str, Any]
    """`data.order.Cursor.to_dict()`: the next batch to read."""
    model: Mapping[str, Tensor]
    optimizer: Mapping[str, Tensor]
    """`{slot}/{parameter name}`, e.g. `exp_avg/stem.0.weight`."""
    ema: Mapping[str, Tensor] | None = None
    metrics: Mapping[str, float] = field(default_factory=dict[str, float])
    """Of the last evaluation, if there was one."""
    losses: Sequence[float] = ()
    """Of the steps since the last logged one: the next point of the curve is their mean."""


class CheckpointStore:
    """Saves in the background, keeps the newest few, loads only what is whole.

    For one writer at a time (rank 0). Not thread-safe.
    """

    def __init__(
        self,
        store: Store,
        prefix: str,
        *,
        keep_last: int = 2,
        before_upload: Callable[[], object] | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """`before_upload` is called in the background thread: what it does, a checkpoint stands for."""
        self._store = store
        self._prefix = prefix.strip("/")
        self._keep_last = keep_last
        self._before_upload = before_upload
        self._sleep = sleep
        self._upload: threading.Thread | None = None
        self._fault: StoreError | None = None
        self._bug: BaseException | None = None

    def save(self, checkpoint: Checkpoint) -> None:
        """Copy to the host and upload behind the caller's back; waits for the previous upload.

        A store fault is retried, then logged: training goes on, and the previous checkpoint stands.
        """
        self._join()
        tensors, metadata = _flatten(checkpoint)
        arguments = (checkpoint.step, tensors, metadata)
        self._upload = threading.Thread(target=self._run, args=arguments, name="checkpoint-upload")
        self._upload.start()

    def finish(self) -> None:
        """Wait for the last save. Raises its StoreError if it could not be stored."""
        self._join()
        if self._fault is not None:
            raise self._fault

    def load_latest(self) -> tuple[str, Checkpoint] | None:
        """Return the newest whole checkpoint and its name, or None if there is none.

        One that is damaged is passed over with a warning, for the one before it.
        """
        for name in reversed(self._names()):
            try:
                return name, self.load(name)
            except (_DamagedError, ObjectNotFoundError) as fault:
                logger.warning("checkpoint %s cannot be used: %s", name, fault)
        return None

    def load(self, name: str) -> Checkpoint:
        """Return the checkpoint of that name. Raises StoreError if it is not there or damaged."""
        content = self._store.get(self._path(name))
        match = _NAME.fullmatch(name)
        if match is None or hashlib.sha256(content).hexdigest() != match[2]:
            raise _DamagedError(f"{self._store.uri}/{self._path(name)} is not what was saved")
        return _unflatten(content, f"{self._store.uri}/{self._path(name)}")

    def _run(self, step: int, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
        try:
            if self._before_upload is not None:
                self._before_upload()
            self._put(step, tensors, metadata)
        except BaseException as bug:
            self._bug = bug  # raised where the next save or `finish` joins

    def _put(self, step: int, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
        content = safetensors.torch.save(tensors, metadata)
        name = f"step-{step:09d}-{hashlib.sha256(content).hexdigest()}.safetensors"
        for wait_s in (*_RETRY_WAITS_S, None):
            try:
                self._store.put(self._path(name), content)
                self._fault = None
                break
            except StoreError as fault:
                self._fault = fault
                if wait_s is not None:
                    self._sleep(wait_s)
        if self._fault is not None:
            logger.warning("step %d could not be saved, training goes on: %s", step, self._fault)
            return
        self._delete_old(name)

    def _delete_old(self, newest: str) -> None:
        """Keep `newest` and those just before it. Later ones are another attempt's: keep them too."""
        try:
            older = [name for name in self._names() if name[:14] <= newest[:14] and name != newest]
            for name in older[: max(0, len(older) + 1 - self._keep_last)]:
                self._store.delete(self._path(name))
        except StoreError as fault:
            logger.warning("old checkpoints could not be deleted: %s", fault)

    def _names(self) -> list[str]:
        names = [info.path.rsplit("/", 1)[-1] for info in self._store.list(self._prefix)]
        return sorted(name for name in names if _NAME.fullmatch(name))

    def _path(self, name: str) -> str:
        return f"{self._prefix}/{name}" if self._prefix else name

    def _join(self) -> None:
        if self._upload is not None:
            self._upload.join()
            self._upload = None
        if self._bug is not None:
            raise self._bug


class _DamagedError(StoreError):
    """The object is not what was saved."""


def _flatten(checkpoint: Checkpoint) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Copy every tensor to the host, so that training may go on changing the originals."""
    groups = {"model": checkpoint.model, "optimizer": checkpoint.optimizer, "ema": checkpoint.ema or {}}
    tensors = {
        f"{group}/{name}": tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
        for group, named in groups.items()
        for name, tensor in named.items()
    }
    clock = {
        "format": _FORMAT,
        "step": checkpoint.step,
        "cursor": dict(checkpoint.cursor),
        "metrics": dict(checkpoint.metrics),
        "losses": list(checkpoint.losses),
        "has_ema": checkpoint.ema is not None,
    }
    return tensors, {"clock": json.dumps(clock, sort_keys=True)}


def _unflatten(content: bytes, uri: str) -> Checkpoint:
    header_size = int.from_bytes(content[:8], "little")
    clock = json.loads(json.loads(content[8 : 8 + header_size])["__metadata__"]["clock"])
    if clock["format"] != _FORMAT:
        raise InputError(
            f"{uri} has format {clock['format']}, this version reads {_FORMAT}: delete it to start the "
            f"stage again, or go on with the version that wrote it"
        )
    groups: dict[str, dict[str, Tensor]] = {"model": {}, "optimizer": {}, "ema": {}}
    for name, tensor in safetensors.torch.load(content).items():
        group, rest = name.split("/", 1)
        groups[group][rest] = tensor
    return Checkpoint(
        step=clock["step"],
        cursor=clock["cursor"],
        model=groups["model"],
        optimizer=groups["optimizer"],
        ema=groups["ema"] if clock["has_ema"] else None,
        metrics=clock["metrics"],
        losses=clock["losses"],
    )
