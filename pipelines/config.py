"""The run's configuration: one frozen tree, parsed once.

`recipe` holds what changes the result, `runtime` what does not (workers, bucket, prefetch); only `recipe`
enters a fingerprint.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from coatnet.config import ModelConfig
from coatnet.train_config import TrainConfig
from coatnet.variants import model_config
from coatnet.worker import COLLECTIVE_TIMEOUT_S
from data.augment import AugmentConfig
from data.corpora.options import CorpusFormat, CorpusOptions
from data.decode import DecodeConfig
from data.errors import InputError
from data.image_check import ImageLimits
from data.order import OrderConfig
from data.plain import with_tuples
from data.sharding_config import DuplicatePolicy, ShardingConfig
from data.tar_reader import MissingShards
from pipelines.mixture import SourceConfig, mixture_schedule
from pipelines.parse_config import is_given, parse_config
from pipelines.promotion import GatePolicy

_SET_ELSEWHERE = {
    "num_classes": "recipe.PHASE.classes",
    "pretrain_image_size_px": "recipe.pretrain.decode.image_size_px",
    "stochastic_depth_rate": "recipe.PHASE.stochastic_depth_rate",
    "variant": "recipe.model",
}
"""Fields of the model's config that another option decides."""


@dataclass(frozen=True, kw_only=True)
class PhaseConfig:
    """One training phase: which images, seen how, learned how."""

    dataset: str = ""
    """Learn from a dataset that exists, as pipelines/shard.py makes or adopts it, instead of the corpus:
    s3://bucket/path, file:///path or a path that all nodes have."""
    snapshot: str = "HEAD"
    """Which of the dataset's snapshots: an id, or HEAD for the newest when the job starts. With HEAD the same
    command goes on with a stopped job only until another snapshot is committed."""
    classes: tuple[str, ...] | None = None
    """Class folders to take; all by default."""
    max_train_per_class: int | None = None
    """Keep at most this many training images of each class."""
    global_batch_size: int = 128
    num_lanes: int = 8
    """Independent streams that a global batch is made of; at least the number of workers."""
    shuffle_window: int = 16384
    """Samples shuffled together, over all lanes; many more for adopted shards that hold a class each, see
    docs/performance.md, "Shuffle quality"."""
    mixture: tuple[SourceConfig, ...] = ()
    """Snapshots whose training images are mixed in by weight; their classes must be among the phase's."""
    stochastic_depth_rate: float = 0.0
    decode: DecodeConfig = field(default_factory=lambda: DecodeConfig(image_size_px=224))
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    missing_shards: MissingShards = "error"
    """A train shard that is gone or damaged in the store: `error` stops; `skip` leaves its samples out, as
    far as the budget of bad samples reaches."""
    train: TrainConfig = field(default_factory=TrainConfig)

    def check(self, seed: int) -> None:
        """Raise InputError for values that do not go together."""
        mixture_schedule(self.mixture)
        if self.snapshot != "HEAD" and not self.dataset:
            raise InputError(f"snapshot is {self.snapshot!r} and dataset is empty: say whose snapshot it is")
        order = self.order(seed)
        if self.augment.mixes and order.lane_size < 2:
            raise InputError(
                f"Mixup and CutMix need at least 2 samples a lane; global_batch_size "
                f"{self.global_batch_size} / num_lanes {self.num_lanes} is {order.lane_size}"
            )
        if not 0 <= self.stochastic_depth_rate < 1:
            raise InputError(f"stochastic_depth_rate is {self.stochastic_depth_rate}; it must be in [0, 1)")

    def order(self, seed: int) -> OrderConfig:
        """Return the order of this phase's samples under the recipe's seed."""
        return OrderConfig(
            global_batch_size=self.global_batch_size,
            num_lanes=self.num_lanes,
            shuffle_window=self.shuffle_window,
            seed=seed,
        )


