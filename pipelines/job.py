"""What every entry point shares: error lines, exit codes, Ray, MLflow runs around stages."""

import logging
import os
import subprocess
import sys
from collections.abc import Callable, Generator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from mlflow.exceptions import MlflowException
from ray.exceptions import RayError

from coatnet.loop import TrainingStoppedError
from coatnet.step import NonFiniteLossError
from data.errors import InputError
from data.snapshot import SnapshotConflictError
from data.store import StoreError, StoreRefusedError
from data.temporary_folder import TemporaryFolderFullError
from infra.interpreter import leave_path_with_spaces
from infra.ray_runtime import WorkersFailedError
from infra.stop_signals import interrupt_on_stop_signals
from infra.tracking import RunRef, Tracker, find_or_create_run
from infra.tracking_check import without_login
from pipelines.fingerprint import plain
from pipelines.stage import Workspace

EXIT_FAILED = 1
EXIT_BAD_INPUT = 2
EXIT_STOPPED = 130
# What is left of a fault after all retries; anything else is a bug and shows its traceback.
_FAULTS = (
    WorkersFailedError,
    NonFiniteLossError,
    StoreError,
    SnapshotConflictError,
    MlflowException,
    RayError,
)
# glibc gives large buffers back to the system and faults them in again for every batch: up to half of the
# time of decoding and augmentation, and 5% of a training step that frees 2 GB at its end. Bytes.
_MALLOC = {
    "MALLOC_MMAP_THRESHOLD_": str(256 * 2**20),
    "MALLOC_TRIM_THRESHOLD_": str(4 * 2**30),
    "MALLOC_TOP_PAD_": str(64 * 2**20),
}
REPOSITORY = Path(__file__).resolve().parent.parent


def announce(line: str) -> None:
    """Print a line of the job's log at once."""
    print(line, flush=True)


def run_main(main: Callable[[list[str]], int]) -> None:
    """Run an entry point: bad input is one line and exit code 2, a fault 1, a stop 130.

    2 is for what a person must change, so also for a full disk and for missing rights.
    """
    interrupt_on_stop_signals()
    try:
        leave_path_with_spaces()
        code = main(sys.argv[1:])
    except InputError as error:
        _say(f"error: {error}")
        code = EXIT_BAD_INPUT
    except (StoreRefusedError, TemporaryFolderFullError) as error:
        _say(f"error: {error}; mend that, and run the same command to go on")
        code = EXIT_BAD_INPUT
    except _FAULTS as error:
        for note in getattr(error, "__notes__", []):
            print(without_login(note), file=sys.stderr)
        _say(f"failed: {error}; run the same command to go on")
        code = EXIT_FAILED
    except TrainingStoppedError as error:
        _say(f"stopped: {error}")
        code = EXIT_STOPPED
    except KeyboardInterrupt:
        _say("stopped: run the same command to go on")
        code = EXIT_STOPPED
    sys.exit(code)


def _say(text: str) -> None:
    """Print a job's last line; an error of MLflow's may quote the tracking URI with its password."""
    print(without_login(" ".join(text.split())), file=sys.stderr, flush=True)


def connect_to_ray() -> None:
    """Join the cluster this process belongs to; without one, start Ray on this machine.

    A submitted job's runtime environment carries this code to the workers; a process started by
    hand sends the repository itself. Repeating it is fine.
    """
    if ray.is_initialized():
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    logging.getLogger("mlflow").setLevel(logging.WARNING)
    # Actors of Ray Train look for their own cluster: with two on one machine they need its address.
    address = {name: value for name, value in os.environ.items() if name == "RAY_ADDRESS"}
    runtime_env: dict[str, Any] = {"env_vars": _MALLOC | address}
    is_submitted = "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ
    if not is_submitted:
        # .gitignore and .rayignore keep data, caches, .venv and .git out of what is sent; Ray's own list
        # of such folders comes with a warning.
        os.environ.setdefault("RAY_OVERRIDE_RUNTIME_ENV_DEFAULT_EXCLUDES", "")
        runtime_env["working_dir"] = str(REPOSITORY)
    ray.init(
        logging_level=logging.WARNING,
        # The workers' warnings and errors belong in the job's log; what Ray and boto3 tell of
        # themselves does not.
        logging_config=ray.LoggingConfig(log_level="WARNING"),
        runtime_env=runtime_env,
        include_dashboard=None if is_submitted or "RAY_ADDRESS" in os.environ else False,
    )
    interrupt_on_stop_signals()


