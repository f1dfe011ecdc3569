"""The stages of the main job and of retraining, as data: identity, inputs, what to run."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from coatnet.progress import Progress, format_progress
from data.build import build_snapshot
from data.class_runs import measure_class_runs
from data.corpus_listing import CorpusListing
from data.crop import DecodeConfig
from data.sharding_config import ShardingConfig
from data.snapshot import load_snapshot
from data.store import Store
from infra.ray_runtime import run_workers
from infra.store import open_store
from infra.tracking import RunRef, Tracker
from pipelines.config import PhaseConfig, Recipe, Runtime
from pipelines.corpus import Corpus
from pipelines.dataset_card import CardSource, publish_card
from pipelines.dataset_ref import DatasetRef, open_dataset
from pipelines.eval_tasks import EvalPlan, evaluate_model
from pipelines.job import connect_to_ray
from pipelines.mixture import mixture_identity, pin_mixture
from pipelines.shard_tasks import run_shard_tasks
from pipelines.stage import Stage, Workspace
from pipelines.training import MODEL_FOLDER, TrainPlan, train_worker

REPORT_FOLDER = "report"
Announce = Callable[[str], None]


def shard_stage(
    corpus: Corpus,
    listing: CorpusListing,
    config: ShardingConfig,
    *,
    runtime: Runtime,
    announce: Announce,
    run_of: Callable[[Workspace], RunRef | None],
) -> Stage:
    """Corpus -> the first snapshot of a dataset. The listing's digest stands for the images."""

    def run(workspace: Workspace) -> Mapping[str, Any]:
        dataset = workspace.store
        run_all = run_shard_tasks(
            corpus.images,
            dataset,
            config,
            max_in_flight=runtime.shard_tasks_in_flight,
            announce=announce,
            connect=corpus.before_reading(connect_to_ray),
        )
        snapshot = build_snapshot(corpus.source, dataset, config, run_all, listing=listing)
        source = CardSource(uri=corpus.uri, images=corpus.images, config=config)
        publish_card(dataset, snapshot, source, run_of(workspace))
        reference = DatasetRef.of(snapshot, workspace.stage.path)
        return {**reference.to_output(), "stats": {k: dict(v) for k, v in snapshot.stats.items()}}

    return Stage(
        name="shard",
        recipe_version=2,
        identity={"listing": listing.digest, "config": config},
        detail=f"{len(listing.classes)} classes",
        run=run,
    )


def pinned_stage(reference: DatasetRef) -> Stage:
    """A snapshot that exists already, as the input of a stage; its id is its content's hash."""
    # One that lies outside of the root is read where its record says: elsewhere it is another input.
    elsewhere = {"uri": reference.path} if "://" in reference.path else {}
    return Stage(
        name="snapshot",
        recipe_version=1,
        identity={"snapshot_id": reference.snapshot_id, **elsewhere},
        run=lambda workspace: reference.to_output(),
    )


def train_stage(
    name: str,
    *,
    recipe: Recipe,
    phase: PhaseConfig,
    dataset: Stage,
    initial: Stage | None,
    runtime: Runtime,
    root: Store,
    announce: Announce,
    run_of: Callable[[Workspace], RunRef | None],
) -> Stage:
    """Train on a dataset, from random weights or from the model of another stage."""

    def run(workspace: Workspace) -> Mapping[str, Any]:
        reference = DatasetRef.from_record(workspace.inputs[0])
        _warn_of_sorted_shards(open_dataset(root, reference.path), reference.snapshot_id, announce)
        start = workspace.inputs[1].output["model_path"] if initial is not None else None
        run_ref = run_of(workspace)
        _log_mixture(phase, run_ref)
        plan = TrainPlan(
            name=name,
            root_uri=root.uri,
            stage_path=workspace.stage.path,
            dataset_path=reference.path,
            snapshot_id=reference.snapshot_id,
            model_config=recipe.model_config(len(reference.classes)),
            initial_weights_path=start,
            phase=phase,
            seed=recipe.seed,
            runtime=runtime,
            run=run_ref,
        )
        with pin_mixture(phase.mixture, max_wait_s=runtime.max_store_wait_s, announce=announce):
            for source in phase.mixture:  # Each is shuffled in a window of its own.
                store = open_store(source.dataset, max_wait_s=runtime.max_store_wait_s)
                _warn_of_sorted_shards(store, source.snapshot, announce)
            result = run_workers(
                train_worker,
                plan,
                name=f"{name}-{workspace.stage.fingerprint}",
                num_workers=runtime.num_workers,
                use_gpu=runtime.use_gpu,
                cpus_per_worker=runtime.cpus_per_worker,
                max_failures=runtime.max_failures,
                show=partial(_show, announce),
            )
        return {
            **result,
            "model_path": f"{workspace.stage.path}/{MODEL_FOLDER}",
            "classes": list(reference.classes),
        }

    # The phase names its dataset, or classes and a cap, but the dataset's fingerprint holds what they select.
    # A mixture is known by its snapshots' ids, wherever they are.
    phase_identity = replace(
        phase, dataset="", snapshot="HEAD", classes=None, max_train_per_class=None, mixture=()
    )
    identity: dict[str, Any] = {
        "phase": phase_identity,
        "seed": recipe.seed,
        **mixture_identity(phase.mixture),
    }
    if initial is None:
        identity["model"] = recipe.model_config(num_classes=1)
    inputs = (dataset,) if initial is None else (dataset, initial)
    return Stage(name=name, recipe_version=1, identity=identity, inputs=inputs, run=run)


def _log_mixture(phase: PhaseConfig, run: RunRef | None) -> None:
    """Log the snapshots that are mixed in as inputs of the stage's run, beside its own."""
    if run is None or not phase.mixture:
        return
    tracker = Tracker(run)
    for source in phase.mixture:
        tracker.log_dataset(
            snapshot_id=source.snapshot, name=source.dataset, uri=source.dataset, context="training"
        )
    tracker.close()


def evaluate_stage(
    *, decode: DecodeConfig, dataset: Stage, model: Stage, runtime: Runtime, root: Store, announce: Announce
) -> Stage:
    """Evaluate a stage's model on the eval split of a dataset; every prediction is kept."""

    def run(workspace: Workspace) -> Mapping[str, Any]:
        reference = DatasetRef.from_record(workspace.inputs[0])
        trained = workspace.inputs[1].output
        plan = EvalPlan(
            root_uri=root.uri,
            model_path=trained["model_path"],
            model_classes=tuple(trained["classes"]),
            dataset_path=reference.path,
            snapshot_id=reference.snapshot_id,
            decode=decode,
            runtime=runtime,
        )
        report = evaluate_model(plan, announce)
        report.save(workspace.store, REPORT_FOLDER)
        return {
            "report_path": f"{workspace.stage.path}/{REPORT_FOLDER}",
            "top1": report.top1,
            "num_samples": report.num_samples,
            "snapshot_id": report.snapshot_id,
        }

    return Stage(
        name="evaluate",
        recipe_version=3,
        identity={"decode": decode},
        inputs=(dataset, model),
        run=run,
    )


def _warn_of_sorted_shards(dataset: Store, snapshot_id: str, announce: Announce) -> None:
    """Say so where adopted shards were not shuffled; of shards of ours nothing is read."""
    runs = measure_class_runs(dataset, load_snapshot(dataset, snapshot_id).splits["train"])
    if runs.is_sorted:
        announce(f"{runs.warning} (snapshot {snapshot_id})")


def _show(announce: Announce, progress: Progress) -> None:
    announce(format_progress(progress))
