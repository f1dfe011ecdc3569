"""What driver and workers of `infra.ray_runtime` tell each other, and the actor it goes through.

Only plain values pass: the actor's process imports no torch, and is up in a moment.
"""

import pickle
import traceback
from dataclasses import dataclass
from typing import Any

import ray

_RETRYABLE = (OSError, RuntimeError, EOFError)
"""What a lost peer, store or node looks like (gloo and nccl raise RuntimeError). Others are final."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """Why a worker ended."""

    rank: int | None
    """None for a fault outside the workers."""
    type_name: str
    message: str
    is_final: bool
    """Whether starting again would only fail again."""
    trace: str = ""
    pickled: bytes = b""
    """The exception itself, if it can be pickled."""

    @classmethod
    def of_death(cls, error: BaseException, rank: int | None) -> "Failure":
        """Describe a worker that could not report, or a fault of Ray Train itself."""
        return cls(rank=rank, type_name=type(error).__name__, message=str(error), is_final=False)

    def summary(self) -> str:
        """Return one line."""
        lines = self.message.strip().splitlines()
        return f"{self._who()} failed: {self.type_name}: {lines[0] if lines else ''}"

    def to_exception(self, fallback: type[Exception]) -> BaseException:
        """Return a final error as it was raised, with its trace as a note; others as `fallback`."""
        error: BaseException = fallback(self.summary())
        if self.is_final and self.pickled:
            error = pickle.loads(self.pickled)  # noqa: S301 - from our own worker, through Ray
        if self.trace:
            error.add_note(f"In {self._who()}:\n{self.trace}")
        return error

    def _who(self) -> str:
        return "the worker group" if self.rank is None else f"worker {self.rank}"


def describe_failure(error: BaseException, rank: int | None) -> Failure:
    """Turn what a worker raised into something that can always be sent."""
    try:
        pickled = pickle.dumps(error)
        pickle.loads(pickled)  # noqa: S301 - some exceptions pickle but do not unpickle
    except Exception:
        pickled = b""
    return Failure(
        rank=rank,
        type_name=type(error).__name__,
        message=str(error),
        is_final=not isinstance(error, _RETRYABLE),
        trace="".join(traceback.format_exception(error)),
        pickled=pickled,
    )


@ray.remote(num_cpus=0)
class Channel:
    """Between the driver and the workers of one attempt. It dies with the driver."""

    def __init__(self) -> None:
        self._progress: list[dict[str, Any]] = []
        self._failures: list[Failure] = []
        self._command = "go"

    def exchange(self, progress: list[dict[str, Any]]) -> str:
        """Take progress as plain fields; return the command: go, stop or abort."""
        self._progress += progress
        return self._command

    def fail(self, failure: Failure) -> None:
        """Take a worker's last words."""
        self._failures.append(failure)

    def drain(self) -> list[dict[str, Any]]:
        """Return progress not returned before."""
        drained, self._progress = self._progress, []
        return drained

    def failures(self) -> list[Failure]:
        """Return failures in the order they arrived."""
        return self._failures

    def request_stop(self) -> None:
        """Make `should_stop` true in every worker."""
        self._command = "stop"

    def abort(self) -> None:
        """End every worker at once."""
        self._command = "abort"
