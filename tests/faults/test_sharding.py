"""A driver that ends in the middle of sharding: nothing is written twice, and no image is lost."""

import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from data.build import build_snapshot
from data.shard_index import read_index
from data.shard_write import write_shards_here
from data.snapshot import load_snapshot
from infra.folder_store import FolderStore
from pipelines.config import parse_run_config
from tests.faults.jobs import NUM_TEST, NUM_TRAIN, PRETRAIN_CLASSES, Job, end

pytestmark = [pytest.mark.integration, pytest.mark.faults, pytest.mark.slow, pytest.mark.timeout(1200)]
# Many small shards, and hardly any training after them.
_OVERRIDES = ("--recipe.shard.shard_size_bytes", "30000", "--recipe.pretrain.train.epochs", "1")
_OVERRIDES += ("--recipe.pretrain.train.warmup_epochs", "0.5")


def written(job: Job, folder: str) -> dict[str, str]:
    """Return the objects in a folder of the dataset, with their etags and so their contents."""
    return {info.path: info.etag for info in job.root.list("shard") if f"/{folder}/" in info.path}


@pytest.mark.parametrize(("number", "code"), [(signal.SIGKILL, -9), (signal.SIGINT, 130)])
def test_sharding_goes_on_where_it_was(
    make_job: Callable[..., Job], tmp_path: Path, number: signal.Signals, code: int
) -> None:
    job = make_job(f"sharding-{number.name.lower()}", *_OVERRIDES)
    driver = job.start()
    try:
        job.wait_for(driver, lambda: len(written(job, "receipts")) >= 3)
        driver.send_signal(number)
        log = job.finish(driver, code=code)
    finally:
        end(driver)
    assert not written(job, "snapshots"), "too late: sharding was done"
    assert (code == 130) == ("stopped: run the same command to go on" in log)
    before = written(job, "receipts") | written(job, "shards")
    job.run()
    assert before.items() <= (written(job, "receipts") | written(job, "shards")).items()

    dataset = job.root.sub(job.record("shard")["dataset_path"])
    snapshot = load_snapshot(dataset, job.record("shard")["snapshot_id"])
    num_expected = {"train": NUM_TRAIN, "eval": NUM_TEST}
    for split, shards in snapshot.splits.items():
        names = [name for shard in shards for name in read_index(dataset, shard)["name"].to_pylist()]
        assert len(names) == len(set(names)) == num_expected[split] * len(PRETRAIN_CLASSES)
    recipe = parse_run_config(job.options, "").recipe
    config = recipe.sharding(recipe.pretrain)
    corpus, alone = FolderStore(root=job.corpus), FolderStore(root=tmp_path)
    expected = build_snapshot(corpus, alone, config, write_shards_here(corpus, alone, config.limits))
    assert snapshot.id == expected.id
