"""Bring the local stack up, look at it, and take it down; `infra.local_stack` is its command line."""

import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import repeat
from pathlib import Path

from data.errors import InputError
from infra import stack_process
from infra.stack_process import StackError
from infra.stack_services import SERVICES, Service
from infra.stack_site import Site, client_environment, driver_environment
from infra.stack_state import (
    StackHome,
    StackState,
    load_secrets,
    load_state,
    save_state,
    write_environment,
)

_FREE_SPACE_BYTES = 2_000_000_000
_START_TIMEOUT_S = 180.0
_ANSWER_TIMEOUT_S = 60.0
_POLL_S = 0.2
Tell = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceReport:
    """What a user wants to know of one service."""

    name: str
    title: str
    state: str
    """`running`, `crashed`, `stopped`, or `not answering`."""
    action: str
    """What `up` or `down` did; "" for `status`."""
    url: str
    pid: int | None
    log: str
    seconds: float
    """How long the action took."""


def up(
    home_dir: Path, *, names: Sequence[str], explicit_ports: Mapping[str, int], tell: Tell
) -> list[ServiceReport]:
    """Start the named services that do not run, together, and wait until each works.

    `explicit_ports` maps port names to numbers that must be used. Raises `InputError` for a port
    that is taken, a full disk or a missing program; `StackError` where a service does not start.
    """
    home = StackHome(root=home_dir.absolute())
    home.make()
    with home.locked(tell):
        state = load_state(home)
        services = [service for service in SERVICES if service.name in names]
        if not all(_is_alive(service, state) for service in services):
            check_free_space(home.root)  # before anything is written
        secrets = load_secrets(home)
        actions = {service.name: _clear_the_dead(service, state) for service in services}
        state = replace(state, ports=_plan_ports(state, explicit_ports))
        save_state(home, state)
        site = Site(home=home, secrets=secrets, ports=state.ports)
        write_environment(home, {**client_environment(site), **driver_environment(site)})
        started_at = time.monotonic()
        for service in services:
            state, action = _start_if_needed(service, site, state)
            actions[service.name] = actions[service.name] or action
        reports: list[ServiceReport] = []
        for service, action, answered_at in _await_answers(services, site, state, actions):
            seconds = answered_at - started_at
            reports.append(_report(service, site, load_state(home), action=action, seconds=seconds))
        return reports


def status(home_dir: Path, *, names: Sequence[str]) -> list[ServiceReport]:
    """Look at the named services, and change nothing."""
    home = StackHome(root=home_dir.absolute())
    services = [service for service in SERVICES if service.name in names]
    if not (home.root / "state.json").exists():
        empty = StackState(ports={name: 0 for service in SERVICES for name in service.ports})
        return [_describe(service, home, empty, "stopped") for service in services]
    state = load_state(home)
    site = Site(home=home, secrets=load_secrets(home), ports=state.ports)
    return [_report(service, site, state) for service in services]


def down(home_dir: Path, *, tell: Tell) -> list[ServiceReport]:
    """Stop all that `up` started in this folder, with its children, and nothing else."""
    home = StackHome(root=home_dir.absolute())
    if not (home.root / "state.json").exists():
        return status(home_dir, names=[service.name for service in SERVICES])
    with home.locked(tell):
        state = load_state(home)
        ray, *others = reversed(SERVICES)
        # Ray first: its jobs may still save their work in the others.
        results = [_halt(ray, home, state)]
        with ThreadPoolExecutor() as pool:
            results += pool.map(_halt, others, repeat(home), repeat(state))
        failures = [result for result in results if isinstance(result, StackError)]
        if failures:
            raise failures[0]
        save_state(home, replace(state, services={}))
    return [result for result in results if isinstance(result, ServiceReport)]


def check_free_space(folder: Path, needed_bytes: int = _FREE_SPACE_BYTES) -> None:
    """Raise `InputError` where the disk of `folder`, which may not exist yet, is nearly full."""
    while not folder.exists():
        folder = folder.parent
    free_bytes = shutil.disk_usage(folder).free
    if free_bytes < needed_bytes:
        raise InputError(
            f"disk of {folder} has {free_bytes / 1e9:.1f} GB free, the stack needs "
            f"{needed_bytes / 1e9:.1f} GB: make room or choose another disk with --home"
        )


def _is_alive(service: Service, state: StackState) -> bool:
    found = state.services.get(service.name)
    return found is not None and stack_process.is_alive(found, service=service.name, stack_id=state.stack_id)


def _clear_the_dead(service: Service, state: StackState) -> str:
    """Stop what a crashed service left behind; return what to call its start, "" if unknown yet."""
    if _is_alive(service, state):
        return ""
    found = state.services.get(service.name)
    stack_process.stop(found, service=service.name, stack_id=state.stack_id, patience_s=0.0)
    return "started" if found is None else "restarted after a crash, data kept"


