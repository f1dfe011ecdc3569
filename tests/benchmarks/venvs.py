"""A virtual environment for each benchmark, made once from its pinned requirements.

The peers stay out of the product's environment: timm needs a torchvision that fits another torch than
the product's constraints name. Standard library only: it runs in the product's environment.
"""

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

_INSTALL_TIMEOUT_S = 3600
_NEEDED_FREE_GB = 8.0
"""torch for CUDA, which is what pip takes by default on Linux, unpacks to more than 5 GB."""
_STAMP = "installed-requirements.txt"


class BenchmarkError(Exception):
    """A benchmark cannot run or failed; the message is one line for the user."""


def ensure_venv(
    folder: Path,
    requirements: Path,
    log: Path,
    announce: Callable[[str], None],
    torch_index: str | None = None,
) -> Path:
    """Return the Python of an environment that holds exactly these requirements.

    An environment of other requirements is made anew; an interrupted installation goes on. The stamp
    is written last. `torch_index` is a package index with the build of torch wanted (CPU, CUDA x).
    """
    python = folder / "bin" / "python"
    wanted = f"# Python {sys.version_info.major}.{sys.version_info.minor}\n{requirements.read_text()}"
    stamp = folder / _STAMP
    if python.exists() and stamp.is_file() and stamp.read_text() == wanted:
        return python
    if stamp.is_file():
        shutil.rmtree(folder)
    _check_disk(folder.parent)
    announce(f"installing {requirements.name} into {folder} (minutes the first time)")
    _run([sys.executable, "-m", "venv", str(folder)], log)
    pip = [str(python), "-m", "pip", "install", "--disable-pip-version-check", "--quiet"]
    if torch_index:
        _run([*pip, "--index-url", torch_index, *torch_requirements(requirements.read_text())], log)
    _run([*pip, "-r", str(requirements)], log)
    stamp.write_text(wanted)
    return python


def torch_requirements(requirements: str) -> list[str]:
    """Return the lines that must come from torch's own index."""
    lines = (line.strip() for line in requirements.splitlines())
    return [line for line in lines if line.partition("=")[0] in ("torch", "torchvision")]


def _check_disk(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    free_gb = shutil.disk_usage(folder).free / 1e9
    if free_gb < _NEEDED_FREE_GB:
        raise BenchmarkError(
            f"{free_gb:.1f} GB free at {folder}; the environment may need {_NEEDED_FREE_GB:.0f} GB: "
            "free some, or remove environments of other benchmarks there"
        )


def _run(command: list[str], log: Path) -> None:
    """Run a command into the log; its last line that speaks of an error becomes the message."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a") as output:
        output.write(f"$ {' '.join(command)}\n")
        output.flush()
        start = output.tell()
        try:
            code = subprocess.run(
                command, stdout=output, stderr=subprocess.STDOUT, check=False, timeout=_INSTALL_TIMEOUT_S
            ).returncode
        except subprocess.TimeoutExpired:
            raise BenchmarkError(f"installing took more than {_INSTALL_TIMEOUT_S} s; see {log}") from None
    if code != 0:
        with log.open() as written:
            written.seek(start)
            lines = [line.strip() for line in written if line.strip()]
        errors = [line for line in lines if line.lower().startswith("error")] or lines or ["no output"]
        raise BenchmarkError(f"installing failed with exit code {code} ({errors[-1]}); see {log}")
