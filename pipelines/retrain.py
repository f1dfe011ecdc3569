"""New images -> appended snapshot -> finetune from the champion -> gate -> promote, or not.

    python pipelines/retrain.py --once --config pipelines/configs/demo.yaml \
        --incoming s3://coatnet/incoming

`incoming` may be in any format that a corpus has; an image that was taken once is never taken again. The
recipe's finetuning is repeated from the champion's weights on the whole data set, old and new, and the
champion and the challenger are compared on the grown eval split. It looks once and ends: let cron or
a Kubernetes CronJob run it on a schedule.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from data.append import append_snapshot
from data.corpora.options import CorpusFormat, CorpusOptions
from data.errors import InputError
from data.snapshot import Snapshot, list_snapshots, load_snapshot
from data.store import Store
from infra.ledger import Ledger
from infra.registry import VERDICT_TAG, VersionInfo
from infra.store import check_store, open_store
from pipelines.config import MainJobKeys, Recipe, Runtime, check_runtime_fits
from pipelines.corpus import Corpus, CorpusPlace, open_corpus
from pipelines.corpus_tasks import corpus_tasks
from pipelines.dataset_card import CardSource, publish_card, publish_missing_card
from pipelines.dataset_ref import DatasetRef, open_dataset
from pipelines.job import announce, run_main
from pipelines.mixture import check_mixture
from pipelines.parse_config import parse_config, with_flags
from pipelines.preflight import check_services
from pipelines.review import (
    DATASET_TAG,
    SNAPSHOT_TAG,
    champion_stage,
    check_champion_fits,
    finish_pending,
    required_tag,
)
from pipelines.session import Session
from pipelines.shard_command import counts
from pipelines.shard_tasks import Arrivals, run_shard_tasks
from pipelines.stages import pinned_stage


@dataclass(frozen=True, kw_only=True)
class RetrainConfig(MainJobKeys):
    """Where to look, and how to finetune what is found."""

    incoming: str = ""
    """Where new images arrive, local or s3://: class folders, or what else `shard.py append` reads."""
    incoming_format: CorpusFormat = "auto"
    """By default what is there: a file's extension and columns, or a folder's first files. An empty folder is
    nothing new then; with a format, it is an error."""
    incoming_options: CorpusOptions = field(default_factory=CorpusOptions)
    once: bool = False
    """Look once and end; required, as nothing else is offered yet."""
    recipe: Recipe = field(default_factory=Recipe)
    runtime: Runtime = field(default_factory=Runtime)

    def __post_init__(self) -> None:
        if not self.incoming:
            raise InputError("incoming is empty: give --incoming with a folder, file or s3:// of new images")
        if not self.once:
            raise InputError(
                "give --once: it looks once and ends; a schedule is cron's or a CronJob's to keep"
            )
        if self.recipe == Recipe():
            raise InputError("no recipe: give --config with the file that the champion was trained with")
        check_runtime_fits(self.recipe, self.runtime, ("finetune",))  # before anything is appended


def main(argv: Sequence[str]) -> int:
    """Look once; nothing new is fine and returns 0."""
    _refuse_corpus(argv)
    config = parse_config(
        RetrainConfig, with_flags(argv, "--once"), "Retrain the champion when new images have arrived."
    )
    place = CorpusPlace(
        staging=open_store(config.runtime.root).sub("staging"),
        run=corpus_tasks(max_in_flight=config.runtime.shard_tasks_in_flight, announce=announce),
    )
    incoming = open_corpus(config.incoming, config.incoming_format, config.incoming_options, place)
    tracking_uri = check_services(config.runtime, incoming.origin)
    session = Session(config.recipe, config.runtime, tracking_uri, actor="pipelines/retrain.py")
    unused = {"once", *(field.name for field in fields(MainJobKeys))}
    parameters = {name: value for name, value in asdict(config).items() if name not in unused}
    retrain(session, incoming, parameters)
    return 0


def retrain(session: Session, incoming: Corpus, parameters: Mapping[str, Any]) -> None:
    """Append what is new; train, evaluate and decide if there is something to learn from."""
    model_name = session.runtime.model_name
    finish_pending(session.registry, model_name, Ledger(store=session.root), announce)
    champion = find_champion(session)
    phase = session.recipe.finetune
    newest = _newest_snapshot(session, champion)
    # Before the append, which stays; so a class that only `incoming` brings cannot be mixed in yet.
    check_mixture("finetune", phase.mixture, classes=newest.classes, num_lanes=phase.num_lanes)
    snapshot = append(session, incoming, newest, champion)
    if snapshot.id == champion.tags[SNAPSHOT_TAG]:
        announce(f"retrain: nothing new since snapshot {snapshot.id} of champion version {champion.version}")
        return
    _check_evaluable(snapshot)
    dataset = pinned_stage(DatasetRef.of(snapshot, champion.tags[DATASET_TAG]))
    parent = champion_stage(session.registry, champion)
    challenger = session.train("finetune", phase, dataset, parent)
    decided = session.registry.find_version(model_name, challenger.fingerprint)
    if decided is not None and VERDICT_TAG in decided.tags:
        announce(
            f"retrain: nothing new since snapshot {snapshot.id}, whose version {decided.version} was "
            f"{decided.tags[VERDICT_TAG]}; the champion is version {champion.version}"
        )
        return
    decode = phase.decode
    evaluation = session.evaluate(dataset, challenger, decode)
    key = evaluation.fingerprint
    session.connect()
    with session.job(key=key, name=f"retrain {key}", parameters=parameters):
        session.review(dataset, challenger, evaluation, decode)