def _plan_ports(state: StackState, explicit: Mapping[str, int]) -> dict[str, int]:
    """Return every port: a running service keeps its own; else explicit, remembered, usual or free."""
    alive = {service.name for service in SERVICES if _is_alive(service, state)}
    planned = {name: state.ports[name] for s in SERVICES if s.name in alive for name in s.ports}
    for name, port in explicit.items():
        if name in planned and planned[name] != port:
            raise InputError(
                f"port {port} asked, but the service already runs on {planned[name]}: run down first"
            )
        if name not in planned and (port in planned.values() or not stack_process.is_port_free(port)):
            raise InputError(f"port {port} is taken: choose another, or leave the option out for a free one")
        planned[name] = port
    taken = set(planned.values())
    for service in SERVICES:
        for name, usual in service.ports.items():
            if name not in planned:
                planned[name] = stack_process.choose_port([state.ports.get(name), usual], taken)
    return planned


def _start_if_needed(service: Service, site: Site, state: StackState) -> tuple[StackState, str]:
    """Start a service that does not run, or that was told other addresses than those in use."""
    context = service.context(site)
    action = "started"
    if _is_alive(service, state):
        if state.services[service.name].context == context:
            return state, "already running"
        action = "restarted, because what it depends on has moved"
        state = _stop(service, site, state)
    return _start(service, site, state), action


def _start(service: Service, site: Site, state: StackState) -> StackState:
    started = stack_process.spawn(
        service.command(site),
        service=service.name,
        stack_id=state.stack_id,
        log_path=site.home.log_path(service.name),
        context=service.context(site),
    )
    state = state.with_service(service.name, started)
    save_state(site.home, state)
    return state


def _stop(service: Service, site: Site, state: StackState) -> StackState:
    stack_process.stop(
        state.services.get(service.name),
        service=service.name,
        stack_id=state.stack_id,
        patience_s=service.stop_patience_s,
    )
    state = state.with_service(service.name, None)
    save_state(site.home, state)
    return state


def _await_answers(
    services: Sequence[Service], site: Site, state: StackState, actions: Mapping[str, str]
) -> list[tuple[Service, str, float]]:
    """Wait until each service works; return it with what was done and the monotonic time of its answer.

    One that ran already but hangs is restarted once.
    """
    began_at = time.monotonic()
    final = dict(actions)
    answered_at: dict[str, float] = {}
    while pending := [service for service in services if service.name not in answered_at]:
        for service in pending:
            waited_s = time.monotonic() - began_at
            if service.is_ready(site):
                answered_at[service.name] = time.monotonic()
            elif not _is_alive(service, state):
                log_path = site.home.log_path(service.name)
                raise StackError(
                    f"{service.title} ended while starting: {_last_line(log_path)}; see {log_path}"
                )
            elif final[service.name] == "already running" and waited_s > _ANSWER_TIMEOUT_S:
                state = _start(service, site, _stop(service, site, state))
                final[service.name] = "restarted, because it did not answer"
            elif waited_s > _START_TIMEOUT_S:
                log_path = site.home.log_path(service.name)
                raise StackError(f"{service.title} gave no answer for {waited_s:.0f} s: see {log_path}")
        time.sleep(_POLL_S)
    return [(service, final[service.name], answered_at[service.name]) for service in services]


def _halt(service: Service, home: StackHome, state: StackState) -> ServiceReport | StackError:
    """Stop one service; a failure is returned, so that the others are stopped as well."""
    started_at = time.monotonic()
    try:
        num_stopped = stack_process.stop(
            state.services.get(service.name),
            service=service.name,
            stack_id=state.stack_id,
            patience_s=service.stop_patience_s,
        )
    except StackError as error:
        return error
    action = f"stopped {num_stopped} processes" if num_stopped else "was not running"
    seconds = time.monotonic() - started_at
    return replace(_describe(service, home, state, "stopped"), action=action, seconds=seconds)


def _last_line(log_path: Path) -> str:
    lines = [line.strip() for line in log_path.read_text(errors="replace").splitlines()]
    return next((line for line in reversed(lines) if line), "no output")


def _report(
    service: Service, site: Site, state: StackState, *, action: str = "", seconds: float = 0.0
) -> ServiceReport:
    if service.name not in state.services:
        found = "stopped"
    elif not _is_alive(service, state):
        found = "crashed"
    else:
        found = "running" if action or service.is_ready(site) else "not answering"
    return replace(_describe(service, site.home, state, found), action=action, seconds=seconds)


def _describe(service: Service, home: StackHome, state: StackState, found: str) -> ServiceReport:
    recorded = state.services.get(service.name)
    main_port = next(iter(service.ports))
    return ServiceReport(
        name=service.name,
        title=service.title,
        state=found,
        action="",
        url=f"http://127.0.0.1:{state.ports[main_port]}",
        pid=recorded.pid if recorded and found in ("running", "not answering") else None,
        log=str(home.log_path(service.name)),
        seconds=0.0,
    )
