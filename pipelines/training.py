"""What every worker of a training stage does: open the data, build the model, train, save."""

import tempfile
from collections.abc import Mapping
from contextlib import closing, nullcontext
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch

from coatnet.activation_checkpointing import checkpoint_stages
from coatnet.checkpoint import CheckpointStore
from coatnet.config import ModelConfig
from coatnet.interop import load_for_finetune, save_model
from coatnet.loop import train
from coatnet.model import CoAtNet
from coatnet.train_config import RuntimeTrainConfig
from coatnet.train_parts import Log
from coatnet.worker import Worker
from data.augment import Augment
from data.batch_audit import AuditedAugment
from data.loader import EvalLoader, TrainLoader
from data.mixture import MixtureOrder
from data.normalize import normalize
from data.randomness import hash_key
from data.shard_cache import ShardCache
from data.snapshot import Snapshot, load_snapshot
from data.store import Store
from infra.store import open_store
from infra.tracking import RunRef, Tracker
from infra.transfer import download_folder, upload_folder
from pipelines.augmented_sheet import augmented_sheet
from pipelines.bad_samples import BadSamples
from pipelines.config import PhaseConfig, Runtime
from pipelines.dataset_ref import open_dataset
from pipelines.mixture import open_mixture

MODEL_FOLDER = "model"
CHECKPOINT_FOLDER = "checkpoints"
_EVAL_BATCH_SIZE = 250
_SHEET_IMAGES = 16
_FLUSH_TIMEOUT_S = 5.0
"""A checkpoint waits no longer for an MLflow server that is away."""


@dataclass(frozen=True, kw_only=True)
class TrainPlan:
    """One training stage, described; picklable."""

    name: str
    root_uri: str
    stage_path: str
    """Where checkpoints and the final weights go, below the root."""
    dataset_path: str
    snapshot_id: str
    model_config: ModelConfig
    """For training from random weights; else only the class count and drop rate are taken."""
    initial_weights_path: str | None
    """A folder written by `save_model`, below the root."""
    phase: PhaseConfig
    seed: int
    runtime: Runtime
    run: RunRef | None
    """The stage's MLflow run; None leaves MLflow out."""


def train_worker(worker: Worker, plan: TrainPlan) -> Mapping[str, Any]:
    """Train on one rank; every rank of the group calls it. Returns plain values."""
    tracker = Tracker(plan.run) if worker.rank == 0 and plan.run else None
    # However it ends: the last losses before a failure are those that one wants to see.
    with nullcontext() if tracker is None else closing(tracker):
        return _train(worker, plan, tracker)


def _train(worker: Worker, plan: TrainPlan, tracker: Tracker | None) -> Mapping[str, Any]:
    root = open_store(plan.root_uri, max_wait_s=plan.runtime.max_store_wait_s)
    stage = root.sub(plan.stage_path)
    dataset = open_dataset(root, plan.dataset_path, max_wait_s=plan.runtime.max_store_wait_s)
    snapshot = load_snapshot(dataset, plan.snapshot_id)
    torch.manual_seed(hash_key(plan.seed))
    model, renewed = make_model(plan, root)
    loader = make_train_loader(worker, plan, dataset, snapshot)
    mean, std = model.config.mean, model.config.std
    augment = Augment(
        plan.phase.augment, num_classes=len(snapshot.classes), seed=plan.seed, mean=mean, std=std
    )
    if tracker is not None:
        tracker.log_metrics(0, {"data/left_out_per_epoch": float(loader.epoch_order(0).num_left_out)})
        lane_size = plan.phase.order(plan.seed).lane_size
        sheet = augmented_sheet(loader, augment, model.config, lane_size=lane_size, num_images=_SHEET_IMAGES)
        tracker.log_bytes("augmented_samples.png", sheet)
    bad_samples = BadSamples(worker, loader, tracker, plan.runtime.max_bad_samples, stage=stage)
    result = train(
        worker,
        model=model,
        config=plan.phase.train,
        runtime=RuntimeTrainConfig(
            name=plan.name, checkpoint_every_steps=plan.runtime.checkpoint_every_steps
        ),
        source=loader,
        make_eval_source=lambda: bad_samples.watch(make_eval_loader(worker, plan, dataset, snapshot)),
        augment=_audited(augment, plan, worker.rank),
        normalize=partial(normalize, mean=mean, std=std),
        checkpoints=CheckpointStore(
            stage,
            CHECKPOINT_FOLDER,
            # A killed run takes its queue along: what a checkpoint has behind it is on the server first.
            before_upload=partial(tracker.flush, _FLUSH_TIMEOUT_S) if tracker is not None else None,
        ),
        log=_log_nothing if tracker is None else _with_source_epochs(tracker.log_metrics, loader),
        data_metrics=lambda: loader.take_stats().metrics(),
        before_save=bad_samples.report,
        wants_stop=bad_samples.is_past_budget,
    )
    if worker.rank == 0:
        _save_weights(stage, model, result.weights)
    return {
        "metrics": dict(result.metrics),
        "num_steps": result.num_steps,
        "renewed_parameters": renewed,
        "num_parameters": sum(parameter.numel() for parameter in model.parameters()),
        "bad_samples": dict(bad_samples.reasons),
    }


