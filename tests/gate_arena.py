"""Real contestants for the gate: a small CoAtNet trained for seconds on real photographs, here.

Everything runs in this process, but for MLflow and the object store; the evaluations and the review
are the pipeline's own.
"""

import shutil
import tempfile
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from coatnet.config import ModelConfig
from coatnet.interop import load_model, save_model
from coatnet.model import CoAtNet
from coatnet.train_config import TrainConfig
from coatnet.variants import model_config
from coatnet.worker import LocalWorker
from data.build import build_snapshot
from data.crop import DecodeConfig
from data.shard_write import write_shards_here
from data.sharding_config import ShardingConfig
from data.snapshot import Snapshot
from infra.folder_store import FolderStore
from infra.ledger import Ledger
from infra.registry import VERDICT_TAG, Registry, VersionInfo
from infra.store import open_store
from infra.tracking import find_or_create_run
from infra.transfer import download_folder, upload_folder
from pipelines.config import PhaseConfig, Runtime
from pipelines.eval_tasks import EvalPlan, evaluate_slice, merge_slices
from pipelines.evaluation import EvalReport
from pipelines.gate_checks import GatePolicy
from pipelines.review import Candidate, Review
from pipelines.stage import Materializer, Stage, StageRecord, Workspace
from pipelines.stages import REPORT_FOLDER, DatasetRef, pinned_stage
from pipelines.training import TrainPlan, train_worker

CLASSES = ("airplane", "automobile", "ship", "truck")
DECODE = DecodeConfig(image_size_px=32, crop_mode="random_pad", pad_px=4, eval_crop="squash")
# Half as wide as the demo's: seconds matter here, accuracy does not.
MODEL: ModelConfig = model_config(
    "coatnet_nano", num_classes=len(CLASSES), stem_width=16, widths=(16, 32, 64)
)
# Models that learned for seconds lean to one class or another: the unit tests look at such checks.
POLICY = GatePolicy(min_top1=0.3, max_class_regression=0.5, max_ece_increase=0.5)


def write_corpus(target: Path, cifar10: Path, num_train: int, num_eval: int, skip: int = 0) -> FolderStore:
    """Copy some real photographs of every class to train/ and test/."""
    for split, count in (("train", num_train), ("test", num_eval)):
        for name in CLASSES:
            folder = target / split / name
            folder.mkdir(parents=True)
            for file in sorted((cifar10 / split / name).iterdir())[skip : skip + count]:
                shutil.copy(file, folder / file.name)
    return FolderStore(root=target)


@dataclass(frozen=True, kw_only=True)
class Arena:
    """A root with one data set; picklable, so that another process can hold a review in it."""

    tracking_uri: str
    root_uri: str
    cache_dir: Path
    model_name: str = field(default_factory=lambda: f"arena-{uuid.uuid4().hex[:8]}")
    policy: GatePolicy = POLICY
    dataset_path: str = "data"
    snapshot_id: str = ""

    @property
    def registry(self) -> Registry:
        return Registry(tracking_uri=self.tracking_uri)

    @property
    def ledger(self) -> Ledger:
        return Ledger(store=open_store(self.root_uri))

    @property
    def runtime(self) -> Runtime:
        return Runtime(root=self.root_uri, cache_dir=str(self.cache_dir), num_workers=1, cpus_per_worker=1)

    def shard(self, corpus: FolderStore, config: ShardingConfig, dataset_path: str = "data") -> Snapshot:
        """Build a snapshot in this process."""
        dataset = open_store(self.root_uri).sub(dataset_path)
        return build_snapshot(corpus, dataset, config, write_shards_here(corpus, dataset, config.limits))

    def train(self, name: str, config: TrainConfig, start: str | None = None) -> str:
        """Train on the data set, from another model if one is named; return where the weights are."""
        path = f"models/{name}"
        plan = TrainPlan(
            name=name,
            root_uri=self.root_uri,
            stage_path=path,
            dataset_path=self.dataset_path,
            snapshot_id=self.snapshot_id,
            model_config=MODEL,
            initial_weights_path=start,
            phase=PhaseConfig(
                global_batch_size=8, num_lanes=4, shuffle_window=8192, decode=DECODE, train=config
            ),
            seed=0,
            runtime=self.runtime,
            run=None,
        )
        train_worker(LocalWorker(), plan)
        return f"{path}/model"

    def change(self, name: str, source: str, edit: Callable[[CoAtNet], None]) -> str:
        """Edit a copy of a model's weights; return where they are."""
        root, path = open_store(self.root_uri), f"models/{name}/model"
        with tempfile.TemporaryDirectory() as folder:
            old, new = Path(folder) / "old", Path(folder) / "new"
            download_folder(root.sub(source), old)
            model = load_model(old)
            with torch.no_grad():
                edit(model)
            save_model(model, new)
            upload_folder(new, root.sub(path))
        return path

    def candidate(self, fingerprint: str, model_path: str) -> Candidate:
        """Evaluate a model of this data set and let it ask for promotion."""
        dataset = pinned_stage(self._reference(CLASSES))
        trained = Stage(
            name="finetune",
            recipe_version=1,
            identity={"test": fingerprint},
            run=lambda workspace: {"model_path": model_path, "classes": list(CLASSES)},
        )
        materialize = self.materializer()
        evaluated = materialize(self.evaluation(dataset, trained))
        return Candidate.of(materialize(trained), evaluated, materialize(dataset), DECODE)

    def review(
        self, lines: list[str], *, evaluate: Callable[[Stage, DecodeConfig], StageRecord] | None = None
    ) -> Review:
        """Return the pipeline's review; what it announces goes to `lines`."""
        run = find_or_create_run(
            tracking_uri=self.tracking_uri,
            experiment="test-gate",
            identity={"coatnet.job": self.model_name},
            name=self.model_name,
        )
        return Review(
            root=open_store(self.root_uri),
            registry=self.registry,
            model_name=self.model_name,
            policy=self.policy,
            run=run,
            actor="tests",
            announce=lines.append,
            evaluate_champion=evaluate or self.evaluate_champion,
        )

    def evaluate_champion(self, champion: Stage, decode: DecodeConfig) -> StageRecord:
        """Evaluate a champion's weights, as they come from the registry, on this data set."""
        assert decode == DECODE
        return self.materializer()(self.evaluation(pinned_stage(self._reference(CLASSES)), champion))

    def evaluation(self, dataset: Stage, model: Stage) -> Stage:
        """Describe an evaluation in this process instead of on Ray."""

        def run(workspace: Workspace) -> Mapping[str, Any]:
            reference = DatasetRef.from_record(workspace.inputs[0])
            model = workspace.inputs[1].output
            plan = EvalPlan(
                root_uri=self.root_uri,
                model_path=model["model_path"],
                model_classes=tuple(model["classes"]),
                dataset_path=reference.path,
                snapshot_id=reference.snapshot_id,
                decode=DECODE,
                runtime=self.runtime,
            )
            merge_slices(plan, [evaluate_slice(plan, 1, 0)]).save(workspace.store, REPORT_FOLDER)
            return {"report_path": f"{workspace.stage.path}/{REPORT_FOLDER}"}

        return Stage(name="evaluate", recipe_version=1, identity={}, inputs=(dataset, model), run=run)

    def materializer(self) -> Materializer:
        """Keep records in the root, as the pipeline does: nothing is evaluated twice."""
        return Materializer(open_store(self.root_uri), provenance={}, announce=lambda line: None)

    def _reference(self, classes: Sequence[str]) -> DatasetRef:
        return DatasetRef(path=self.dataset_path, snapshot_id=self.snapshot_id, classes=tuple(classes))


