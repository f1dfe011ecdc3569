"""Ray splits its workers' command line at spaces: the interpreter's path must have none."""

import os
import sys
from pathlib import Path

from data.errors import InputError


def leave_path_with_spaces() -> None:
    """Start this process again through the environment's real path if the one it was called by has spaces.

    `make` puts the environment of a clone with spaces in its path elsewhere and makes `.venv` a link to it.
    Call it first of all: it does not return where it starts the process again.

    Raises:
        InputError: the real path has spaces too.
    """
    if " " not in sys.prefix:
        return
    real = Path(sys.prefix).resolve()
    if " " in str(real):
        raise InputError(
            f"the Python environment {real} has a space in its path, which Ray cannot run from: "
            "remove it and let make venv put it elsewhere, or make one in a path without spaces"
        )
    program = str(real / "bin" / Path(sys.executable).name)
    os.execv(program, [program, *sys.orig_argv[1:]])
