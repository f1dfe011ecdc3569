"""One job's hands: the root, the registry and MLflow, and the stages and review built on them."""

from collections.abc import Generator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

from data.corpus_listing import CorpusListing
from data.crop import DecodeConfig
from data.sharding_config import ShardingConfig
from infra.registry import Registry, VersionInfo
from infra.store import open_store
from infra.tracking import RunRef, Tracker
from pipelines.config import PhaseConfig, Recipe, Runtime
from pipelines.corpus import Corpus
from pipelines.dataset_ref import DatasetRef, open_dataset
from pipelines.evaluation import EvalReport
from pipelines.job import TrackedJob, announce, check_resources, code_version, connect_to_ray
from pipelines.mixture import pin_or_warn
from pipelines.review import Candidate, Review, log_report
from pipelines.stage import Materializer, Stage, StageRecord, Workspace
from pipelines.stages import evaluate_stage, shard_stage, train_stage


class Session:
    """What the main job and retraining do in the same way."""

    def __init__(self, recipe: Recipe, runtime: Runtime, tracking_uri: str, actor: str) -> None:
        self.recipe = recipe
        self.runtime = runtime
        self.actor = actor
        self.tracking_uri = tracking_uri
        self.root = open_store(runtime.root)
        self.registry = Registry(tracking_uri=tracking_uri)
        self._tracked: TrackedJob | None = None
        self._materializer: Materializer | None = None
        self._pins = ExitStack()
        self._pinned: set[DatasetRef] = set()

    def connect(self) -> None:
        """Join the cluster and check that it can hold the workers."""
        connect_to_ray()
        runtime = self.runtime
        check_resources(runtime.num_workers, runtime.cpus_per_worker, runtime.use_gpu)

    @contextmanager
    def job(self, *, key: str, name: str, parameters: Mapping[str, Any]) -> Generator[None]:
        """Do the job's work in its MLflow run, the one of before if the job was stopped."""
        self._tracked = TrackedJob.start(
            tracking_uri=self.tracking_uri,
            experiment=self.runtime.experiment,
            key=key,
            name=name,
            parameters=parameters,
        )
        self._materializer = Materializer(
            self.root,
            provenance={"code_version": code_version()},
            announce=announce,
            observe=self._run_pinned,
        )
        with self._tracked.running(), self._pins:
            yield

    def _run_pinned(self, workspace: Workspace) -> Mapping[str, Any]:
        """Run a stage holding a lease on each snapshot that it reads, until the job ends."""
        for record in workspace.inputs:
            if {"dataset_path", "snapshot_id"} <= record.output.keys():
                self._pin(DatasetRef.from_record(record))
        return self.tracked.run_stage(workspace)

    def _pin(self, reference: DatasetRef) -> None:
        if reference not in self._pinned:
            store = open_dataset(self.root, reference.path, max_wait_s=self.runtime.max_store_wait_s)
            self._pins.enter_context(pin_or_warn(store, reference.snapshot_id, announce))
            self._pinned.add(reference)

    def hold(self, *references: DatasetRef) -> None:
        """Hold a lease on snapshots from now on, however long it is until a stage reads them."""
        for reference in references:
            self._pin(reference)

    @property
    def tracked(self) -> TrackedJob:
        """The job's run."""
        assert self._tracked is not None, "there is a run within `job` only"
        return self._tracked

    def materialize(self, stage: Stage) -> StageRecord:
        """Return the record of a stage, computing it inside a nested MLflow run if it is missing."""
        assert self._materializer is not None, "stages are computed within `job` only"
        return self._materializer(stage)

    def shard(self, corpus: Corpus, listing: CorpusListing, config: ShardingConfig) -> Stage:
        """Describe a stage of this job that makes a dataset of a corpus."""
        return shard_stage(
            corpus, listing, config, runtime=self.runtime, announce=announce, run_of=self._stage_run
        )

    def train(self, name: str, phase: PhaseConfig, dataset: Stage, initial: Stage | None) -> Stage:
        """Describe a training stage of this job."""
        return train_stage(
            name,
            recipe=self.recipe,
            phase=phase,
            dataset=dataset,
            initial=initial,
            runtime=self.runtime,
            root=self.root,
            announce=announce,
            run_of=self._stage_run,
        )

    def evaluate(self, dataset: Stage, model: Stage, decode: DecodeConfig) -> Stage:
        """Describe an evaluation stage of this job."""
        return evaluate_stage(
            decode=decode,
            dataset=dataset,
            model=model,
            runtime=self.runtime,
            root=self.root,
            announce=announce,
        )

    def review(self, dataset: Stage, model: Stage, evaluation: Stage, decode: DecodeConfig) -> VersionInfo:
        """Log the evaluation, register the model and promote it if it has earned it."""
        evaluated = self.materialize(evaluation)
        report = EvalReport.load(self.root, evaluated.output["report_path"])
        tracker = Tracker(self.tracked.parent)
        log_report(tracker, report, f"Evaluation of {self.runtime.model_name}")
        tracker.close()
        review = Review(
            root=self.root,
            registry=self.registry,
            model_name=self.runtime.model_name,
            policy=self.recipe.gate,
            run=self.tracked.parent,
            actor=self.actor,
            announce=announce,
            evaluate_champion=lambda champion, decode: self.materialize(
                self.evaluate(dataset, champion, decode)
            ),
        )
        candidate = Candidate.of(self.materialize(model), evaluated, self.materialize(dataset), decode)
        return review(candidate)

    def _stage_run(self, workspace: Workspace) -> RunRef:
        return self.tracked.stage_run(workspace)