@dataclass(frozen=True, kw_only=True)
class ShardConfig(DuplicatePolicy):
    """How a corpus becomes shards."""

    eval_fraction: float = 0.1
    """Share of the images kept for evaluation, where the corpus has no split folders."""
    shard_size_bytes: int = 64 * 1024 * 1024
    max_reject_fraction: float = 0.05
    """More unreadable images than this share stop the run."""
    limits: ImageLimits = field(default_factory=ImageLimits)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that changes the result."""

    seed: int = 0
    model: str = "coatnet_0"
    model_overrides: dict[str, Any] = field(default_factory=dict)
    """Fields of `coatnet.ModelConfig` to replace in the named model."""
    shard: ShardConfig = field(default_factory=ShardConfig)
    pretrain: PhaseConfig = field(default_factory=PhaseConfig)
    finetune: PhaseConfig = field(default_factory=PhaseConfig)
    gate: GatePolicy = field(default_factory=lambda: GatePolicy(min_top1=0.5))

    def __post_init__(self) -> None:
        stride = self.model_config(num_classes=1).total_stride
        for name, phase in (("pretrain", self.pretrain), ("finetune", self.finetune)):
            try:
                phase.check(self.seed)
            except InputError as error:
                raise InputError(f"recipe.{name}: {error}") from None
            if phase.decode.image_size_px < stride:
                raise InputError(
                    f"recipe.{name}.decode.image_size_px is {phase.decode.image_size_px}: model "
                    f"{self.model!r} divides the sides by {stride}, so it must be at least {stride}"
                )

    def model_config(self, num_classes: int) -> ModelConfig:
        """Return the pretraining model's config; bias tables are sized by its resolution.

        Raises InputError for overrides that name no field of the model's own, or have the wrong type.
        """
        if wrong := sorted(self.model_overrides.keys() & _SET_ELSEWHERE.keys()):
            raise InputError(f"recipe.model_overrides has {wrong[0]}: set {_SET_ELSEWHERE[wrong[0]]} instead")
        return model_config(
            self.model,
            num_classes=num_classes,
            pretrain_image_size_px=self.pretrain.decode.image_size_px,
            stochastic_depth_rate=self.pretrain.stochastic_depth_rate,
            **with_tuples(self.model_overrides),
        )

    def sharding(self, phase: PhaseConfig) -> ShardingConfig:
        """Return how the images of one phase are sharded."""
        return ShardingConfig(
            classes=phase.classes,
            max_train_per_class=phase.max_train_per_class,
            eval_fraction=self.shard.eval_fraction,
            shard_size_bytes=self.shard.shard_size_bytes,
            max_reject_fraction=self.shard.max_reject_fraction,
            limits=self.shard.limits,
            leak_policy=self.shard.leak_policy,
            near_duplicates=self.shard.near_duplicates,
            near_duplicate_distance=self.shard.near_duplicate_distance,
            seed=self.seed,
        )


@dataclass(frozen=True, kw_only=True)
class Runtime:
    """Where and on what it runs; nothing here changes the result."""

    root: str = "s3://coatnet"
    """Where shards, checkpoints and records go: s3://bucket/prefix or file:///path."""
    experiment: str = "coatnet"
    """MLflow experiment."""
    model_name: str = "coatnet"
    """Name in MLflow's model registry."""
    num_workers: int = 2
    """Training processes."""
    cpus_per_worker: int = 1
    use_gpu: bool = False
    """One GPU a worker."""
    shard_tasks_in_flight: int = 16
    decode_threads: int = 2
    prefetch_batches: int = 3
    max_bad_samples: int = 100
    """Images that cannot be decoded get weight 0; more than this many of them stop a stage."""
    cache_dir: str = "/tmp/coatnet-cache"
    """Node-local folder for shards."""
    cache_size_bytes: int = 20 * 1024**3
    max_store_wait_s: float = 300.0
    """How long training and evaluation wait for an object store that is away before they stop; less
    than the 600 s that ranks wait for one another."""
    checkpoint_every_steps: int = 200
    checkpointed_stages: tuple[int, ...] = ()
    """Model stages, counted from 0, that compute their activations again in the backward pass, for memory."""
    max_failures: int = 3
    """Worker crashes to survive in one stage."""
    audit_dir: str | None = None
    """Node-local folder for a record of each batch that training saw, see `data.batch_audit`."""

    def __post_init__(self) -> None:
        at_least_one = ("num_workers", "cpus_per_worker", "shard_tasks_in_flight", "decode_threads")
        for name in (*at_least_one, "prefetch_batches", "cache_size_bytes", "checkpoint_every_steps"):
            if getattr(self, name) < 1:
                raise InputError(f"runtime.{name} is {getattr(self, name)}; it must be at least 1")
        if not 0 <= self.max_store_wait_s < COLLECTIVE_TIMEOUT_S:
            raise InputError(
                f"runtime.max_store_wait_s is {self.max_store_wait_s}; it must be 0 or more and below "
                f"{COLLECTIVE_TIMEOUT_S}: ranks wait no longer than that for one another"
            )
        for name in ("max_failures", "max_bad_samples"):
            if getattr(self, name) < 0:
                raise InputError(f"runtime.{name} is {getattr(self, name)}; it must not be negative")
        if not self.experiment.strip():
            raise InputError(f"runtime.experiment is {self.experiment!r}; give it a name")
        # It is part of a URL and of a path in the store.
        if not re.fullmatch(r"[^./:\s][^/:]*", self.model_name):
            raise InputError(
                f"runtime.model_name is {self.model_name!r}; it must not be empty, start with a dot or a "
                "space, or hold '/' or ':'"
            )


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """One run of the pipeline."""

    corpus: str = ""
    """A path or s3://: class folders of images, with or without train/ and test/ above them; a .csv or
    .parquet manifest of uri,label[,split]; Parquet with images, WebDataset's or ImageNet's tars, a file or
    a folder of them. `cifar10` fetches the demo's photographs. Not needed where each phase has a dataset."""
    corpus_format: CorpusFormat = "auto"
    """By default what is there: a file's extension and columns, or a folder's first files."""
    corpus_options: CorpusOptions = field(default_factory=CorpusOptions)
    recipe: Recipe = field(default_factory=Recipe)
    runtime: Runtime = field(default_factory=Runtime)

    def __post_init__(self) -> None:
        check_runtime_fits(self.recipe, self.runtime, ("pretrain", "finetune"))


