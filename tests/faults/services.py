"""Signals to the services of a local stack."""

import json
import signal

import psutil

from tests.conftest import Stack


def signal_service(stack: Stack, service: str, number: signal.Signals) -> None:
    """Send a signal to every process of a service."""
    pid = json.loads(stack.run("status", "--json", check=False).stdout)["services"][service]["pid"]
    first = psutil.Process(pid)
    for process in [*first.children(recursive=True), first]:
        process.send_signal(number)


def kill_object_store(stack: Stack) -> None:
    """End it as a power cut would; `stack.run("up", "--services", "s3")` starts it again."""
    signal_service(stack, "s3", signal.SIGKILL)
