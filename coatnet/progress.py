"""One line of progress, every few seconds."""

import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """Where a stage stands. Epochs and steps count from 1, as people do."""

    stage: str
    epoch: int
    num_epochs: int
    step: int
    steps_per_epoch: int
    loss: float
    learning_rate: float
    images_per_s: float
    eta_s: float
    """Seconds until the stage's last training step."""
    note: str = ""
    """Replaces the numbers of the step, e.g. the evaluation's result."""


def format_progress(progress: Progress) -> str:
    """Return the line that a person reads, without a newline."""
    head = f"{progress.stage}  epoch {progress.epoch}/{progress.num_epochs}"
    if progress.note:
        return f"{head}  {progress.note}"
    return (
        f"{head}  step {progress.step}/{progress.steps_per_epoch}  loss {progress.loss:.3f}  "
        f"LR {progress.learning_rate:.1e}  {progress.images_per_s:,.0f} images/s  "
        f"ETA {format_duration(progress.eta_s)}"
    )


def format_duration(seconds: float) -> str:
    """Return e.g. 45s, 1m52s or 3h07m."""
    total = max(0, round(seconds))
    if total < 60:
        return f"{total}s"
    if total < 3600:
        return f"{total // 60}m{total % 60:02d}s"
    return f"{total // 3600}h{total % 3600 // 60:02d}m"


class ProgressLine:
    """Measures throughput and says when a line is due."""

    def __init__(
        self,
        *,
        stage: str,
        num_epochs: int,
        steps_per_epoch: int,
        global_batch_size: int,
        every_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._stage = stage
        self._num_epochs = num_epochs
        self._steps_per_epoch = steps_per_epoch
        self._global_batch_size = global_batch_size
        self._every_s = every_s
        self._clock = clock
        self._training_since = clock()
        self._training_s = 0.0
        self._num_steps = 0
        self.images_per_s = 0.0
        """Of the last interval; in the first one, of its steps so far."""
        self._has_shown = False

    def resume(self) -> None:
        """Training goes on after a `pause`."""
        self._training_since = self._clock()

    def pause(self) -> None:
        """Stop the clock for what is not training, e.g. an evaluation."""
        self._training_s += self._clock() - self._training_since

    def step(self, epoch: int, step: int, loss: float, learning_rate: float) -> Progress | None:
        """Count one finished step, numbered from 0; return a line's content if one is due."""
        self._num_steps += 1
        now = self._clock()
        elapsed_s = self._training_s + now - self._training_since
        if elapsed_s <= 0:
            return None
        steps_per_s = self._num_steps / elapsed_s
        is_due = elapsed_s >= self._every_s
        if is_due or not self._has_shown:
            self.images_per_s = steps_per_s * self._global_batch_size
        if not is_due:
            return None
        self._has_shown = True
        self._training_since, self._training_s, self._num_steps = now, 0.0, 0
        steps_left = self._num_epochs * self._steps_per_epoch - (epoch * self._steps_per_epoch + step + 1)
        return Progress(
            stage=self._stage,
            epoch=epoch + 1,
            num_epochs=self._num_epochs,
            step=step + 1,
            steps_per_epoch=self._steps_per_epoch,
            loss=loss,
            learning_rate=learning_rate,
            images_per_s=self.images_per_s,
            eta_s=steps_left / steps_per_s,
        )

    def note(self, epoch: int, text: str) -> Progress:
        """Return a line for something other than a step, e.g. an evaluation's result."""
        return Progress(
            stage=self._stage,
            epoch=epoch + 1,
            num_epochs=self._num_epochs,
            step=self._steps_per_epoch,
            steps_per_epoch=self._steps_per_epoch,
            loss=float("nan"),
            learning_rate=0.0,
            images_per_s=0.0,
            eta_s=0.0,
            note=text,
        )
