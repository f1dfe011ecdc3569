"""A real object store, an MLflow server and a Ray head on this machine, on loopback.

    python -m infra.local_stack up|status|down [--home DIR] [--json]

`up` starts what does not run, keeps all data, and may be repeated. `status` exits with 0 when all
runs, else 3. `down` stops exactly what `up` started. Bad input exits with 2, a service that will
not start or stop with 1.
"""

import argparse
import json
import os
import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from data.errors import InputError
from infra.interpreter import leave_path_with_spaces
from infra.stack_control import ServiceReport, down, status, up
from infra.stack_process import StackError
from infra.stack_services import SERVICES
from infra.stack_state import StackHome, read_environment

__all__ = ["ServiceReport", "StackError", "default_home", "down", "main", "read_environment", "status", "up"]

ALL_NAMES = tuple(service.name for service in SERVICES)
_EXIT_NOT_RUNNING = 3
# The names of the options, and the port each sets.
_PORT_OPTIONS = {"s3": "s3", "mlflow": "mlflow", "dashboard": "ray_dashboard", "gcs": "ray_gcs"}


def default_home() -> Path:
    """Return `COATNET_HOME`, or `.local/stack` below the repository's root."""
    given = os.environ.get("COATNET_HOME")
    return Path(given).absolute() if given else Path(__file__).resolve().parents[1] / ".local" / "stack"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code."""
    options = _build_parser().parse_args(arguments)
    try:
        return _run(options)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except StackError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted: what was started keeps running; stop it with down", file=sys.stderr)
        return 130


def _run(options: argparse.Namespace) -> int:
    home: Path = options.home or default_home()
    if options.command == "down":
        _show(down(home, tell=_tell), home, as_json=options.json)
        return 0
    if options.command == "up":
        leave_path_with_spaces()
    names = _parse_names(options.services)
    if options.command == "status":
        reports = status(home, names=names)
        _show(reports, home, as_json=options.json)
        return 0 if all(report.state == "running" for report in reports) else _EXIT_NOT_RUNNING
    given = {port: getattr(options, f"{option}_port") for option, port in _PORT_OPTIONS.items()}
    explicit = {name: port for name, port in given.items() if port is not None}
    _show(up(home, names=names, explicit_ports=explicit, tell=_tell), home, as_json=options.json)
    return 0


def _parse_names(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",") if name.strip()]
    unknown = [name for name in names if name not in ALL_NAMES]
    if unknown or not names:
        raise InputError(f"--services {text!r} is not known: give some of {','.join(ALL_NAMES)}")
    return names


def _show(reports: Sequence[ServiceReport], home: Path, *, as_json: bool) -> None:
    credentials = StackHome(root=home.absolute()).credentials_path
    if as_json:
        services = {report.name: asdict(report) for report in reports}
        found = {"home": str(home.absolute()), "credentials": str(credentials), "services": services}
        print(json.dumps(found, indent=1))
        return
    for report in reports:
        took = f" in {report.seconds:.1f} s" if report.seconds >= 0.1 else ""
        what = f"{report.action}{took}" if report.action else report.state
        where = report.url if report.state in ("running", "not answering") else f"log: {report.log}"
        print(f"{report.title:<13} {what:<34} {where}")
    if any(report.state == "running" for report in reports):
        print(f"logs          {credentials.parent / 'logs'}")
        print(f"credentials   set -a; . {shlex.quote(str(credentials))}; set +a")


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m infra.local_stack", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    commands = parser.add_subparsers(dest="command", required=True)
    for name, purpose in (
        ("up", "start what does not run"),
        ("status", "show each part"),
        ("down", "stop what up started"),
    ):
        command = commands.add_parser(name, help=purpose)
        command.add_argument(
            "--home", type=Path, help="folder of the stack (default: COATNET_HOME or .local/stack)"
        )
        command.add_argument("--json", action="store_true", help="print the result as JSON")
        if name != "down":
            command.add_argument("--services", default=",".join(ALL_NAMES), help="some of %(default)s")
        if name == "up":
            for option in _PORT_OPTIONS:
                command.add_argument(f"--{option}-port", type=int, help="insist on this port")
    return parser


if __name__ == "__main__":
    sys.exit(main())
