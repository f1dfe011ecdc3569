"""The learning rate as a pure function of the step, so that resuming needs no scheduler state."""

import math

from coatnet.train_config import TrainConfig


def batch_norm_momentum(num_steps: int) -> float:
    """Return how far BatchNorm's running statistics follow each batch in a training of `num_steps`.

    The paper's momentum of 0.01 looks back over a hundred steps: in a training of a few hundred, what is
    evaluated would still hold the initial mean and variance. So the window is a twentieth of the training at
    most, and ten steps at least. A constant, since a compiled model is compiled again for every new value.
    """
    return min(0.1, 20 / max(1, num_steps))


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