def check_runtime_fits(recipe: Recipe, runtime: Runtime, phases: Sequence[str]) -> None:
    """Raise InputError where the runtime asks for what the recipe's model or these phases do not have."""
    num_stages = len(recipe.model_config(num_classes=2).layout)
    if wrong := [index for index in runtime.checkpointed_stages if not 0 <= index < num_stages]:
        raise InputError(
            f"runtime.checkpointed_stages has {wrong[0]}; {recipe.model} has stages 0 to {num_stages - 1}"
        )
    for name in phases:
        num_lanes = getattr(recipe, name).num_lanes
        if runtime.num_workers > num_lanes:
            raise InputError(
                f"runtime.num_workers is {runtime.num_workers}; at most recipe.{name}.num_lanes = "
                f"{num_lanes} can share the work: more lanes are another order of the samples"
            )


@dataclass(frozen=True, kw_only=True)
class MainJobKeys:
    """Keys of the main job that another command takes, so that its config files can be given as they are."""

    corpus: str = ""
    """The main job's; not used."""
    corpus_format: CorpusFormat = "auto"
    """The main job's; not used."""
    corpus_options: CorpusOptions = field(default_factory=CorpusOptions)
    """The main job's; not used."""


def parse_run_config(argv: Sequence[str], description: str) -> RunConfig:
    """Read `--config FILE ...` and dotted overrides into a `RunConfig`.

    The class lists of a config file, and what it says of the format, belong to the corpus that the file
    names: with another `--corpus` or `--recipe.PHASE.dataset`, every class is used unless the command line
    says otherwise.
    """
    config = parse_config(RunConfig, argv, description)
    has_own_corpus = is_given(argv, "--corpus")
    if has_own_corpus and config.recipe.pretrain.dataset and config.recipe.finetune.dataset:
        raise InputError(
            f"corpus {config.corpus!r} would not be read, as both phases have a dataset: leave "
            "it out, or a dataset"
        )
    if has_own_corpus and not is_given(argv, "--corpus_format"):
        config = replace(config, corpus_format="auto")
    if has_own_corpus and not any(argument.startswith("--corpus_options") for argument in argv):
        config = replace(config, corpus_options=CorpusOptions())
    recipe = config.recipe
    for name in ("pretrain", "finetune"):
        phase: PhaseConfig = getattr(recipe, name)
        if not has_own_corpus and not (phase.dataset and is_given(argv, f"--recipe.{name}.dataset")):
            continue
        for option in ("classes", "max_train_per_class"):
            if not is_given(argv, f"--recipe.{name}.{option}"):
                phase = replace(phase, **{option: None})
        recipe = replace(recipe, **{name: phase})
    return replace(config, recipe=recipe)
