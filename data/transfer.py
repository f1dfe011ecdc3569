"""From the CPU to the device without waiting for it."""

from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from data.types import Batch


def to_device(values: NDArray[np.generic], device: torch.device) -> Tensor:
    """Copy to the device; on CUDA through pinned memory, as a copy from pageable memory would wait."""
    tensor = torch.from_numpy(np.ascontiguousarray(values))
    if device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def batch_to_device(batch: Batch, device: torch.device) -> Batch:
    """Move what the device needs; positions stay on the CPU, where randomness is drawn."""
    return replace(
        batch,
        images_BHWC=batch.images_BHWC.to(device, non_blocking=True),
        labels_B=batch.labels_B.to(device, non_blocking=True),
        weights_B=batch.weights_B.to(device, non_blocking=True),
    )
