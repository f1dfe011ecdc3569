"""The main job and retraining on datasets that `shard.py` made or adopted, outside of the job's root."""

import json
from pathlib import Path

import pytest
import webdataset

from data.adopt import AdoptOptions, adopt_tars, plan_tars
from data.adopt_scan import scan_tar
from data.build import build_snapshot
from data.shard_write import write_shards_here
from data.sharding_config import ShardingConfig
from data.snapshot import Snapshot, load_snapshot
from data.store import Store
from infra.registry import Registry
from infra.store import open_store
from pipelines.review import DATASET_TAG, SNAPSHOT_TAG
from tests.conftest import Stack
from tests.integration.conftest import SMOKE_CONFIG, run_script

pytestmark = pytest.mark.integration
_NAME = "existing-dataset"


def adopted(folder: Path, cifar10: Path) -> tuple[Store, Snapshot]:
    """Somebody's WebDataset tars of two classes, indexed where they lie."""
    for split, rows in (("train", slice(0, 48)), ("test", slice(0, 16))):
        (folder / split).mkdir(parents=True)
        photos = [sorted((cifar10 / split / name).iterdir())[rows] for name in ("cat", "dog")]
        with webdataset.TarWriter(str(folder / split / "0.tar"), mtime=0) as tar:
            for number, (cat, dog) in enumerate(zip(*photos, strict=True)):
                for label, photo in enumerate((cat, dog)):
                    tar.write({"__key__": f"{number}-{label}", "png": photo.read_bytes(), "cls": str(label)})
    store, options = open_store(str(folder)), AdoptOptions()
    snapshot = adopt_tars(
        store,
        options,
        lambda plans: [scan_tar(plan, dataset=store) for plan in plans],
        plans=plan_tars(store, options),
        classes=("cat", "dog"),
    )
    assert snapshot is not None
    return store, snapshot


def created(folder: Path, cifar10: Path) -> tuple[Store, Snapshot]:
    """A data set of our own in the object store."""
    for split, count in (("train", 48), ("test", 16)):
        for name in ("ship", "truck"):
            (folder / split / name).mkdir(parents=True)
            for photo in sorted((cifar10 / split / name).iterdir())[:count]:
                (folder / split / name / photo.name).write_bytes(photo.read_bytes())
    corpus, store, config = open_store(str(folder)), open_store(f"s3://coatnet/{_NAME}"), ShardingConfig()
    return store, build_snapshot(corpus, store, config, write_shards_here(corpus, store, config.limits))


def test_from_datasets_that_exist_to_a_champion(stack: Stack, cifar10: Path, tmp_path: Path) -> None:
    """What `shard.py` made could be looked at and mixed in, but no job could be pointed at it."""
    tars, first = adopted(tmp_path / "tars", cifar10)
    own, second = created(tmp_path / "photos", cifar10)
    root = tmp_path / "root"
    options = ["--config", SMOKE_CONFIG, "--runtime.root", root.as_uri()]
    options += ["--runtime.cache_dir", str(tmp_path / "cache")]
    options += ["--runtime.experiment", _NAME, "--runtime.model_name", _NAME, "--recipe.gate.min_top1", "0"]
    options += ["--recipe.finetune.train.epochs", "1", "--recipe.finetune.train.eval_every_epochs", "1"]
    datasets = ["--recipe.pretrain.dataset", tars.uri, "--recipe.pretrain.snapshot", first.id]
    datasets += ["--recipe.finetune.dataset", own.uri]

    output = run_script(stack, "pretrain_finetune", [*options, *datasets])

    assert f"pretrain: snapshot {first.id} of {tars.uri}" in output
    assert f"finetune: snapshot {second.id} of {own.uri}" in output
    assert f"registry     {_NAME} version 1: PROMOTED" in output
    records = [json.loads(path.read_text()) for path in root.glob("*/*/record.json")]
    assert {record["stage"] for record in records} == {"snapshot", "pretrain", "finetune", "evaluate"}
    champion = Registry(tracking_uri=stack.environment["MLFLOW_TRACKING_URI"]).champion(_NAME)
    assert champion is not None
    assert (champion.tags[DATASET_TAG], champion.tags[SNAPSHOT_TAG]) == (own.uri, second.id)
    again = run_script(stack, "pretrain_finetune", [*options, *datasets])
    assert "train " not in again, "every stage is found"

    incoming = tmp_path / "incoming"
    for name in ("ship", "truck"):
        (incoming / name).mkdir(parents=True)
        for photo in sorted((cifar10 / "train" / name).iterdir())[100:140]:
            (incoming / name / photo.name).write_bytes(photo.read_bytes())
    output = run_script(stack, "retrain", [*options, *datasets, "--once", "--incoming", str(incoming)])
    assert f"retrain: from the newest snapshot of {own.uri}, whatever recipe.finetune names" in output
    head = load_snapshot(own, "HEAD")
    assert (head.number, head.parent) == (2, second.id)
    assert "promote: version 2: " in output
