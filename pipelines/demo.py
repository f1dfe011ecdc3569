"""The whole product on this machine: local stack, real images, one submitted job, a report.

make demo            # or: python -m pipelines.demo [options of pretrain_finetune.py]
"""

import json
import os
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path

from infra.local_stack import ALL_NAMES, default_home, read_environment, up
from pipelines.cifar10 import default_cache_dir, fetch_cifar10
from pipelines.config import parse_run_config
from pipelines.job import REPOSITORY, announce, code_version, run_main

DEFAULT_OPTIONS = ["--config", "pipelines/configs/demo.yaml"]
_STOP_TIMEOUT_S = 180
# What `ray job submit` says about itself, between the lines of the job.
_RAYS_OWN_LINE = re.compile(
    r"\d{4}-\d\d-\d\d [\d:,]+\t(INFO|SUCC|WARNING|ERR) \w+\.py:\d+ -- "
    # Ray Train starts this actor in a way that Ray itself calls an error, in every run.
    r"|\[\d{4}-\d\d-\d\d [\d:,]+ E \d+ \d+\] core_worker\.cc:\d+: Actor with class name: 'PreemptionWatcher'"
)


def main(options: list[str]) -> int:
    """Run the demo; options go to the job."""
    if not any(option == "--config" or option.startswith("--config=") for option in options):
        options = [*DEFAULT_OPTIONS, *options]
    os.chdir(REPOSITORY)
    config = parse_run_config(options, "The demo: see pipelines/pretrain_finetune.py.")
    home = default_home()
    announce("stack: starting object store, MLflow and Ray on this machine")
    up(home, names=ALL_NAMES, explicit_ports={}, tell=announce)
    environment = {**os.environ, **read_environment(home)}
    if config.corpus == "cifar10":
        announce(f"images: {fetch_cifar10(default_cache_dir(), announce)}")
    command = job_command(options)
    started = time.monotonic()
    code = run_job(command, environment)
    if code == 0:
        announce(report(environment, command, config.runtime.model_name, time.monotonic() - started))
    return code


def job_command(options: list[str]) -> list[str]:
    """Return the command that submits the main job."""
    # A submitted job has the code, but not the repository that knows its commit.
    environment = json.dumps({"env_vars": {"COATNET_CODE_VERSION": code_version()}})
    return [
        *("ray", "job", "submit", "--working-dir", ".", "--runtime-env-json", environment),
        *("--submission-id", f"coatnet-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"),
        *("--", "python", "pipelines/pretrain_finetune.py"),
        *options,
    ]


def run_job(command: list[str], environment: dict[str, str]) -> int:
    """Submit and follow the job; Ctrl-C stops it, and what is finished stays."""
    announce(f"$ {shlex.join(command)}")
    program = str(Path(sys.executable).with_name("ray"))
    # A session of its own: the terminal's Ctrl-C reaches us alone, and we stop the job itself.
    follower = subprocess.Popen(
        [program, *command[1:]],
        env=environment,
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert follower.stdout is not None
    try:
        for line in follower.stdout:
            if line.startswith("Job entrypoint") or "cli.py:75" in line:
                break
            if not _RAYS_OWN_LINE.match(line):
                announce(line.rstrip())
        return follower.wait()
    except KeyboardInterrupt:
        announce("\nstopping the job at the next step, with a checkpoint")
        submission_id = command[command.index("--submission-id") + 1]
        stop = [program, "job", "stop", submission_id]
        subprocess.run(stop, env=environment, timeout=_STOP_TIMEOUT_S, check=False, stdout=subprocess.DEVNULL)
        follower.wait(timeout=_STOP_TIMEOUT_S)
        announce("stopped; make demo goes on from here")
        return 130


def report(environment: dict[str, str], command: list[str], model_name: str, seconds: float) -> str:
    """Return what to look at next."""
    url = environment["MLFLOW_TRACKING_URI"]
    return "\n".join(
        [
            "",
            f"The job took {seconds:.0f} s. It was: {shlex.join(command)}",
            f"Review the promotion   {url}/#/models/{model_name}?workflowType=machine_learning",
            f"Log in                 {environment['MLFLOW_TRACKING_USERNAME']} / "
            f"{environment['MLFLOW_TRACKING_PASSWORD']}",
            f"Ray dashboard          {environment['RAY_API_SERVER_ADDRESS']}",
            "Stop everything        make down   (data stays in .local; make clean removes it)",
        ]
    )


if __name__ == "__main__":
    run_main(main)
