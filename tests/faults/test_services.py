"""The store or MLflow fail for a while: the job waits, ends well, and its result is the same."""

import os
import signal
import time
from collections.abc import Callable
from functools import partial

import pytest

from tests.conftest import Stack
from tests.faults.jobs import Job, assert_same_result, end, first_steps
from tests.faults.services import signal_service
from tests.faults.tracking import curve, statuses

pytestmark = [pytest.mark.integration, pytest.mark.faults, pytest.mark.slow, pytest.mark.timeout(1200)]
_HANG_S = 25.0
"""Longer than a read waits for its answer, so that reads fail and are repeated."""


def num_receipts(job: Job) -> int:
    return sum("/receipts/" in info.path for info in job.root.list("shard"))


def test_a_store_that_hangs_and_then_dies_is_waited_for(
    stack: Stack, make_job: Callable[..., Job], undisturbed: Job
) -> None:
    job = make_job("store-away")
    driver = job.start()
    try:
        job.wait_for(driver, lambda: num_receipts(job) > 0)
        signal_service(stack, "s3", signal.SIGSTOP)
        time.sleep(_HANG_S)
        signal_service(stack, "s3", signal.SIGCONT)
        job.wait_for(driver, lambda: job.is_past(epoch=0, step=6))
        signal_service(stack, "s3", signal.SIGKILL)
        time.sleep(5)
        stack.run("up")
        job.finish(driver)
    finally:
        stack.run("up")
        end(driver)
    assert first_steps(job) == {0: [0], 1: [0]}, "an outage this short must not cost a restart"
    assert_same_result(job, undisturbed)


def test_metrics_outlive_a_crash_of_mlflow(
    stack: Stack, make_job: Callable[..., Job], undisturbed: Job
) -> None:
    job = make_job("mlflow-away")
    driver = job.start()
    try:
        frozen = job.freeze_in_mid_epoch(partial(job.wait_for, driver))
        signal_service(stack, "mlflow", signal.SIGKILL)
        os.kill(frozen, signal.SIGCONT)
        job.wait_for(driver, lambda: job.is_past(epoch=2, step=0))
        stack.run("up")
        job.finish(driver)
    finally:
        stack.run("up")
        end(driver)
    assert_same_result(job, undisturbed)
    assert set(statuses(job).values()) == {"FINISHED"}
    for metric in ("train/loss", "eval/top1"):
        assert curve(job, metric) == curve(undisturbed, metric)
