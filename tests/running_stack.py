"""What the services of a local stack say of themselves, and their processes."""

import json
from pathlib import Path
from typing import Any

import psutil

from infra import stack_process
from infra.stack_state import StackHome, load_state
from tests.conftest import run_stack

SERVICES = ("s3", "mlflow", "ray")


def service_reports(home: Path, *arguments: str) -> dict[str, dict[str, Any]]:
    return json.loads(run_stack(home, *arguments, "--json", check=False).stdout)["services"]


def service_processes(home: Path) -> list[psutil.Process]:
    state = load_state(StackHome(root=home))
    return [
        process
        for name in SERVICES
        for process in stack_process.find_members(
            state.services.get(name), service=name, stack_id=state.stack_id
        )
    ]
