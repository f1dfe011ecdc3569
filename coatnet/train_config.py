"""How a model learns: the recipe, and the choices of a run that leave its result alone."""

from dataclasses import dataclass
from typing import Literal, get_args

from data.errors import InputError

Schedule = Literal["cosine", "linear", "constant"]
Loss = Literal["softmax", "sigmoid"]
Precision = Literal["float32", "bf16"]


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """The recipe of one training stage; the defaults are the paper's ImageNet-1K column (Table 10)."""

    epochs: int = 300
    peak_learning_rate: float = 1e-3
    min_learning_rate: float = 1e-5
    """Reached at the last step; unused by `constant`."""
    warmup_epochs: float = 32.0
    """Linear warmup; the paper's 10,000 steps at batch 4096. Fractions of an epoch are fine."""
    schedule: Schedule = "cosine"
    weight_decay: float = 0.05
    betas: tuple[float, float] = (0.9, 0.999)
    clip_norm: float | None = 1.0
    """Largest norm of the whole gradient; None clips nothing."""
    label_smoothing: float = 0.1
    loss: Loss = "softmax"
    ema_decay: float | None = None
    """Decay of the moving average of the weights; None keeps none. It warms up, see `ema`."""
    precision: Precision = "float32"
    gradient_accumulation_steps: int = 1
    """Parts that a rank's batch is cut into, to save memory; the global batch stays as it is."""
    compile: bool = False
    eval_every_epochs: int = 1
    """The last epoch is always evaluated."""

    def __post_init__(self) -> None:
        _check_choice("schedule", self.schedule, get_args(Schedule))
        _check_choice("loss", self.loss, get_args(Loss))
        _check_choice("precision", self.precision, get_args(Precision))
        for name in ("epochs", "gradient_accumulation_steps", "eval_every_epochs"):
            _check(getattr(self, name) >= 1, name, getattr(self, name), "at least 1")
        _check(self.peak_learning_rate > 0, "peak_learning_rate", self.peak_learning_rate, "above 0")
        within = 0 <= self.min_learning_rate <= self.peak_learning_rate
        _check(
            within or self.schedule == "constant",
            "min_learning_rate",
            self.min_learning_rate,
            f"between 0 and peak_learning_rate = {self.peak_learning_rate}",
        )
        within = 0 <= self.warmup_epochs < self.epochs
        _check(within, "warmup_epochs", self.warmup_epochs, f"from 0 to below epochs = {self.epochs}")
        _check(self.weight_decay >= 0, "weight_decay", self.weight_decay, "at least 0")
        within = len(self.betas) == 2 and all(0 <= beta < 1 for beta in self.betas)
        _check(within, "betas", self.betas, "two numbers in [0, 1)")
        _check(self.clip_norm is None or self.clip_norm > 0, "clip_norm", self.clip_norm, "above 0 or null")
        _check(0 <= self.label_smoothing < 1, "label_smoothing", self.label_smoothing, "in [0, 1)")
        within = self.ema_decay is None or 0 <= self.ema_decay < 1
        _check(within, "ema_decay", self.ema_decay, "in [0, 1) or null")


@dataclass(frozen=True, kw_only=True)
class RuntimeTrainConfig:
    """Choices of a run that do not change what is learned; never part of a stage's identity."""

    name: str = "train"
    """What the progress lines call it."""
    checkpoint_every_steps: int = 500
    """Besides the one at the end of every epoch."""
    log_every_steps: int = 20
    progress_every_s: float = 5.0

    def __post_init__(self) -> None:
        for name in ("checkpoint_every_steps", "log_every_steps"):
            _check(getattr(self, name) >= 1, name, getattr(self, name), "at least 1")
        _check(self.progress_every_s >= 0, "progress_every_s", self.progress_every_s, "at least 0 seconds")


def _check_choice(name: str, value: object, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise InputError(f"{name} is {value!r}; allowed: {', '.join(allowed)}")


def _check(holds: bool, name: str, value: object, allowed: str) -> None:
    if not holds:
        raise InputError(f"{name} is {value}; it must be {allowed}")
