"""kill -9 in the middle of an epoch, and the same result as if nothing had happened."""

import os
import re
import signal
from collections.abc import Callable
from functools import partial

import pytest

from tests.faults.jobs import (
    STEPS_PER_EPOCH,
    Job,
    assert_each_image_once,
    assert_same_result,
    end,
    first_steps,
)

# A generous timeout: a loaded machine starts Ray's many processes slowly.
pytestmark = [pytest.mark.integration, pytest.mark.faults, pytest.mark.timeout(900)]


def resumed_steps(log: str) -> list[int]:
    """Return the global steps at which the log says that training went on."""
    found = re.findall(rf"pretrain  epoch (\d)/\d  resumed at step (\d+)/{STEPS_PER_EPOCH}\n", log)
    return [(int(epoch) - 1) * STEPS_PER_EPOCH + int(step) for epoch, step in found]


def test_a_killed_driver_goes_on_from_its_last_checkpoint(
    make_job: Callable[..., Job], undisturbed: Job
) -> None:
    """The workers of a driver that is gone must go too: else two groups would write one run."""
    job = make_job("driver-killed")
    driver = job.start()
    try:
        job.freeze_in_mid_epoch(partial(job.wait_for, driver))
    finally:
        end(driver)
    job.wait_until_alone()
    newest = job.checkpoints()[-1]
    log = job.run()
    assert "classes: finished before" in log
    assert resumed_steps(log) == [newest]
    assert STEPS_PER_EPOCH < newest < 2 * STEPS_PER_EPOCH
    assert first_steps(job) == {0: [0, newest], 1: [0, newest]}
    assert_each_image_once(undisturbed)
    assert_same_result(job, undisturbed)


def test_a_killed_worker_costs_a_restart(make_job: Callable[..., Job], undisturbed: Job) -> None:
    """The others waited in a collective for the lost one until its timeout of ten minutes."""
    job = make_job("worker-killed")
    driver = job.start()
    try:
        os.kill(job.freeze_in_mid_epoch(partial(job.wait_for, driver)), signal.SIGKILL)
        log = job.finish(driver)
    finally:
        end(driver)
    assert re.search(r"worker 1 failed: .*; starting again from the last checkpoint \(1 of 3\)", log)
    (resumed,) = resumed_steps(log)
    assert STEPS_PER_EPOCH < resumed < 2 * STEPS_PER_EPOCH
    assert first_steps(job) == {0: [0, resumed], 1: [0, resumed]}
    assert_same_result(job, undisturbed)
