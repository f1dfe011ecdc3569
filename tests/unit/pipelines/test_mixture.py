"""A mixture from the config to the model: identity by snapshot id, and the same samples everywhere."""

import contextlib
import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from coatnet.train_config import TrainConfig
from coatnet.worker import LocalWorker
from data.crop import DecodeConfig
from data.errors import InputError
from data.lease import list_leases
from data.mixture import WeightsFrom
from data.retirement import restore_snapshot, retire_snapshot
from data.snapshot import Snapshot
from infra.folder_store import FolderStore
from pipelines.config import PhaseConfig, Recipe, Runtime, parse_run_config
from pipelines.mixture import SourceConfig, check_mixture, mixture_schedule, pin_mixture
from pipelines.shard import main as shard_main
from pipelines.stage import StageRecord, Workspace
from pipelines.stages import DatasetRef, pinned_stage, train_stage
from pipelines.training import TrainPlan, train_worker
from tests.adopted_tars import adopt, sample, write_tar
from tests.small_dataset import small_dataset
from tests.tiny_coatnet import TINY

Dataset = tuple[FolderStore, Snapshot]

DECODE = DecodeConfig(image_size_px=32, crop_mode="random_pad", eval_crop="squash")
PHASE = PhaseConfig(
    global_batch_size=8,
    num_lanes=4,
    shuffle_window=40,
    decode=DECODE,
    train=TrainConfig(epochs=2, warmup_epochs=0.5, peak_learning_rate=1e-3, eval_every_epochs=2),
)


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return small_dataset(tmp_path_factory.mktemp("own") / "root", num_train=30, classes="abc")


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    folder = tmp_path_factory.mktemp("other")
    return small_dataset(folder, num_train=20, classes="bc", first_seed=500)


def source(dataset: Dataset, weight: float = 0.4, **choices: Any) -> SourceConfig:
    return SourceConfig(dataset=dataset[0].uri, snapshot=dataset[1].id, weight=weight, **choices)


def parse(mixture: str) -> Recipe:
    return parse_run_config(["--recipe.pretrain.mixture", mixture], "").recipe


def test_a_mixture_comes_from_the_config() -> None:
    recipe = parse("[{dataset: 's3://x/y', snapshot: 1-ab, weight: 0.3, later_weights: {2: 0.5}}]")
    assert mixture_schedule(recipe.pretrain.mixture) == (
        WeightsFrom(from_epoch=0, weights=(0.7, 0.3)),
        WeightsFrom(from_epoch=2, weights=(0.5, 0.5)),
    )
    assert recipe.finetune.mixture == ()


