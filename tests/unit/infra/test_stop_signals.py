import os
import signal
import subprocess
import sys
import threading

import pytest

from infra.stop_signals import stop_signals
from tests.conftest import REPOSITORY


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_is_a_request_and_the_second_an_interrupt(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with stop_signals() as stop:
        assert not stop
        os.kill(os.getpid(), number)
        assert stop
        assert stop.signal_name == number.name
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), number)
    assert signal.getsignal(number) is before


def test_another_thread_gets_a_request_that_never_comes() -> None:
    """signal.signal raises outside the main thread, where a notebook or a test may run the job."""
    found: list[bool] = []

    def ask() -> None:
        with stop_signals() as stop:
            found.append(bool(stop))

    thread = threading.Thread(target=ask)
    thread.start()
    thread.join()
    assert found == [False]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_entry_point_stops_also_where_its_shell_made_it_ignore_ctrl_c(number: signal.Signals) -> None:
    """A job started with `&` from a script went on through every SIGINT outside of training."""
    program = (
        "import os, time; from pipelines.job import run_main\n"
        f"run_main(lambda argv: os.kill(os.getpid(), {int(number)}) or time.sleep(30) or 0)"
    )
    done = subprocess.run(
        ["/bin/sh", "-c", 'trap "" INT; exec "$0" -c "$1"', sys.executable, program],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 130, done.stderr
    assert done.stderr == "stopped: run the same command to go on\n"
