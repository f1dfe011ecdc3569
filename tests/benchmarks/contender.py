"""One side of a comparison in a process of its own, so that its cores, memory and CPU time are its own.

The parent asks, one JSON object a line; the child answers with one, timing its own work. Standard
library only: some peers need an environment of their own.
"""

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from tests.benchmarks import process_tree
from tests.benchmarks.venvs import BenchmarkError

_STOP_PATIENCE_S = 20


class Contender:
    """The parent's end. A context manager: leaving it kills the process and all that it started."""

    def __init__(
        self,
        name: str,
        module: str,
        *,
        cores: Collection[int],
        python: Path = Path(sys.executable),
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """Start `python -m module name` on these cores; more environment variables may be given."""
        self.name = name
        self._process = subprocess.Popen(
            ["taskset", "-c", ",".join(str(core) for core in sorted(cores)), python, "-m", module, name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **(environment or {})},
        )

    def ask(self, command: str, **arguments: Any) -> dict[str, Any]:
        """Run one of the child's commands. Raises `BenchmarkError` if the child ends instead."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):  # It has ended: the missing answer below says so.
            self._process.stdin.write(json.dumps({"command": command, **arguments}) + "\n")
            self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            code = self._process.wait()
            raise BenchmarkError(f"{self.name} ended at {command!r} with exit code {code}")
        return json.loads(answer)

    def timed(self, command: str, **arguments: Any) -> Callable[[], float]:
        """Return a call that asks for `command` and returns the seconds that the child measured."""
        return lambda: float(self.ask(command, **arguments)["seconds"])

    def peak_memory_mb(self, command: str, **arguments: Any) -> float:
        """Return the largest memory of the process tree while it runs a command."""
        with process_tree.PeakMemory(self._process.pid) as peak:
            self.ask(command, **arguments)
        return peak.mb

    def cpu_s(self, command: str, **arguments: Any) -> float:
        """Return the CPU seconds of the process tree while it runs a command."""
        before_s = process_tree.cpu_s(self._process.pid)
        self.ask(command, **arguments)
        return process_tree.cpu_s(self._process.pid) - before_s

    def __enter__(self) -> "Contender":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process.stdin is not None
        tree = process_tree.descendants(self._process.pid)
        self._process.stdin.close()  # The child's loop ends, and it stops its services.
        try:
            self._process.wait(_STOP_PATIENCE_S)
        except subprocess.TimeoutExpired:
            process_tree.kill_tree(self._process.pid)
            self._process.wait()
        for pid in tree[1:]:
            process_tree.kill_tree(pid)
        assert self._process.stdout is not None
        self._process.stdout.close()


def serve(commands: Mapping[str, Callable[..., Mapping[str, Any]]]) -> None:
    """Answer the parent until it closes the pipe; what libraries print goes to stderr."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    for line in sys.stdin:
        arguments = json.loads(line)
        answer = commands[arguments.pop("command")](**arguments)
        print(json.dumps(answer), file=answers, flush=True)


def timed(work: Callable[[], Mapping[str, Any]]) -> dict[str, Any]:
    """Run `work`; return what it returned, and its `seconds`."""
    start_s = time.perf_counter()
    result = work()
    return {**result, "seconds": time.perf_counter() - start_s}
