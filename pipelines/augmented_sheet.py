"""A picture of an epoch's first training samples, before and after augmentation."""

from contextlib import closing

import torch

from coatnet.config import ModelConfig
from data.augment import Augment
from data.contact_sheet import contact_sheet
from data.loader import TrainLoader
from data.normalize import denormalize


def augmented_sheet(
    loader: TrainLoader,
    augment: Augment,
    model: ModelConfig,
    *,
    lane_size: int,
    num_images: int,
    epoch: int = 0,
) -> bytes:
    """Return a PNG of at most `num_images` pairs, drawn as training draws them, each with its operations."""
    with closing(loader.batches(epoch)) as batches:
        batch = next(batches)
    augmented = augment(batch, lane_size=lane_size, device=torch.device("cpu"))
    return contact_sheet(
        batch.images_BHWC[:num_images],
        denormalize(augmented.images_BCHW[:num_images], model.mean, model.std),
        augment.describe(batch, lane_size=lane_size)[:num_images],
    )