def find_champion(session: Session) -> VersionInfo:
    """Return the version to start from; InputError if nothing was promoted, or not by this pipeline."""
    name = session.runtime.model_name
    champion = session.registry.champion(name)
    if champion is None:
        raise InputError(
            f"model {name!r} has no champion to retrain: run pipelines/pretrain_finetune.py first, "
            "or name another --runtime.model_name"
        )
    for tag in (DATASET_TAG, SNAPSHOT_TAG):
        required_tag(champion, tag)
    return champion


def append(session: Session, incoming: Corpus, parent: Snapshot, champion: VersionInfo) -> Snapshot:
    """Append the incoming images that no snapshot has seen to `parent`; return the newest snapshot."""
    dataset = open_dataset(session.root, champion.tags[DATASET_TAG])
    # Whatever arrives is taken: a new class too, and without a cap.
    finetune = replace(session.recipe.finetune, classes=None, max_train_per_class=None)
    sharding = session.recipe.sharding(finetune)
    arrived = Arrivals()
    write = run_shard_tasks(
        incoming.images,
        dataset,
        sharding,
        max_in_flight=session.runtime.shard_tasks_in_flight,
        announce=announce,
        connect=incoming.before_reading(session.connect),
    )
    appended = append_snapshot(parent, incoming.source, dataset, sharding, arrived.watch(write))
    source = CardSource(uri=incoming.uri, images=incoming.images, config=sharding)
    if appended is None:
        publish_missing_card(None, dataset, source)
        incoming.finish()
        announce(f"retrain: {arrived.describe()} in {incoming.uri}{_hint_if_empty(incoming.origin)}")
        return load_snapshot(dataset, "HEAD")  # another job may have taken the images meanwhile
    publish_card(dataset, appended, source, None)
    incoming.finish()
    before = load_snapshot(dataset, str(appended.parent))  # not `parent` if another append came first
    announce(f"retrain: snapshot {appended.id} appended to {before.id}: {_describe(before, appended)}")
    return appended


def _newest_snapshot(session: Session, champion: VersionInfo) -> Snapshot:
    """Return what new images are appended to: HEAD of the champion's dataset.

    Raises InputError where it cannot be written, has no snapshot, or has other classes than the champion.
    """
    dataset, phase = open_dataset(session.root, champion.tags[DATASET_TAG]), session.recipe.finetune
    check_store(dataset)
    if phase.dataset or phase.snapshot != "HEAD":
        announce(f"retrain: from the newest snapshot of {dataset.uri}, whatever recipe.finetune names")
    try:
        newest = load_snapshot(dataset, "HEAD")
    except InputError as error:
        if list_snapshots(dataset):
            raise
        raise InputError(
            f"{error}; version {champion.version} of model {champion.name!r} was trained on one: give "
            "the --runtime.root that it was trained with"
        ) from None
    check_champion_fits(champion, newest.classes)
    return newest


def _check_evaluable(snapshot: Snapshot) -> None:
    """Raise InputError where the gate could only say no: better now than after the training."""
    without = [name for name in snapshot.classes if not snapshot.stats["eval"][name]]
    if without:
        raise InputError(
            f"class {without[0]!r} has no image for evaluation in snapshot {snapshot.id}, so no gate could "
            "judge a model of it: add more images of it, or some in a test/ folder (beside train/)"
        )


def _hint_if_empty(incoming: Store) -> str:
    # An object store cannot tell an empty prefix from a misspelt one.
    return "" if any(True for _ in incoming.scan()) else ": it is empty, or the name is wrong"


def _describe(parent: Snapshot, appended: Snapshot) -> str:
    grown = {
        split: appended.stats["samples"][split] - parent.stats["samples"][split]
        for split in ("train", "eval")
    }
    parts = [f"{grown['train']} images for training, {grown['eval']} for evaluation"]
    if left_out := Counter(appended.stats["rejects"]):
        parts.append(f"{left_out.total()} left out ({counts(left_out)})")
    if new_classes := appended.classes[len(parent.classes) :]:
        parts.append(f"new classes: {', '.join(new_classes)}")
    return "; ".join(parts)


def _refuse_corpus(argv: Sequence[str]) -> None:
    """The main job's keys; a config file may name them unused."""
    for argument in argv:
        if argument.startswith("--corpus"):
            option = argument.partition("=")[0]
            raise InputError(f"retraining reads no {option}: give --incoming with the folder of new images")


if __name__ == "__main__":
    run_main(main)