@pytest.mark.parametrize(
    ("mixture", "message"),
    [
        ("[{dataset: x, snapshot: HEAD, weight: 0.3}]", "snapshot of x is 'HEAD'; give an id"),
        ("[{dataset: '', snapshot: 1-a, weight: 0.3}]", "has no dataset"),
        ("[{dataset: x, snapshot: 1-a, weight: 1.3}]", "recipe.pretrain.*from epoch 0 on add up to 1.3"),
        ("[{dataset: x, snapshot: 1-a, weight: -0.1}]", "recipe.pretrain.*have 1.1; each must be 0, or"),
        ("[{dataset: x, snapshot: 1-a, weight: 0.5, later_weights: {0: 0.1}}]", "begins with epoch 0"),
        ("[{dataset: x, snapshot: 1-a, weight: 0.5, later_weights: {3: 2}}]", "from epoch 3 on add up to 2;"),
        (
            "[{dataset: x, snapshot: 1-a, weight: 0.2}, {dataset: y, snapshot: 1-a, weight: 0.2}]",
            "recipe.pretrain: snapshot 1-a is named twice in the mixture",
        ),
        (
            "[{dataset: x, snapshot: 1-a, weihgt: 0.5}]",
            r"unknown config key 'recipe.pretrain.mixture.weihgt'; keys of recipe.pretrain.mixture: dataset, "
            r"snapshot, weight, later_weights; did you mean recipe.pretrain.mixture.weight\?",
        ),
    ],
)
def test_bad_mixtures_are_one_line(mixture: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as refused:
        parse(mixture)
    assert "\n" not in str(refused.value)


def fingerprint(*mixture: SourceConfig) -> str:
    reference = DatasetRef(path="shard/x", snapshot_id="1-abc", classes=("a", "b"))
    stage = train_stage(
        "pretrain",
        recipe=Recipe(),
        phase=replace(PHASE, mixture=mixture),
        dataset=pinned_stage(reference),
        initial=None,
        runtime=Runtime(),
        root=FolderStore(root=Path("/nowhere")),
        announce=print,
        run_of=lambda workspace: None,
    )
    return stage.fingerprint


def test_identity_is_the_snapshots_and_weights_never_the_place() -> None:
    there = SourceConfig(dataset="s3://here", snapshot="1-aa", weight=0.3)
    first = fingerprint(there)
    assert fingerprint(replace(there, dataset="file:///elsewhere")) == first
    others = (
        fingerprint(),
        fingerprint(replace(there, snapshot="2-bb")),
        fingerprint(replace(there, weight=0.31)),
        fingerprint(replace(there, later_weights={3: 0.1})),
    )
    assert len({first, *others}) == 5
    assert fingerprint(replace(there, later_weights={3: 0.3})) == first  # nothing changes with epoch 3


def test_what_does_not_fit_is_found_before_work_starts(own: Dataset, other: Dataset) -> None:
    check_mixture("pretrain", [source(other)], classes=("a", "b", "c"), num_lanes=4)
    with pytest.raises(InputError, match="has class 'b', which finetune has not; it has c, d"):
        check_mixture("finetune", [source(other)], classes=("c", "d"), num_lanes=4)
    with pytest.raises(
        InputError, match=r"has 20 images for training, fewer than recipe\.pretrain\.num_lanes 24"
    ):
        check_mixture("pretrain", [source(other)], classes="abc", num_lanes=24)
    with pytest.raises(InputError, match="snapshot '9-x' is not in"):
        check_mixture("pretrain", [replace(source(other), snapshot="9-x")], classes="abc", num_lanes=4)
    gone = replace(source(own), dataset="/nowhere/at/all")
    with pytest.raises(InputError, match="/nowhere/at/all does not exist"):
        check_mixture("pretrain", [gone], classes="abc", num_lanes=4)


def test_a_retired_snapshot_is_refused(other: Dataset) -> None:
    store, snapshot = other
    retire_snapshot(store, snapshot.id, "a test")
    with pytest.raises(InputError, match=r"is retired \(a test\)"):
        check_mixture("pretrain", [source(other)], classes="abc", num_lanes=4)
    with pytest.raises(InputError, match=r"is retired \(a test\)"), pinned(other, []):
        pass
    restore_snapshot(store, snapshot.id)
    check_mixture("pretrain", [source(other)], classes="abc", num_lanes=4)


def pinned(dataset: Dataset, warnings: list[str]) -> contextlib.AbstractContextManager[None]:
    return pin_mixture([source(dataset)], max_wait_s=1.0, announce=warnings.append)


def test_a_snapshot_mixed_in_has_a_lease(other: Dataset) -> None:
    warnings: list[str] = []
    with pinned(other, warnings):
        assert [lease.what for lease in list_leases(other[0])] == [other[1].id]
    assert list_leases(other[0]) == []
    assert warnings == []


def test_a_store_that_takes_no_lease_is_read_with_a_warning(tmp_path: Path) -> None:
    dataset = small_dataset(tmp_path, num_train=20, classes="bc")
    (dataset[0].root / "leases" / dataset[1].id).touch()  # Nothing can be written below a file.
    warnings: list[str] = []
    with pinned(dataset, warnings):
        assert f"no lease on snapshot {dataset[1].id}" in warnings[0]
    retire_snapshot(dataset[0], dataset[1].id, "a test")
    with pytest.raises(InputError, match="is retired"), pinned(dataset, []):
        pass


def test_sorted_shards_of_a_mixture_are_noticed(
    own: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only the phase's own snapshot was measured: an adopted one mixed in could be sorted by class."""
    mixed: list[SourceConfig] = []
    for name, order in (("sorted", "b" * 10 + "c" * 10), ("shuffled", "bcbccbcbbcbcbbccbcbc")):
        store = FolderStore(root=tmp_path / name)
        seed = 100 * len(mixed)
        write_tar(store, "0.tar", [sample(f"{n:02d}", label, seed + n) for n, label in enumerate(order)])
        snapshot = adopt(store)
        assert snapshot is not None
        mixed.append(SourceConfig(dataset=store.uri, snapshot=snapshot.id, weight=0.2))
    root, said = FolderStore(root=own[0].root.parent), list[str]()
    reference = DatasetRef(path=own[0].root.name, snapshot_id=own[1].id, classes=own[1].classes)
    dataset = pinned_stage(reference)
    stage = train_stage(
        "pretrain", recipe=Recipe(), phase=replace(PHASE, mixture=tuple(mixed)), dataset=dataset,
        initial=None, runtime=Runtime(), root=root, announce=said.append, run_of=lambda workspace: None,
    )  # fmt: skip
    monkeypatch.setattr("pipelines.stages.run_workers", lambda *args, **options: {})
    record = StageRecord(stage="snapshot", fingerprint=dataset.fingerprint, output=reference.to_output())
    stage.run(Workspace(stage=stage, store=root.sub("stage"), inputs=(record,)))
    assert [line.partition(":")[0] for line in said] == ["warning"]
    assert "95% of the neighbours in adopted shards share a class" in said[0]
    assert mixed[0].snapshot in said[0]


def plan(own: Dataset, folder: Path, mixture: SourceConfig, stage: str) -> TrainPlan:
    return TrainPlan(
        name="pretrain",
        root_uri=FolderStore(root=own[0].root.parent).uri,
        stage_path=stage,
        dataset_path=own[0].root.name,
        snapshot_id=own[1].id,
        model_config=replace(TINY, num_classes=3),
        initial_weights_path=None,
        phase=replace(PHASE, mixture=(mixture,)),
        seed=5,
        runtime=Runtime(
            cache_dir=str(folder / "cache"), audit_dir=str(folder / "audit"), checkpoint_every_steps=3
        ),
        run=None,
    )


def printed_order(own: Dataset, mixture: SourceConfig, epoch: int) -> tuple[list[Any], dict[str, Any]]:
    """Return what `shard.py order` prints: a line a step, and the object at the end."""
    wanted = {"dataset": mixture.dataset, "snapshot": mixture.snapshot, "weight": mixture.weight}
    wanted["later_weights"] = {str(key): value for key, value in mixture.later_weights.items()}
    command = ["order", "--dataset", own[0].uri, "--seed", "5", "--epoch", str(epoch), "--global_batch", "8"]
    command += ["--num_lanes", "4", "--shuffle_window", "40", "--world_size", "1", "--json"]
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        assert shard_main([*command, "--mixture", json.dumps([wanted])]) == 0
    *steps, last = [json.loads(line) for line in printed.getvalue().splitlines()]
    return steps, last


def test_training_sees_what_order_prints(own: Dataset, other: Dataset, tmp_path: Path) -> None:
    mixture = source(other, later_weights={1: 0.75})
    result = train_worker(LocalWorker(), plan(own, tmp_path, mixture, "stages/mixed"))
    assert result["num_steps"] == 2 * ((30 + 20) // 8)
    audit = [json.loads(line) for line in (tmp_path / "audit/pretrain-rank0.jsonl").read_text().splitlines()]
    seen = {(line["epoch"], line["step"]): line["keys"] for line in audit}
    for epoch, share in ((0, 0.4), (1, 0.75)):
        steps, last = printed_order(own, mixture, epoch)
        assert [seen[epoch, line["step"]] for line in steps] == [line["ranks"][0] for line in steps]
        assert last["steps_per_epoch"] == 6
        keys = [key for line in steps for key in line["ranks"][0]]
        from_other = [key for key in keys if key.startswith(f"{other[1].id}:")]
        assert len(from_other) / len(keys) == pytest.approx(share, abs=0.03)
    # Before epoch 1: 48 samples, of sources whose epochs have 28 and 20.
    assert last["source_epochs"] == pytest.approx(
        {own[1].id: 0.6 * 48 / 28, other[1].id: 0.4 * 48 / 20}, abs=0.1
    )

    # Its checkpoints go on with the same mixture only.
    reweighted = replace(mixture, weight=0.5)
    with pytest.raises(InputError, match=r"weights of epoch 0 \(\[0.6, 0.4\] kept, \[0.5, 0.5\] now"):
        train_worker(LocalWorker(), plan(own, tmp_path, reweighted, "stages/mixed"))
