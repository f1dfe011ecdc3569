"""Run an entry point many times for the price of one import: each case in a process forked from here.

    python -m tests.entry_point_cases pipelines.retrain < cases.json > results.json

Importing torch, Ray and MLflow takes longer than a preflight; what a case does is what
`python pipelines/retrain.py OPTIONS` does. Nothing before the fork may start Ray or use boto3.
"""

import contextlib
import importlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pipelines.job import run_main
from tests.conftest import REPOSITORY

# A preflight takes a second or two. What passes it would go on to train: it is ended (exit code -14).
_CASE_TIMEOUT_S = 40


@dataclass(frozen=True, kw_only=True)
class Case:
    """One run: its options, and what its environment has that the others' has not."""

    options: list[str]
    environment: dict[str, str] = field(default_factory=dict[str, str])


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a run ended."""

    exit_code: int
    stdout: str
    stderr: str
    seconds: float


def run_cases(module: str, cases: Sequence[Case], environment: Mapping[str, str]) -> list[Outcome]:
    """Run the cases one after the other; return their outcomes in the same order."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.entry_point_cases", module],
        input=json.dumps([asdict(case) for case in cases]),
        cwd=REPOSITORY,
        env=dict(environment),
        capture_output=True,
        text=True,
        timeout=60 + _CASE_TIMEOUT_S * len(cases),
    )
    assert done.returncode == 0, done.stderr
    return [Outcome(**outcome) for outcome in json.loads(done.stdout)]


def _run_forked(module: Any, case: Case, folder: Path) -> Outcome:
    started = time.monotonic()
    streams = [folder / "stdout", folder / "stderr"]
    pid = os.fork()
    if pid == 0:
        signal.alarm(_CASE_TIMEOUT_S)
        with contextlib.ExitStack() as stack:
            for number, path in enumerate(streams, start=1):
                os.dup2(stack.enter_context(path.open("wb")).fileno(), number)
        os.environ.update(case.environment)
        sys.argv = [str(module.__file__), *case.options]
        code = 1  # of an interpreter that ends with a traceback
        try:
            run_main(module.main)
        except SystemExit as end:
            code = int(end.code or 0)
        except BaseException:
            sys.excepthook(*sys.exc_info())  # pyright: ignore[reportArgumentType]
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    _, status = os.waitpid(pid, 0)
    stdout, stderr = (path.read_text() for path in streams)
    return Outcome(
        exit_code=os.waitstatus_to_exitcode(status),
        stdout=stdout,
        stderr=stderr,
        seconds=time.monotonic() - started,
    )


def _main() -> None:
    module = importlib.import_module(sys.argv[1])
    cases = [Case(**case) for case in json.load(sys.stdin)]
    with tempfile.TemporaryDirectory() as folder:
        outcomes = [asdict(_run_forked(module, case, Path(folder))) for case in cases]
    json.dump(outcomes, sys.stdout)


if __name__ == "__main__":
    _main()
