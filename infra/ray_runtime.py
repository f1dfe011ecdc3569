"""A group of Ray workers that train together; `infra.ray_tasks` maps over items.

`run_workers` is its own supervisor. Ray Train's `max_failures` does not cover a fault of its
controller, of the rendezvous or of its own files, so every attempt is a fresh Ray Train run with no
retries inside, and what to do about a failure is decided here, in one place. Workers go on from
their own checkpoints, so an attempt costs only the time to start.
"""

import logging
import os
import tempfile
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayError
from ray.train import FailureConfig, LoggingConfig, RunConfig, ScalingConfig, TrainingFailedError
from ray.train.torch import TorchConfig, TorchTrainer
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from coatnet.loop import TrainingStoppedError
from coatnet.progress import Progress
from coatnet.worker import COLLECTIVE_TIMEOUT_S, Worker
from infra.ray_channel import Channel, Failure, describe_failure
from infra.ray_worker import RayWorker
from infra.stop_signals import StopRequest, stop_signals

_POLL_INTERVAL_S = 0.2
_STOP_GRACE_S = 120.0
"""For workers to reach the end of a step, or an epoch's evaluation, and save."""
_RETRY_WAIT_S = 1.0

logger = logging.getLogger(__name__)


class WorkersFailedError(RuntimeError):
    """The workers failed, and failed again as often as was allowed. Running the same again resumes."""


@dataclass(frozen=True, kw_only=True)
class _Stopped:
    """What a worker returns that stopped when it was asked to."""

    message: str


_LOST = Failure(
    rank=None, type_name="Stopped", message="the workers lost sight of the driver", is_final=False
)
"""Why workers stop that nobody asked to."""


@dataclass(kw_only=True)
class _Attempt:
    """One Ray Train run, watched from the driver."""

    channel: Any
    thread: threading.Thread
    outcome: dict[str, Any]
    """`result`: what rank 0 returned, or `error`: what `fit` raised."""


def run_workers(
    fn: Callable[[Worker, Any], Any],
    payload: Any,
    *,
    name: str,
    num_workers: int,
    show: Callable[[Progress], None],
    use_gpu: bool = False,
    cpus_per_worker: int = 1,
    max_failures: int = 3,
    storage_path: str | None = None,
    storage_filesystem: Any = None,
) -> Any:
    """Call `fn(worker, payload)` on every worker of a group; return what rank 0 returned.

    The workers share a process group (gloo, or nccl with GPUs). `fn` must resume from its own
    checkpoints: after a crash (a killed process, a lost node, OSError or RuntimeError) the group is
    started again, at most `max_failures` times, then WorkersFailedError names the worker's own
    error. Any other exception of a worker is raised here as it is: bad input, a non-finite loss or
    a bug would only fail again. SIGINT and SIGTERM make `should_stop` true, and TrainingStoppedError
    ends the call, `fn`'s own or, where the workers ended otherwise, one from here. `fn`, `payload`
    and the result are pickled: keep the result small.

    `show` is called with rank 0's progress, in this thread. `storage_path` is where Ray Train keeps
    its own small files; nothing of value is in them.
    """
    assert ray.is_initialized(), "the entry point connects to Ray"
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")  # notices a dead worker sooner
    os.environ["RAY_CHDIR_TO_TRIAL_DIR"] = "0"  # relative paths mean the same in workers and driver
    scaling = ScalingConfig(
        num_workers=num_workers,
        use_gpu=use_gpu,
        resources_per_worker={"CPU": cpus_per_worker, **({"GPU": 1} if use_gpu else {})},
    )
    num_failures = 0
    with stop_signals() as stop, tempfile.TemporaryDirectory(prefix="ray-train-") as scratch:
        while True:
            run_config = _run_config(name, storage_path or scratch, storage_filesystem)
            attempt = _start_attempt(fn, payload, scaling, run_config, cpus_per_worker)
            _watch(attempt, show, stop)
            failure = _explain(attempt)
            if stop:
                raise _end_of_stop(name, attempt, failure)
            if failure is None:
                return attempt.outcome["result"]
            num_failures += 1
            if failure.is_final or num_failures > max_failures:
                raise failure.to_exception(WorkersFailedError)
            logger.warning(
                "%s: %s; starting again from the last checkpoint (%d of %d)",
                name,
                failure.summary(),
                num_failures,
                max_failures,
            )
            time.sleep(_RETRY_WAIT_S)


