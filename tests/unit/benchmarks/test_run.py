"""One benchmark's failure is one line, and never passes for an earlier run's success."""

import json
import sys
from pathlib import Path

import pytest

from tests.benchmarks import run
from tests.benchmarks.environment import describe, is_busy, one_line
from tests.benchmarks.venvs import BenchmarkError, ensure_venv, torch_requirements

REQUIREMENTS = Path(run.__file__).parent / "requirements"
WORKING = """
from tests.benchmarks.session import Session
session = Session.from_arguments("bench_ok", ["pytest"])
session.compare("sum", lambda: 1, lambda: 2, num_items=1, unit="samples/s", peer_version="p 1", repeats=2)
session.write()
"""


@pytest.fixture
def in_this_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Installing takes minutes: the benchmarks of these tests need no peer."""

    def here(*_: object) -> Path:
        return Path(sys.executable)

    monkeypatch.setattr(run, "ensure_venv", here)


@pytest.fixture
def benchmark_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make `python -m tests.benchmarks.NAME` find modules that a test writes into this folder."""
    folder = tmp_path / "tree" / "tests" / "benchmarks"
    folder.mkdir(parents=True)
    for source in Path(run.__file__).parent.glob("*.py"):
        (folder / source.name).write_text(source.read_text())
    monkeypatch.setattr(run, "REPOSITORY", tmp_path / "tree")
    monkeypatch.setattr(run, "BENCHMARKS", {"bench_bad": ("none",), "bench_ok": ("none",)})
    return folder


@pytest.mark.usefixtures("in_this_environment")
def test_a_failure_is_one_line_and_the_others_go_on(
    benchmark_module: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (benchmark_module / "bench_bad.py").write_text("raise RuntimeError('logits differ')\n")
    (benchmark_module / "bench_ok.py").write_text(WORKING)
    out = tmp_path / "out"
    out.mkdir()
    (out / "bench_bad.json").write_text("[]")
    assert run.main(["--out", str(out), "--threads", "1"]) == 1
    told = capsys.readouterr()
    assert len(told.err.splitlines()) == 1
    assert told.err.startswith("error: bench_bad: RuntimeError: logits differ (exit code 1; see ")
    assert "| sum |" in told.out
    assert not (out / "bench_bad.json").exists(), "an earlier run's results would pass for this one's"
    assert [row["row"] for row in json.loads((out / "bench_ok.json").read_text())] == ["sum"]
    environment = json.loads((out / "bench_ok.env.json").read_text())
    assert environment["num_threads"] == 1
    assert len(environment["repeats"]["sum"]["ours_s"]) == 2


@pytest.mark.usefixtures("in_this_environment")
def test_a_benchmark_that_writes_nothing_has_failed(
    benchmark_module: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (benchmark_module / "bench_ok.py").write_text("")
    assert run.main(["bench_ok", "--out", str(tmp_path / "out")]) == 1
    assert "bench_ok: it left no readable results" in capsys.readouterr().err


@pytest.mark.usefixtures("in_this_environment")
def test_a_killed_benchmark_is_named_as_such(
    benchmark_module: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its last line is one of progress, and said nothing of what went wrong."""
    source = "import os\nprint('half way', flush=True)\nos.kill(os.getpid(), 9)\n"
    (benchmark_module / "bench_ok.py").write_text(source)
    assert run.main(["bench_ok", "--out", str(tmp_path / "out")]) == 1
    assert "error: bench_ok: it was ended by signal 9" in capsys.readouterr().err


def test_unknown_benchmark(capsys: pytest.CaptureFixture[str]) -> None:
    assert run.main(["bench_modle"]) == 2
    assert "unknown benchmark 'bench_modle'; benchmarks: bench_model, " in capsys.readouterr().err


def test_threads_are_counted_from_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert run.main(["bench_model", "--threads", "0"]) == 2
    assert "--threads is 0; give at least 1" in capsys.readouterr().err


def fake_environment(folder: Path, requirements: str) -> Path:
    """Lay out what `ensure_venv` looks at in a finished environment: making a real one takes seconds."""
    python = folder / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.touch()
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    (folder / "installed-requirements.txt").write_text(f"# Python {version}\n{requirements}")
    return python


def test_an_installed_environment_is_used_again(tmp_path: Path) -> None:
    """Installing torch anew would take minutes at every run."""
    requirements = tmp_path / "bench_x.txt"
    requirements.write_text("torch==2.1\n")
    python = fake_environment(tmp_path / "venv", "torch==2.1\n")
    told: list[str] = []
    assert ensure_venv(tmp_path / "venv", requirements, tmp_path / "log", told.append) == python
    assert not told


def test_a_failed_installation_is_one_line(tmp_path: Path) -> None:
    """Other requirements make a new environment, and a half-made one is never taken for a whole one."""
    requirements = tmp_path / "bench_x.txt"
    requirements.write_text("not a requirement\n")
    old_python = fake_environment(tmp_path / "venv", "torch==2.1\n")
    old_python.with_name("left-over").touch()
    with pytest.raises(
        BenchmarkError, match=r"installing failed with exit code .*ERROR: Invalid requirement"
    ):
        ensure_venv(tmp_path / "venv", requirements, tmp_path / "log", lambda _: None)
    assert not old_python.with_name("left-over").exists()
    assert not (tmp_path / "venv" / "installed-requirements.txt").exists()


@pytest.mark.parametrize("name", sorted({venv for venvs in run.BENCHMARKS.values() for venv in venvs}))
def test_requirements_are_pinned(name: str) -> None:
    """A peer of another version is another comparison."""
    lines = (REQUIREMENTS / f"{name}.txt").read_text().splitlines()
    pinned = [line for line in lines if line and not line.startswith("#")]
    assert pinned
    assert all(line.count("==") == 1 for line in pinned)


def test_torch_comes_from_its_own_index() -> None:
    assert torch_requirements("# x\ntimm==1\ntorch==2.1\ntorchvision==0.1\n") == [
        "torch==2.1",
        "torchvision==0.1",
    ]


def test_a_busy_machine_is_named() -> None:
    environment = {**describe(num_threads=2, distributions=["pytest"]), "num_cores": 2}
    assert "BUSY" in one_line({**environment, "load_average_before": [1.5, 0.0, 0.0]})
    assert "BUSY" not in one_line({**environment, "load_average_before": [0.1, 9.0, 9.0]})
    assert not is_busy(0.5, 2)
