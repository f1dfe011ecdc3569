"""The learning rate as a pure function of the step, so that resuming needs no scheduler state."""

import math

from coatnet.train_config import TrainConfig


def learning_rate(config: TrainConfig, step: int, steps_per_epoch: int) -> float:
    """Return the learning rate of global step `step`, counted from 0 over all epochs.

    Linear warmup reaches the peak at its last step; cosine and linear decay (Table 10) reach
    `min_learning_rate` at the very last step.
    """
    num_steps = config.epochs * steps_per_epoch
    warmup_steps = round(config.warmup_epochs * steps_per_epoch)
    if step < warmup_steps:
        return config.peak_learning_rate * (step + 1) / warmup_steps
    if config.schedule == "constant":
        return config.peak_learning_rate
    done = min(1.0, (step - warmup_steps) / max(1, num_steps - 1 - warmup_steps))
    remaining = 0.5 * (1.0 + math.cos(math.pi * done)) if config.schedule == "cosine" else 1.0 - done
    return config.min_learning_rate + (config.peak_learning_rate - config.min_learning_rate) * remaining
