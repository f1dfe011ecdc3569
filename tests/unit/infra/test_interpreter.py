"""Ray cannot run from a path with spaces; the interpreter is called again through its real path."""

import subprocess
import sys
import venv
from pathlib import Path

_PROGRAM = """
import sys
from infra.interpreter import leave_path_with_spaces
leave_path_with_spaces()
print(sys.prefix, *sys.argv[1:], sep="|")
"""


def _run(python: Path) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [str(python), "-c", _PROGRAM, "an argument"], capture_output=True, text=True, check=False
    )


def test_a_link_with_spaces_is_left_for_the_real_path(tmp_path: Path) -> None:
    real = tmp_path / "real"
    venv.create(real)
    link = tmp_path / "a clone" / ".venv"
    link.parent.mkdir()
    link.symlink_to(real)
    done = _run(link / "bin" / "python")
    assert done.stdout == f"{real}|an argument\n", done.stderr


def test_a_real_path_with_spaces_is_bad_input(tmp_path: Path) -> None:
    """Ray's workers died with `bash: /tmp/w/fresh: No such file or directory`, far from the cause."""
    venv.create(tmp_path / "a clone" / ".venv")
    done = _run(tmp_path / "a clone" / ".venv" / "bin" / "python")
    assert done.returncode == 1
    assert "InputError: the Python environment" in done.stderr
    assert "make one in a path without spaces" in done.stderr


def test_a_path_without_spaces_is_kept() -> None:
    assert _run(Path(sys.executable)).stdout == f"{sys.prefix}|an argument\n"
