"""One real local stack for all tests that need services; each fixture adds what it needs to it."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from infra.local_stack import read_environment
from infra.stack_state import StackHome

REPOSITORY = Path(__file__).resolve().parents[1]
# A driver inside the test process names the cluster itself; otherwise every test that starts a
# Ray of its own would find this one.
_NOT_EXPORTED = ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS")


def pytest_configure() -> None:
    """Refuse what would hang: Ray, started by a test, cannot start workers from a path with spaces."""
    if " " in sys.prefix:
        raise pytest.UsageError(f"{sys.prefix} has a space in it: run make test, or the real path's python")


@dataclass(frozen=True, kw_only=True)
class Stack:
    """The folder of a local stack that runs."""

    home: Path

    @property
    def environment(self) -> dict[str, str]:
        """What a client needs, `RAY_ADDRESS` and `RAY_API_SERVER_ADDRESS` included."""
        return read_environment(self.home)

    def run(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run the command line on this stack."""
        return run_stack(self.home, *arguments, check=check)


def run_stack(home: Path, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "infra.local_stack", *arguments, "--home", str(home)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=280)
    if check and done.returncode != 0:
        raise AssertionError(f"{' '.join(command)} exited with {done.returncode}: {done.stdout}{done.stderr}")
    return done


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of 96 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=96k", "tmpfs", str(folder)]
    mounted = subprocess.run(mount, capture_output=True)
    if mounted.returncode != 0:
        pytest.skip(f"mounting needs root: {mounted.stderr.decode()}")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.fixture(scope="session")
def stack_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with a space in its name; whatever was started in it is stopped at the end."""
    home = tmp_path_factory.mktemp("local stack")
    before = dict(os.environ)
    yield home
    os.environ.clear()
    os.environ.update(before)
    run_stack(home, "down")
    shutil.rmtree(StackHome(root=home).ray_temp_dir.parent, ignore_errors=True)


@pytest.fixture(scope="session")
def object_store(stack_home: Path) -> Stack:
    """A stack with the object store alone: about a second."""
    return _up(stack_home, "s3")


@pytest.fixture(scope="session")
def tracking_stack(object_store: Stack) -> Stack:
    """A stack with the object store and MLflow."""
    return _up(object_store.home, "s3,mlflow")


@pytest.fixture(scope="session")
def stack(tracking_stack: Stack) -> Stack:
    """The whole stack, Ray included; its environment is exported, but for Ray's addresses."""
    return _up(tracking_stack.home, "s3,mlflow,ray")


def _up(home: Path, services: str) -> Stack:
    run_stack(home, "up", "--services", services)
    found = Stack(home=home)
    os.environ.update({name: value for name, value in found.environment.items() if name not in _NOT_EXPORTED})
    return found
