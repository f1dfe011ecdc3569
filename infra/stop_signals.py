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


def treat_sigterm_as_ctrl_c() -> None:
    """Make SIGTERM a KeyboardInterrupt; for entry points, after `ray.init`, which takes it over."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
