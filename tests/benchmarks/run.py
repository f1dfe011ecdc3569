"""Run the benchmarks, in environments of their own with the peers at pinned versions.

    python -m tests.benchmarks.run                # all
    python -m tests.benchmarks.run bench_model    # one; what `make bench ONLY=bench_model` does

Each prints a table and leaves build/bench/NAME.json (a list of rows) with NAME.env.json (machine, load,
versions, every repeat) beside it. A ratio above 1 means ours is better. A benchmark that fails ends
with one line, and the others go on; the exit code is then 1. Standard library only.
"""

import argparse
import contextlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import IO

from tests.benchmarks.environment import num_cores, one_line
from tests.benchmarks.report import format_table, read_rows
from tests.benchmarks.venvs import BenchmarkError, ensure_venv

REPOSITORY = Path(__file__).resolve().parents[2]
BENCHMARKS = {
    "bench_model": ("peers",),
    "bench_tar_reader": ("bench_tar_reader",),
    "bench_augment": ("bench_augment",),
    "bench_order": ("peers",),
    "bench_shuffle": ("peers",),
    "bench_shard": ("peers", "img2dataset"),
    "bench_loader": ("peers",),
    "bench_scale": ("bench_scale",),
}
"""The environments of each, named as their requirements; it runs in the first."""
_TIMEOUT_S = 1800
"""`bench_model`, which compiles, takes the longest: about ten minutes on two idle cores."""
# Read by OpenMP, MKL and OpenBLAS when they are loaded, so before Python starts.
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
# As in the product's jobs (pipelines/job.py), and for both sides: glibc otherwise gives the memory of each
# large tensor back and takes it anew, which halves the speed of either.
_ALLOCATOR = {
    "MALLOC_MMAP_THRESHOLD_": str(256 * 2**20),
    "MALLOC_TRIM_THRESHOLD_": str(4 * 2**30),
    "MALLOC_TOP_PAD_": str(64 * 2**20),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what is asked for; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.run", description="Run the benchmarks.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(BENCHMARKS)}; none: all")
    parser.add_argument(
        "--threads",
        type=int,
        default=num_cores(),
        help="of torch, where a benchmark is not per core (default: %(default)s)",
    )
    parser.add_argument("--torch-index", help="package index with the torch build you want")
    parser.add_argument(
        "--out", type=Path, default=REPOSITORY / "build" / "bench", help="folder of the results"
    )
    options = parser.parse_args(arguments)
    unknown = [name for name in options.names if name not in BENCHMARKS]
    if unknown or options.threads < 1:
        problem = (
            f"unknown benchmark {unknown[0]!r}; benchmarks: {', '.join(BENCHMARKS)}"
            if unknown
            else f"--threads is {options.threads}; give at least 1"
        )
        print(f"error: {problem}", file=sys.stderr)
        return 2
    failures = 0
    for name in options.names or list(BENCHMARKS):
        try:
            run_one(name, options.out.resolve(), options.threads, options.torch_index)
        except BenchmarkError as error:
            print(f"error: {name}: {error}", file=sys.stderr)
            failures += 1
    return 1 if failures else 0


def run_one(name: str, out: Path, threads: int, torch_index: str | None = None) -> None:
    """Run one benchmark and print its table. Raises `BenchmarkError`."""

    def announce(line: str) -> None:
        print(f"{name}: {line}", flush=True)

    results, log = out / f"{name}.json", out / f"{name}.log"
    # Results of an earlier run must not pass for those of a run that failed.
    for stale in (results, results.with_suffix(".env.json"), log):
        stale.unlink(missing_ok=True)
    requirements = Path(__file__).parent / "requirements"
    python, *_ = [
        ensure_venv(out / "venvs" / venv, requirements / f"{venv}.txt", log, announce, torch_index)
        for venv in BENCHMARKS[name]
    ]
    command = [
        str(python),
        "-m",
        f"tests.benchmarks.{name}",
        "--out",
        str(results),
        "--threads",
        str(threads),
    ]
    code = _run_logged(command, log, threads)
    if code < 0:
        raise BenchmarkError(f"it was ended by signal {-code} (it may take {_TIMEOUT_S} s); see {log}")
    if code != 0:
        raise BenchmarkError(f"{_last_line(log)} (exit code {code}; see {log})")
    try:
        rows = read_rows(results)
        environment = json.loads(results.with_suffix(".env.json").read_text())
    except (OSError, ValueError, TypeError) as error:
        raise BenchmarkError(f"it left no readable results: {error}; see {log}") from error
    print(f"\n{format_table(rows)}\n{one_line(environment)}\nwritten: {results}\n", flush=True)


def _run_logged(command: list[str], log: Path, threads: int) -> int:
    """Run a benchmark, its progress (stdout) on the terminal and in the log, its stderr in the log only."""
    environment = {
        **os.environ,
        **dict.fromkeys(_THREAD_VARIABLES, str(threads)),
        **_ALLOCATOR,
        "PYTHONPATH": str(REPOSITORY),  # The project's packages, whatever is installed.
        "PYTHONUNBUFFERED": "1",
        "HF_HUB_OFFLINE": "1",  # No weights are ever fetched.
    }
    log.parent.mkdir(parents=True, exist_ok=True)
    with (
        log.open("a") as errors,
        subprocess.Popen(
            command, cwd=REPOSITORY, env=environment, stdout=subprocess.PIPE, stderr=errors, text=True
        ) as process,
    ):
        watchdog = threading.Timer(_TIMEOUT_S, process.kill)
        watchdog.start()
        try:
            assert process.stdout is not None
            _copy_lines(process.stdout, errors)
            return process.wait()
        except BaseException:
            # Ctrl-C: the benchmark must not go on alone.
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            raise
        finally:
            watchdog.cancel()


def _copy_lines(source: IO[str], log: IO[str]) -> None:
    for line in source:
        print(line, end="", flush=True)
        log.write(line)
        log.flush()


def _last_line(log: Path) -> str:
    """Return the last line of the log: of a traceback, the exception."""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1] if lines else "no output"


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
