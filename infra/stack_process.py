"""Start, recognise and stop the processes of a local stack, and find ports for them.

A process is ours when its environment carries the stack's mark: a pid alone may have been
recycled, and a process group is left by some of Ray's children.
"""

import contextlib
import os
import random
import socket
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from infra.stack_state import ServiceState

_MARK_NAME = "COATNET_STACK_PROCESS"
_START_TOLERANCE_S = 1.0
_LOG_LIMIT_BYTES = 16 << 20
# Below the range that the system itself gives out, so that a remembered port stays free.
_FREE_PORTS = range(20_000, 30_000)


class StackError(RuntimeError):
    """A service could not be started or stopped. The message is one line."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """One process to be."""

    argv: Sequence[str]
    environment: Mapping[str, str]
    folder: Path


def spawn(
    command: Command, *, service: str, stack_id: str, log_path: Path, context: Mapping[str, str]
) -> ServiceState:
    """Start a service in a session of its own, its output appended to the log."""
    if log_path.exists() and log_path.stat().st_size > _LOG_LIMIT_BYTES:
        log_path.replace(log_path.with_suffix(".log.1"))
    with log_path.open("ab") as log:
        process = subprocess.Popen(
            command.argv,
            env={**command.environment, _MARK_NAME: _mark(stack_id, service)},
            cwd=command.folder,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    # The service outlives this object, which else warns when it is collected.
    process.returncode = 0
    started_at = time.time()
    with contextlib.suppress(psutil.NoSuchProcess):
        started_at = psutil.Process(process.pid).create_time()
    return ServiceState(pid=process.pid, started_at=started_at, context=context)


def is_alive(state: ServiceState, *, service: str, stack_id: str) -> bool:
    """Say whether the recorded process still runs; a recycled pid and a zombie do not count."""
    try:
        process = psutil.Process(state.pid)
        if process.status() == psutil.STATUS_ZOMBIE:
            _reap(state.pid)
            return False
        mark = _read_mark(process)
        if mark is not None:
            return mark == _mark(stack_id, service)
        return abs(process.create_time() - state.started_at) < _START_TOLERANCE_S
    except psutil.NoSuchProcess:
        return False


def find_members(state: ServiceState | None, *, service: str, stack_id: str) -> list[psutil.Process]:
    """Return every living process of a service, whoever its parent is now."""
    members: list[psutil.Process] = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.NoSuchProcess, ProcessLookupError):
            if process.status() == psutil.STATUS_ZOMBIE or process.pid == os.getpid():
                continue
            mark = _read_mark(process)
            if mark == _mark(stack_id, service) or (mark is None and _is_in_session(process, state)):
                members.append(process)
    return members


def stop(state: ServiceState | None, *, service: str, stack_id: str, patience_s: float) -> int:
    """Stop a service and all it started: first politely by its first process, then by force.

    Returns how many processes ran. Raises `StackError` where one is left.
    """
    members = find_members(state, service=service, stack_id=stack_id)
    try:
        for process in members:
            if state is not None and process.pid == state.pid:
                _send(process.terminate)
                psutil.wait_procs([process], timeout=patience_s)
        rest = find_members(state, service=service, stack_id=stack_id)
        for process in rest:
            _send(process.terminate)
        _, stubborn = psutil.wait_procs(rest, timeout=3.0)
        for process in stubborn:
            _send(process.kill)
        psutil.wait_procs(stubborn, timeout=5.0)
    except psutil.AccessDenied as error:
        raise StackError(
            f"{service}: pid {error.pid} belongs to another user: stop it as that user"
        ) from error
    left = find_members(state, service=service, stack_id=stack_id)
    if left:
        raise StackError(f"{service}: {len(left)} processes could not be stopped, the first is {left[0].pid}")
    return len(members)


def choose_port(wanted: Iterable[int | None], taken: set[int]) -> int:
    """Return the first free one of the `wanted` ports, or any free port; it joins `taken`."""
    candidates = [port for port in wanted if port is not None]
    candidates += random.sample(_FREE_PORTS, 200)
    for port in candidates:
        if port not in taken and is_port_free(port):
            taken.add(port)
            return port
    raise StackError(f"no free port found between {_FREE_PORTS.start} and {_FREE_PORTS.stop}")


def is_port_free(port: int) -> bool:
    """Say whether a service could listen on this loopback port."""
    with socket.socket() as probe:
        # As servers do: connections that are still winding down do not hold a port.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    with socket.socket() as caller:  # macOS allows the bind beside a server on all addresses
        caller.settimeout(1.0)
        return caller.connect_ex(("127.0.0.1", port)) != 0


def _mark(stack_id: str, service: str) -> str:
    return f"{stack_id}:{service}"


def _read_mark(process: psutil.Process) -> str | None:
    """Return the stack mark ("" for none), or None where the environment cannot be read.

    A process that sets its title may overwrite its environment: Ray's dashboard does.
    """
    try:
        environment = process.environ()
    except (psutil.AccessDenied, OSError):
        return None
    if "PATH" not in environment:
        return None
    return environment.get(_MARK_NAME, "")


def _is_in_session(process: psutil.Process, state: ServiceState | None) -> bool:
    if state is None or process.create_time() < state.started_at - _START_TOLERANCE_S:
        return False
    is_own_user = process.uids().real == os.getuid()
    return is_own_user and os.getsid(process.pid) == state.pid


def _send(signal: Callable[[], None]) -> None:
    with contextlib.suppress(psutil.NoSuchProcess):
        signal()


def _reap(pid: int) -> None:
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)
