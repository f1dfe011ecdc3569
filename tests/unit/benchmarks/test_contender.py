"""One side of a comparison answers from its own process, and its end is one line."""

import os
import sys
from pathlib import Path

import pytest

from tests.benchmarks.contender import Contender
from tests.benchmarks.venvs import BenchmarkError

_MODULE = """
import os, sys
from tests.benchmarks.contender import serve, timed

def work(number):
    print("a library that prints", flush=True)
    return {"double": 2 * number, "cores": len(os.sched_getaffinity(0)), "name": sys.argv[1]}

serve({
    "work": lambda number: timed(lambda: work(number)),
    "fail": lambda: 1 / 0,
    "use_cpu": lambda: {"total": sum(range(3_000_000))},
})
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "some_contender.py").write_text(_MODULE)
    repository = Path(__file__).resolve().parents[3]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), str(repository)]))
    return "some_contender"


def start(module: str) -> Contender:
    return Contender("ours", module, cores=sorted(os.sched_getaffinity(0))[:1], python=Path(sys.executable))


def test_answers_come_beside_what_libraries_print(module: str) -> None:
    with start(module) as contender:
        answer = contender.ask("work", number=21)
        assert (answer["double"], answer["cores"], answer["name"]) == (42, 1, "ours")
        assert 0 <= contender.timed("work", number=1)() < 60
        assert contender.cpu_s("use_cpu") > 0
        assert contender.peak_memory_mb("use_cpu") > 1


def test_an_end_names_the_contender_and_the_command(module: str) -> None:
    """Its traceback goes to stderr, which is the benchmark's log."""
    with (
        start(module) as contender,
        pytest.raises(BenchmarkError, match="ours ended at 'fail' with exit code 1"),
    ):
        contender.ask("fail")


def test_leaving_ends_the_process(module: str) -> None:
    with start(module) as contender:
        contender.ask("work", number=1)
    with pytest.raises((BenchmarkError, ValueError)):
        contender.ask("work", number=1)