@dataclass(frozen=True, kw_only=True)
class Contest:
    """A trained champion-to-be and its challengers, evaluated; each test takes a model name of its own."""

    arena: Arena
    candidates: dict[str, Candidate]

    def fresh(self) -> Arena:
        """Return the arena with a model that has no version and a ledger of its own, and a first champion."""
        arena = replace(self.arena, model_name=f"arena-{uuid.uuid4().hex[:8]}")
        champion = arena.review([])(self.candidates["first"])
        assert champion.tags[VERDICT_TAG] == "PROMOTED"
        return arena

    def report(self, name: str) -> EvalReport:
        return EvalReport.load(open_store(self.arena.root_uri), self.candidates[name].report_path)


def train_contest(tracking_uri: str, cifar10: Path, folder: Path) -> Contest:
    """Train the first model, make the challengers of it, and evaluate them all."""
    corpus = write_corpus(folder / "corpus", cifar10, num_train=250, num_eval=150)
    arena = Arena(
        tracking_uri=tracking_uri,
        root_uri=f"s3://coatnet/gate-{uuid.uuid4().hex[:8]}",
        cache_dir=folder / "cache",
    )
    snapshot = arena.shard(corpus, ShardingConfig(shard_size_bytes=2**20))
    arena = replace(arena, snapshot_id=snapshot.id)
    # One thread: two that wait for each other are slower on a machine that is busy elsewhere.
    torch.set_num_threads(1)
    recipe = TrainConfig(
        epochs=1, peak_learning_rate=0.001, warmup_epochs=0, schedule="linear", eval_every_epochs=100
    )
    first = arena.train("first", recipe)
    models = {
        "first": first,
        "worse": arena.change("worse", first, add_noise),
        "equal": arena.change("equal", first, lambda model: None),
        "nan": arena.change("nan", first, break_a_weight),
        # Ten points better: with four, rounding in a kernel decided whether it was significant.
        "better": arena.train("better", replace(recipe, epochs=6, peak_learning_rate=0.002), start=first),
    }
    candidates = {name: arena.candidate(name, path) for name, path in models.items()}
    return Contest(arena=arena, candidates=candidates)


def champion_of(arena: Arena) -> VersionInfo:
    champion = arena.registry.champion(arena.model_name)
    assert champion is not None
    return champion


def add_noise(model: CoAtNet) -> None:
    generator = torch.Generator().manual_seed(0)
    for weight in model.parameters():
        weight.add_(2 * weight.abs().mean() * torch.randn(weight.shape, generator=generator))


def break_a_weight(model: CoAtNet) -> None:
    weight = next(model.parameters())
    weight[(0,) * weight.ndim] = torch.nan
