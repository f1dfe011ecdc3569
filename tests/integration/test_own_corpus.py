"""`--corpus`: anyone's class folders, local or on S3, without train and test folders above them."""

import json
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import mlflow
import pytest

from data.build import build_snapshot, list_for_build
from data.shard_index import parquet_table, read_index
from data.shard_write import write_shard
from data.snapshot import Snapshot, load_snapshot
from data.store import Store
from infra.store import open_store
from pipelines.config import RunConfig, parse_run_config
from tests.conftest import REPOSITORY, Stack
from tests.integration.conftest import SMOKE_CONFIG, run_script
from tests.listings import records_in

pytestmark = pytest.mark.integration
_PER_CLASS = 100
_FOLDERS = {"boats": "ship", "lorries": "truck", "planes": "airplane"}
_BROKEN, _NOT_AN_IMAGE = "boats/broken.png", "lorries/page.png"
_EXPERIMENT = "own-corpus"


def own_files(cifar10: Path) -> Iterator[tuple[str, bytes]]:
    """Yield the files of a user's folder: photographs, and what else is found in such folders."""
    for name, source in _FOLDERS.items():
        for path in sorted((cifar10 / "train" / source).glob("*.png"))[:_PER_CLASS]:
            yield f"{name}/{path.name}", path.read_bytes()
    whole = next((cifar10 / "train" / "ship").glob("*.png")).read_bytes()
    yield _BROKEN, whole[: len(whole) // 2]
    yield _NOT_AN_IMAGE, b"<html>404: not found</html>"
    yield "boats/notes.txt", b"the file's name says that it is no image"
    yield ".thumbnails/boats/1.png", whole


def own_config(*options: str) -> RunConfig:
    return parse_run_config(["--config", str(REPOSITORY / SMOKE_CONFIG), *options], "A test.")


def test_a_bucket_without_split_folders(object_store: Stack, cifar10: Path, tmp_path: Path) -> None:
    """Unreadable files are counted and put aside by name; each image is in train or in eval, by its key."""
    corpus = open_store("s3://coatnet/own-corpus")
    for path, content in own_files(cifar10):
        corpus.put(path, content)
    config = own_config("--corpus", corpus.uri)
    recipe = config.recipe
    # Without train and test folders both phases use the same classes, at two resolutions.
    assert recipe.sharding(recipe.pretrain) == recipe.sharding(recipe.finetune)
    assert recipe.pretrain.decode.image_size_px < recipe.finetune.decode.image_size_px
    sharding = recipe.sharding(recipe.pretrain)
    listing = list_for_build(corpus, sharding)
    dataset = open_store(str(tmp_path / "dataset"))
    write = partial(write_shard, corpus=corpus, dataset=dataset, limits=sharding.limits)

    snapshot = build_snapshot(
        corpus, dataset, sharding, lambda plans: [write(plan) for plan in plans], listing=listing
    )

    check_snapshot(dataset, snapshot)
    planned = {record.key: record.split for record in records_in(listing)}
    assert {name: split for split in ("train", "eval") for name in names_of(dataset, snapshot, split)} == {
        name: split for name, split in planned.items() if name not in (_BROKEN, _NOT_AN_IMAGE)
    }


def check_snapshot(dataset: Store, snapshot: Snapshot) -> None:
    """Check what was kept and what was put aside, whatever made the snapshot."""
    assert snapshot.classes == tuple(_FOLDERS)
    assert sum(snapshot.stats["rejects"].values()) == 2
    assert snapshot.quarantine_path is not None
    rows = parquet_table(dataset.get(snapshot.quarantine_path)).to_pylist()
    assert [row["path"] for row in rows] == [_BROKEN, _NOT_AN_IMAGE]
    assert all(row["reason"] and row["detail"] for row in rows)
    train, evaluated = (set(names_of(dataset, snapshot, split)) for split in ("train", "eval"))
    assert not train & evaluated
    assert len(train) + len(evaluated) == len(_FOLDERS) * _PER_CLASS
    assert 0.03 < len(evaluated) / (len(_FOLDERS) * _PER_CLASS) < 0.2, "asked for: 0.1"


def names_of(dataset: Store, snapshot: Snapshot, split: str) -> list[str]:
    """Return the samples' names in the corpus."""
    return [
        name for shard in snapshot.splits[split] for name in read_index(dataset, shard)["name"].to_pylist()
    ]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_folder_from_broken_files_to_a_champion(stack: Stack, cifar10: Path, tmp_path: Path) -> None:
    """Run directly, on a local root: the whole job goes on past what cannot be read."""
    corpus, root = tmp_path / "my photos", tmp_path / "my root"
    for path, content in own_files(cifar10):
        (corpus / path).parent.mkdir(parents=True, exist_ok=True)
        (corpus / path).write_bytes(content)
    options = ["--config", SMOKE_CONFIG, "--corpus", str(corpus), "--recipe.gate.min_top1", "0"]
    options += ["--runtime.root", root.as_uri()]
    options += ["--runtime.experiment", _EXPERIMENT, "--runtime.model_name", _EXPERIMENT]
    options += ["--runtime.cache_dir", str(tmp_path / "cache"), "--recipe.finetune.train.epochs", "1"]
    options += ["--recipe.shard.shard_size_bytes", "200000"]
    output = run_script(stack, "pretrain_finetune", options, timeout_s=700)

    assert "2 rejected" in output
    assert re.search(r"^finetuning   top-1 \d+\.\d% on 3 classes, \d+ images$", output, re.M)
    records = [json.loads(path.read_text()) for path in root.glob("*/*/record.json")]
    by_stage = {record["stage"]: record["output"] for record in records}
    # One dataset for both phases: a second one would be the same images again.
    assert sorted(record["stage"] for record in records) == ["evaluate", "finetune", "pretrain", "shard"]
    assert by_stage["pretrain"]["classes"] == by_stage["finetune"]["classes"] == list(_FOLDERS)
    dataset = open_store(root.as_uri()).sub(by_stage["shard"]["dataset_path"])
    check_snapshot(dataset, load_snapshot(dataset, by_stage["shard"]["snapshot_id"]))
    client = mlflow.MlflowClient(stack.environment["MLFLOW_TRACKING_URI"])
    assert client.get_model_version_by_alias(_EXPERIMENT, "champion").tags["gate.verdict"] == "PROMOTED"