def _run_config(name: str, storage_path: str, storage_filesystem: Any) -> RunConfig:
    return RunConfig(
        # Ray Train silently resumes an old run of the same name.
        name=f"{name}-{uuid.uuid4().hex[:8]}",
        storage_path=storage_path,
        storage_filesystem=storage_filesystem,
        failure_config=FailureConfig(max_failures=0, controller_failure_limit=0),
        logging_config=LoggingConfig(log_level="WARNING"),
        # DDP's reducer warns of a flag that we set on purpose, past Python's filters.
        worker_runtime_env={"env_vars": {"TORCH_CPP_LOG_LEVEL": "ERROR"}},
    )


def _start_attempt(
    fn: Callable[[Worker, Any], Any],
    payload: Any,
    scaling: ScalingConfig,
    run_config: RunConfig,
    num_threads: int,
) -> _Attempt:
    # Beside the driver: there is no other node whose loss the channel need not survive.
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    channel = Channel.options(scheduling_strategy=here).remote()
    trainer = TorchTrainer(
        _worker_main,
        train_loop_config={"fn": fn, "payload": payload, "channel": channel, "num_threads": num_threads},
        scaling_config=scaling,
        run_config=run_config,
        torch_config=TorchConfig(timeout_s=COLLECTIVE_TIMEOUT_S),
    )
    outcome: dict[str, Any] = {}

    def fit() -> None:
        try:
            outcome["result"] = trainer.fit().return_value
        except BaseException as error:
            outcome["error"] = error

    # In a thread: the driver stays free to show progress, and Ray leaves our signal handlers alone.
    thread = threading.Thread(target=fit, name="ray-train", daemon=True)
    thread.start()
    return _Attempt(channel=channel, thread=thread, outcome=outcome)


def _worker_main(config: dict[str, Any]) -> Any:
    """Run in each Ray Train worker."""
    worker = RayWorker(config["channel"], config["num_threads"])
    with worker:
        try:
            result = config["fn"](worker, config["payload"])
        except TrainingStoppedError as stopped:
            # Returned, as every rank stops: what is raised, Ray Train prints as an error.
            return _Stopped(message=str(stopped))
        except BaseException as error:
            worker.fail(describe_failure(error, worker.rank))
            raise
    return result if worker.rank == 0 else None


def _watch(attempt: _Attempt, show: Callable[[Progress], None], stop: StopRequest) -> None:
    """Show progress until the attempt ends; pass a stop on, and end workers that do not follow it."""
    stopped_at_s: float | None = None
    while attempt.thread.is_alive():
        attempt.thread.join(_POLL_INTERVAL_S)
        _show_progress(attempt, show)
        if not stop:
            continue
        if stopped_at_s is None:
            stopped_at_s = time.monotonic()
            logger.warning("%s: stopping after this step and a checkpoint", stop.signal_name)
            attempt.channel.request_stop.remote()
        elif time.monotonic() - stopped_at_s > _STOP_GRACE_S:
            attempt.channel.abort.remote()
    _show_progress(attempt, show)


def _show_progress(attempt: _Attempt, show: Callable[[Progress], None]) -> None:
    for progress in _ask(attempt.channel.drain):
        show(Progress(**progress))


def _ask(method: Any) -> list[Any]:
    """Call a channel's method; a lost channel says nothing, and its workers end by themselves."""
    try:
        return ray.get(method.remote())
    except RayError:
        return []


def _explain(attempt: _Attempt) -> Failure | None:
    """Find what went wrong first: a final error wins over the crashes it causes in other ranks."""
    if "result" in attempt.outcome:
        return _LOST if isinstance(attempt.outcome["result"], _Stopped) else None
    failures: list[Failure] = _ask(attempt.channel.failures)
    error = attempt.outcome["error"]
    if isinstance(error, TrainingFailedError):
        reported = {failure.rank for failure in failures}
        for rank, death in getattr(error, "worker_failures", {}).items():
            if rank not in reported:  # killed before it could say anything: the root of the others
                failures.insert(0, Failure.of_death(death, rank))
    failures.sort(key=lambda failure: not failure.is_final)
    if failures:
        return failures[0]
    if isinstance(error, TrainingFailedError | RayError):
        return Failure.of_death(error, None)
    return describe_failure(error, None)


def _end_of_stop(name: str, attempt: _Attempt, failure: Failure | None) -> BaseException:
    """Return what to raise when the workers have ended after a stop was asked for."""
    result = attempt.outcome.get("result")
    if isinstance(result, _Stopped):
        return TrainingStoppedError(result.message)
    if failure is None:  # The stop came with the last step: the caller must not go on to other work.
        return TrainingStoppedError(f"{name} stopped at its end; run the same command to go on")
    if failure.is_final:
        return failure.to_exception(WorkersFailedError)
    return TrainingStoppedError(
        f"{name} stopped without a new checkpoint ({failure.summary()}); run the same command to go on "
        f"from the last one"
    )
