"""A stop on request: a checkpoint at that very step, exit code 130, and the same command goes on."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from infra.stack_site import get_body
from pipelines.demo import job_command
from tests.conftest import REPOSITORY
from tests.faults.jobs import MAIN_JOB, STEPS_PER_EPOCH, Job, assert_same_result, end, first_steps
from tests.faults.tracking import curve, statuses

pytestmark = [
    pytest.mark.integration,
    pytest.mark.faults,
    pytest.mark.slow,
    pytest.mark.timeout(1200),
    # Ray's own use of what it deprecated itself.
    pytest.mark.filterwarnings("ignore:`use_:DeprecationWarning"),
]
_STOPPED = re.compile(
    rf"stopped: pretrain stopped after step (\d+)/{STEPS_PER_EPOCH} of epoch 2; run the same"
)


def stopped_at(log: str) -> int:
    """Return the global step that the log's last words name."""
    found = _STOPPED.search(log)
    assert found is not None, log
    return STEPS_PER_EPOCH + int(found[1])


def test_ctrl_c_stops_at_a_checkpoint_and_loses_nothing(
    make_job: Callable[..., Job], undisturbed: Job
) -> None:
    """The job's own MLflow run stayed RUNNING for ever; a curve's point lost what it saw before a stop."""
    job = make_job("ctrl-c")
    driver = job.start()
    try:
        frozen = job.freeze_in_mid_epoch(partial(job.wait_for, driver))
        os.kill(driver.pid, signal.SIGINT)
        job.wait_for(driver, lambda: "SIGINT: stopping after this step" in job.log)
        time.sleep(2)  # for the workers to hear of it
        os.kill(frozen, signal.SIGCONT)
        log = job.finish(driver, code=130)
    finally:
        end(driver)
    stopped = stopped_at(log)
    assert job.checkpoints()[-1] == stopped
    assert "Traceback" not in log
    assert statuses(job) == {"job": "KILLED", "shard": "FINISHED", "pretrain": "KILLED"}
    job.run()
    assert first_steps(job) == {0: [0, stopped], 1: [0, stopped]}
    assert len(job.audit()) == len(undisturbed.audit()), "a step was taken twice"
    assert_same_result(job, undisturbed)
    assert set(statuses(job).values()) == {"FINISHED"}
    for metric in ("train/loss", "train/gradient_norm", "eval/top1"):
        assert curve(job, metric) == curve(undisturbed, metric)


class Submitted:
    """A job under Ray's own care; the command is `make demo`'s."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.id = f"{job.name}-{len(job.logs)}"
        command = job_command(job.options)
        command[command.index("--submission-id") + 1] = self.id
        command.insert(command.index("--"), "--no-wait")
        self._ray(*command[1:])

    def _ray(self, *arguments: str) -> str:
        program = str(Path(sys.executable).with_name("ray"))
        environment = {**os.environ, **self.job.environment}
        done = subprocess.run(
            [program, *arguments],
            cwd=REPOSITORY,
            env=environment,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def stop(self) -> None:
        """`ray job stop`; it waits until the job has ended."""
        self._ray("job", "stop", self.id)

    def status(self) -> str:
        return self._ask(f"/api/jobs/{self.id}")["status"]

    def log(self) -> str:
        return self._ask(f"/api/jobs/{self.id}/logs")["logs"]

    def _ask(self, path: str) -> Any:
        # Not through the command line, which starts for seconds.
        environment = self.job.environment
        token = Path(environment["RAY_AUTH_TOKEN_PATH"]).read_text().strip()
        url = environment["RAY_API_SERVER_ADDRESS"] + path
        answer = get_body(url, {"Authorization": f"Bearer {token}"})
        assert answer is not None, f"{url} does not answer"
        return json.loads(answer)

    def wait_for(self, happened: Callable[[], bool], timeout_s: float = 400) -> None:
        deadline = time.monotonic() + timeout_s
        while not happened():
            assert time.monotonic() < deadline, self.log()
            time.sleep(0.1)


def test_ray_job_stop_leaves_a_job_that_goes_on(make_job: Callable[..., Job], undisturbed: Job) -> None:
    """Ray killed the driver 3 s after asking it to stop: before its workers had stored a checkpoint."""
    job = make_job("job-stop", program=MAIN_JOB)
    first = Submitted(job)
    frozen = job.freeze_in_mid_epoch(first.wait_for)
    with ThreadPoolExecutor(1) as pool:
        stopping = pool.submit(first.stop)
        first.wait_for(lambda: "SIGINT: stopping after this step" in first.log())
        time.sleep(5)  # longer than Ray's own patience
        os.kill(frozen, signal.SIGCONT)
        stopping.result()
    assert first.status() == "STOPPED"
    newest = stopped_at(first.log())
    assert job.checkpoints()[-1] == newest
    assert statuses(job)["job"] == statuses(job)["pretrain"] == "KILLED"
    job.wait_until_alone()
    job.logs.append(job.folder / "submitted")
    second = Submitted(job)
    second.wait_for(lambda: second.status() in ("SUCCEEDED", "FAILED"), timeout_s=600)
    assert second.status() == "SUCCEEDED", second.log()
    assert first_steps(job) == {0: [0, newest], 1: [0, newest]}
    assert_same_result(job, undisturbed)
    assert set(statuses(job).values()) == {"FINISHED"}
    assert "PROMOTED" in second.log()