def check_resources(num_workers: int, cpus_per_worker: float, use_gpu: bool) -> None:
    """Raise InputError if the cluster can never hold the workers."""
    have = ray.cluster_resources()
    for name, wanted in (("CPU", num_workers * cpus_per_worker), ("GPU", num_workers if use_gpu else 0)):
        if wanted > have.get(name, 0):
            raise InputError(
                f"{num_workers} workers need {wanted:g} {name}s; the cluster has {have.get(name, 0):g}: "
                f"lower runtime.num_workers or add nodes"
            )


def code_version() -> str:
    """Return the git commit this code is, or `unknown` where there is no repository."""
    if given := os.environ.get("COATNET_CODE_VERSION"):
        return given
    command = ["git", "-C", str(REPOSITORY), "describe", "--always", "--dirty"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return "unknown"


@dataclass(frozen=True, kw_only=True)
class TrackedJob:
    """One MLflow run for the job, with a nested run for each stage that is computed."""

    tracking_uri: str
    experiment: str
    parent: RunRef
    parameters: Mapping[str, Any]

    @staticmethod
    def start(
        *, tracking_uri: str, experiment: str, key: str, name: str, parameters: Mapping[str, Any]
    ) -> "TrackedJob":
        """Open the job's run, or the one it had before it was stopped."""
        parent = find_or_create_run(
            tracking_uri=tracking_uri,
            experiment=experiment,
            identity={"coatnet.job": key},
            name=name,
            tags={"code.version": code_version()},
        )
        tracker = Tracker(parent)
        tracker.log_params(parameters)
        tracker.log_json("config.json", plain(parameters))
        tracker.close()
        return TrackedJob(
            tracking_uri=tracking_uri, experiment=experiment, parent=parent, parameters=parameters
        )

    def stage_run(self, workspace: Workspace) -> RunRef:
        """Return the stage's own run below the job's."""
        return find_or_create_run(
            tracking_uri=self.tracking_uri,
            experiment=self.experiment,
            identity={
                "coatnet.stage_fingerprint": workspace.stage.fingerprint,
                "mlflow.parentRunId": self.parent.run_id,
            },
            name=workspace.stage.title,
            parent_run_id=self.parent.run_id,
        )

    def run_stage(self, workspace: Workspace) -> Mapping[str, Any]:
        """Run a stage inside its MLflow run: its identity, inputs and what it found."""
        tracker = Tracker(self.stage_run(workspace))
        with _ending(tracker):
            tracker.log_params(
                {"fingerprint": workspace.stage.fingerprint, **plain(workspace.stage.identity)}
            )
            self._log_datasets(workspace, tracker)
            output = workspace.stage.run(workspace)
            tracker.log_json("record.json", plain(output))
        return output

    def running(self) -> AbstractContextManager[None]:
        """Return the context that the job's work is done in; it ends the job's run."""
        return _ending(Tracker(self.parent))

    def _log_datasets(self, workspace: Workspace, stage_tracker: Tracker) -> None:
        """Log the stage's snapshots as inputs of its run and, where a reader looks first, of the job's."""
        job_tracker = Tracker(self.parent)
        for record in workspace.inputs:
            if "snapshot_id" in record.output and "dataset_path" in record.output:
                for tracker in (stage_tracker, job_tracker):
                    tracker.log_dataset(
                        snapshot_id=record.output["snapshot_id"],
                        name=record.output["dataset_path"],
                        uri=record.output["dataset_path"],
                        context="evaluation" if workspace.stage.name == "evaluate" else "training",
                    )
        job_tracker.close()


@contextmanager
def _ending(tracker: Tracker) -> Generator[None]:
    """End the run as its work ended. `kill -9` leaves it running until the same command goes on."""
    try:
        yield
    except (KeyboardInterrupt, TrainingStoppedError):
        tracker.finish("KILLED")
        raise
    except BaseException:
        tracker.finish("FAILED")
        raise
    tracker.finish("FINISHED")
