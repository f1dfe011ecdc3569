"""Ctrl-C and SIGTERM as a request that running work may follow in its own time."""

import signal
import threading
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType


@dataclass(kw_only=True)
class StopRequest:
    """Set by the first SIGINT or SIGTERM."""

    signal_name: str = ""
    event: threading.Event = field(default_factory=threading.Event)

    def __bool__(self) -> bool:
        """Whether a stop was asked for."""
        return self.event.is_set()


@contextmanager
def stop_signals() -> Generator[StopRequest]:
    """Turn the first SIGINT or SIGTERM into a request; the second one is a KeyboardInterrupt.

    Outside the main thread, which alone gets signals, the request never comes.
    """
    stop = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def request(number: int, frame: FrameType | None) -> None:
        if stop:
            raise KeyboardInterrupt
        stop.signal_name = signal.Signals(number).name
        stop.event.set()

    previous = {number: signal.signal(number, request) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def interrupt_on_stop_signals() -> None:
    """Make SIGINT and SIGTERM a KeyboardInterrupt; for entry points, again after `ray.init`.

    Ray takes SIGTERM over, and a shell that starts a job in the background has it ignore SIGINT.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
