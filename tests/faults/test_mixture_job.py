"""A job on a mixture, killed and gone on with another number of workers: the batches of the recipe."""

import contextlib
import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from data.snapshot import load_snapshot
from infra.store import open_store
from pipelines.shard import main as shard_main
from tests.faults.jobs import PRETRAIN_CLASSES, Job, end
from tests.faults.test_loader_resume import copy_all
from tests.faults.tracking import runs
from tests.small_dataset import small_dataset

pytestmark = [pytest.mark.integration, pytest.mark.faults, pytest.mark.slow, pytest.mark.timeout(900)]
_NUM_EPOCHS = 2
_OPTIONS = ("--recipe.pretrain.train.epochs", str(_NUM_EPOCHS))


def printed_order(job: Job, mixture: str, epoch: int) -> list[list[str]]:
    """Return the global batches that `shard.py order` prints for the job's dataset and mixture."""
    dataset = f"{job.root_uri}/{job.record('shard')['dataset_path']}"
    command = ["order", "--dataset", dataset, "--epoch", str(epoch), "--mixture", mixture]
    command += ["--global_batch", "16", "--num_lanes", "4", "--shuffle_window", "128"]
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        assert shard_main(command) == 0
    return [json.loads(line)["ranks"][0] for line in printed.getvalue().splitlines()]


def attempts(job: Job) -> list[dict[tuple[int, int], list[str]]]:
    """Return the keys that training saw at (epoch, step), rank after rank, for two and for one worker."""
    lines = sorted(job.audit(), key=lambda line: line["rank"])
    last_pid = [line for line in job.audit() if line["rank"] == 0][-1]["pid"]
    found: list[dict[tuple[int, int], list[str]]] = [{}, {}]
    for line in lines:
        attempt = found[line["pid"] == last_pid]
        attempt.setdefault((line["epoch"], line["step"]), []).extend(line["keys"])
    return found


def test_a_killed_job_on_a_mixture_goes_on_with_other_workers(
    make_job: Callable[..., Job], tmp_path: Path
) -> None:
    local, snapshot = small_dataset(tmp_path, num_train=40, classes=PRETRAIN_CLASSES[:2], first_seed=77)
    uri = "s3://coatnet/faults/mixed-in"
    copy_all(local, open_store(uri))
    assert load_snapshot(open_store(uri), "HEAD").id == snapshot.id
    source: dict[str, Any] = {"dataset": uri, "snapshot": snapshot.id, "weight": 0.25}
    mixture = json.dumps([{**source, "later_weights": {"1": 0.5}}])
    job = make_job("mixture", *_OPTIONS, "--recipe.pretrain.mixture", mixture)
    driver = job.start()
    try:
        job.wait_for(driver, lambda: any(line["epoch"] == 0 and line["step"] > 8 for line in job.audit()))
        job.wait_for(driver, lambda: bool(job.checkpoints()))
    finally:
        end(driver)
    job.wait_until_alone()
    newest = job.checkpoints()[-1]
    job = replace(job, overrides=(*job.overrides, "--runtime.num_workers", "1"))
    job.run()

    expected = {
        (epoch, step): keys
        for epoch in range(_NUM_EPOCHS)
        for step, keys in enumerate(printed_order(job, mixture, epoch))
    }
    before, after = attempts(job)
    steps_per_epoch = len(expected) // _NUM_EPOCHS
    assert min(after) == divmod(newest, steps_per_epoch) > (0, 0)
    assert set(after) == {place for place in expected if place >= min(after)}
    complete = {place: keys for place, keys in before.items() if len(keys) == 16}
    assert len(complete) >= newest
    for found in (complete, after):
        assert found == {place: expected[place] for place in found}
    shares = [sum(key.startswith(f"{snapshot.id}:") for key in keys) for keys in expected.values()]
    assert sum(shares[:steps_per_epoch]) / (16 * steps_per_epoch) == pytest.approx(0.25, abs=0.02)
    assert sum(shares[steps_per_epoch:]) / (16 * steps_per_epoch) == pytest.approx(0.5, abs=0.02)

    run = runs(job)["pretrain"]
    digests = {found.dataset.digest for found in run.inputs.dataset_inputs}
    assert digests == {snapshot.id, job.record("shard")["snapshot_id"]}
    passes = run.data.metrics[f"data/epochs_of/{snapshot.id}"]
    assert passes == pytest.approx((0.25 + 0.5) * 16 * steps_per_epoch / 40, rel=0.15)
