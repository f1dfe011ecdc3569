import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.errors import InputError
from infra.stack_state import (
    ServiceState,
    StackHome,
    StackState,
    load_secrets,
    load_state,
    read_environment,
    save_state,
    write_environment,
)


@pytest.fixture
def home(tmp_path: Path) -> StackHome:
    made = StackHome(root=tmp_path / "a stack's home")
    made.make()
    return made


@settings(deadline=None, max_examples=20)
@given(value=st.text(st.characters(codec="utf-8", exclude_characters="\0\r"), max_size=30))
def test_python_reads_what_was_written(value: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    home = StackHome(root=tmp_path_factory.mktemp("home"))
    write_environment(home, {"A": value, "B": "x"})
    assert read_environment(home.root) == {"A": value, "B": "x"}


def test_a_shell_reads_the_same(home: StackHome) -> None:
    value = 'it\'s $HOME `id` "x" #no \\ end'
    write_environment(home, {"COATNET_PROBE": value})
    script = 'set -a; . "$1"; exec "$2" -c "import os; print(os.environ[\'COATNET_PROBE\'])"'
    done = subprocess.run(
        ["sh", "-c", script, "sh", home.credentials_path, sys.executable],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == value + "\n"


def test_no_stack_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"start the local stack first, with python -m infra.local_stack up"):
        read_environment(tmp_path)


def test_secrets_are_made_once(home: StackHome) -> None:
    assert load_secrets(home) == load_secrets(home)


def test_lost_secrets_are_not_replaced_under_a_database_that_needs_them(home: StackHome) -> None:
    """MLflow keeps the first admin password in its database and would refuse a new one."""
    load_secrets(home)
    (home.root / "mlflow" / "auth.db").write_bytes(b"")
    (home.root / "secrets.json").unlink()
    with pytest.raises(InputError, match=r"secrets.json is gone"):
        load_secrets(home)


def test_state_comes_back(home: StackHome) -> None:
    service = ServiceState(pid=1, started_at=2.5, context={"s3": "http://x"})
    state = StackState(ports={"s3": 8333}).with_service("ray", service)
    save_state(home, state)
    assert load_state(home) == state
    assert load_state(home).with_service("ray", None).services == {}


def test_a_broken_state_file_is_one_clear_line(home: StackHome) -> None:
    (home.root / "state.json").write_text("{")
    with pytest.raises(InputError, match="delete it and run up again"):
        load_state(home)


def test_rays_socket_paths_fit_whatever_the_homes_path(tmp_path: Path) -> None:
    """A Unix socket's path holds 107 bytes (103 on macOS); Ray fails late and obscurely beyond."""
    home = StackHome(root=tmp_path / ("long and with spaces " * 5) / "é")
    socket_path = (
        home.ray_temp_dir / "session_2026-11-22_11-56-04_255129_4194304" / "sockets" / "plasma_store"
    )
    assert len(str(socket_path).encode()) <= 103
    assert " " not in str(socket_path)
