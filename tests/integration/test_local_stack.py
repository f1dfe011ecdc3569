"""A running local stack with its real services: what it promises about secrets, addresses and crashes."""

import base64
import json
import os
import signal
import stat
import subprocess
import sys
import time
import urllib.error
import urllib.request

import psutil
import pytest

from infra.stack_state import StackHome, load_secrets, load_state
from infra.store import open_store
from tests.conftest import REPOSITORY, Stack
from tests.running_stack import SERVICES, service_processes, service_reports

pytestmark = pytest.mark.integration


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
        reports = service_reports(stack.home, "up")
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
            for process in service_processes(stack.home)
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
        members = service_processes(stack.home)
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

        reports = service_reports(stack.home, "up")
        assert reports[name]["action"] == "restarted after a crash, data kept"
        assert {reports[other]["action"] for other in SERVICES if other != name} == {"already running"}
        after = load_state(StackHome(root=stack.home))
        assert after.ports == before.ports
        assert stack.run("status").returncode == 0
        assert store.get(name) == b"kept"
        assert _answer_code(f"{api}/get-by-name?experiment_name=crash-{name}", login) == 200

    @pytest.mark.slow
    def test_a_dead_gcs_takes_ray_down_and_is_seen(self, stack: Stack) -> None:
        gcs = next(process for process in service_processes(stack.home) if process.name() == "gcs_server")
        gcs.kill()
        _wait_until_crashed(stack, "ray")
        assert service_reports(stack.home, "up")["ray"]["action"] == "restarted after a crash, data kept"


def _wait_until_crashed(stack: Stack, name: str) -> None:
    deadline = time.monotonic() + 60
    while (found := service_reports(stack.home, "status")[name]["state"]) != "crashed":
        assert time.monotonic() < deadline, f"{name} is {found}"
