import os
import signal
import socket
import sys
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from infra import stack_process
from infra.stack_process import Command
from infra.stack_state import ServiceState


def _spawn(tmp_path: Path, program: str, stack_id: str) -> ServiceState:
    command = Command(argv=[sys.executable, "-c", program], environment=os.environ, folder=tmp_path)
    return stack_process.spawn(
        command, service="probe", stack_id=stack_id, log_path=tmp_path / "log", context={}
    )


def _wait_for_members(state: ServiceState, stack_id: str, number: int) -> list[psutil.Process]:
    deadline = time.monotonic() + 20
    while True:
        members = stack_process.find_members(state, service="probe", stack_id=stack_id)
        if len(members) == number or time.monotonic() > deadline:
            return members
        time.sleep(0.05)


def test_children_in_sessions_of_their_own_are_found_and_stopped(tmp_path: Path) -> None:
    """Ray's workers leave the process group, and its jobs the session."""
    program = (
        "import subprocess, sys, time; "
        "subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'], start_new_session=True); "
        "time.sleep(60)"
    )
    state = _spawn(tmp_path, program, "one")
    members = _wait_for_members(state, "one", 2)
    assert len(members) == 2
    assert stack_process.is_alive(state, service="probe", stack_id="one")
    assert stack_process.find_members(None, service="probe", stack_id="other") == []
    os.kill(state.pid, signal.SIGKILL)
    _wait_for_members(state, "one", 1)
    assert not stack_process.is_alive(state, service="probe", stack_id="one")
    assert stack_process.stop(state, service="probe", stack_id="one", patience_s=1) == 1
    assert not any(member.is_running() and member.status() != psutil.STATUS_ZOMBIE for member in members)


def test_a_process_deaf_to_sigterm_is_killed(tmp_path: Path) -> None:
    program = (
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
        "print('deaf', flush=True); time.sleep(60)"
    )
    state = _spawn(tmp_path, program, "deaf")
    while "deaf" not in (tmp_path / "log").read_text():
        time.sleep(0.05)
    assert stack_process.stop(state, service="probe", stack_id="deaf", patience_s=0.2) == 1
    assert not stack_process.is_alive(state, service="probe", stack_id="deaf")


def test_a_recycled_pid_is_not_ours(tmp_path: Path) -> None:
    state = _spawn(tmp_path, "import time; time.sleep(60)", "mine")
    own = replace(state, pid=os.getpid())
    assert not stack_process.is_alive(own, service="probe", stack_id="mine")
    assert stack_process.stop(own, service="probe", stack_id="mine", patience_s=1) == 1
    assert not psutil.pid_exists(state.pid) or psutil.Process(state.pid).status() == psutil.STATUS_ZOMBIE


@pytest.mark.parametrize("address", ["127.0.0.1", "0.0.0.0"])
def test_a_port_somebody_listens_on_is_not_chosen(address: str) -> None:
    with socket.create_server((address, 0)) as server:
        port = server.getsockname()[1]
        assert not stack_process.is_port_free(port)
        assert stack_process.choose_port([port], set()) != port


def test_ports_are_chosen_in_the_order_wanted_and_once() -> None:
    taken: set[int] = set()
    free = stack_process.choose_port([], taken)
    assert taken == {free}
    taken.clear()
    assert stack_process.choose_port([None, free], taken) == free
    assert stack_process.choose_port([free], taken) != free