def _with_source_epochs(log: Log, loader: TrainLoader) -> Log:
    """Log with each step how often each snapshot of a mixture has been gone through."""
    if not loader.identity.mixture:
        return log
    ids = (loader.identity.snapshot_id, *loader.identity.mixture)
    order_of = lru_cache(maxsize=1)(loader.epoch_order)

    def log_all(step: int, values: Mapping[str, float]) -> None:
        order = order_of(step // loader.steps_per_epoch)
        assert isinstance(order, MixtureOrder)
        passes = order.source_epochs(step % loader.steps_per_epoch)
        named = {f"data/epochs_of/{name}": done for name, done in zip(ids, passes, strict=True)}
        log(step, {**values, **named})

    return log_all


def _audited(augment: Augment, plan: TrainPlan, rank: int) -> Augment | AuditedAugment:
    if plan.runtime.audit_dir is None:
        return augment
    return AuditedAugment(augment, Path(plan.runtime.audit_dir), name=plan.name, rank=rank)


def make_model(plan: TrainPlan, root: Store) -> tuple[CoAtNet, list[str]]:
    """Return the model to start from, and the parameters drawn anew where weights were given."""
    renewed: list[str] = []
    if plan.initial_weights_path is None:
        model = CoAtNet(plan.model_config)
    else:
        with tempfile.TemporaryDirectory() as folder:
            download_folder(root.sub(plan.initial_weights_path), Path(folder))
            model, renewed = load_for_finetune(
                Path(folder), plan.model_config.num_classes, plan.phase.stochastic_depth_rate
            )
    checkpoint_stages(model.stages, plan.runtime.checkpointed_stages)
    return model, renewed


def make_train_loader(worker: Worker, plan: TrainPlan, dataset: Store, snapshot: Snapshot) -> TrainLoader:
    """Open this rank's part of the train split."""
    return TrainLoader(
        store=dataset,
        snapshot=snapshot,
        split="train",
        order=plan.phase.order(plan.seed),
        decode=plan.phase.decode,
        rank=worker.rank,
        world_size=worker.world_size,
        cache=_cache(plan.runtime),
        num_threads=plan.runtime.decode_threads,
        prefetch_batches=plan.runtime.prefetch_batches,
        mixture=open_mixture(plan.phase.mixture, max_wait_s=plan.runtime.max_store_wait_s),
        missing_shards=plan.phase.missing_shards,
        max_bad_samples=None,  # `BadSamples` counts those of all ranks.
    )


def make_eval_loader(worker: Worker, plan: TrainPlan, dataset: Store, snapshot: Snapshot) -> EvalLoader:
    """Open this rank's slice of the eval split."""
    return EvalLoader(
        store=dataset,
        snapshot=snapshot,
        split="eval",
        decode=plan.phase.decode,
        batch_size=_EVAL_BATCH_SIZE,
        rank=worker.rank,
        world_size=worker.world_size,
        cache=_cache(plan.runtime),
        num_threads=plan.runtime.decode_threads,
        max_bad_samples=None,  # As above.
    )


def _cache(runtime: Runtime) -> ShardCache:
    return ShardCache(Path(runtime.cache_dir), runtime.cache_size_bytes)


def _save_weights(stage: Store, model: CoAtNet, weights: Mapping[str, torch.Tensor]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        save_model(model, Path(folder), weights)
        upload_folder(Path(folder), stage.sub(MODEL_FOLDER))


def _log_nothing(step: int, values: Mapping[str, float]) -> None:
    """Ranks other than 0 have nothing to say to MLflow."""
