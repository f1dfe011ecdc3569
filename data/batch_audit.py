"""A record of what a model was fed: which samples a step held, and a hash of their augmented pixels.

Two runs of the same recipe must leave equal lines for equal steps, whatever was killed in between.
"""

import hashlib
import json
import os
from pathlib import Path

import torch
from torch import Tensor

from data.augment import Augment, AugmentedBatch
from data.errors import InputError
from data.types import Batch

_DIGEST_BYTES = 16


class AuditedAugment:
    """Augments, and appends one JSON line a step to FOLDER/NAME-rankR.jsonl.

    A line holds `rank`, `epoch`, `step` (of the epoch), `keys` (padding is "") and `blake2b`, the
    hash of the images, targets and weights that the model gets. A resumed run appends to the same
    file, so the steps that a killed run took after its checkpoint stand there twice; `pid` tells
    the attempts apart. It copies every batch to the host: for tests and for finding out where two
    runs part, not for speed.
    """

    def __init__(self, augment: Augment, folder: Path, *, name: str, rank: int) -> None:
        """Raises InputError where the folder cannot be made."""
        self._augment, self._rank = augment, rank
        self._path = folder / f"{name}-rank{rank}.jsonl"
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(
                f"the audit folder {folder} cannot be made ({error.strerror}): name another one"
            ) from None

    def __call__(self, batch: Batch, *, lane_size: int, device: torch.device) -> AugmentedBatch:
        """Augment as without an audit."""
        augmented = self._augment(batch, lane_size=lane_size, device=device)
        line = {
            "rank": self._rank,
            "epoch": batch.epoch,
            "step": batch.step,
            "keys": batch.keys,
            "pid": os.getpid(),
            "blake2b": _digest(augmented.images_BCHW, augmented.targets_BK, augmented.weights_B),
        }
        self._append(json.dumps(line).encode() + b"\n")
        return augmented

    def _append(self, line: bytes) -> None:
        # One write: a killed process leaves whole lines only.
        descriptor = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(descriptor, line)
        finally:
            os.close(descriptor)


def _digest(*tensors: Tensor) -> str:
    digest = hashlib.blake2b(digest_size=_DIGEST_BYTES)
    for tensor in tensors:
        # As bytes: NumPy knows no bfloat16.
        content = tensor.detach().cpu().contiguous().view(torch.uint8)
        digest.update(content.numpy().data)
    return digest.hexdigest()
