"""New images -> appended snapshot -> finetune from the champion -> gate -> promote, or not.

    python pipelines/retrain.py --once --config pipelines/configs/demo.yaml \
        --incoming s3://coatnet/incoming

`incoming` holds class folders; an image that was taken once is never taken again. The recipe's
finetuning is repeated from the champion's weights on the whole data set, old and new, and the
champion and the challenger are compared on the grown eval split.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from data.build import append_snapshot
from data.errors import InputError
from data.snapshot import Snapshot, load_snapshot
from data.store import Store
from infra.registry import VersionInfo
from pipelines.config import Recipe, Runtime, parse_config
from pipelines.job import announce, run_main
from pipelines.preflight import check_services
from pipelines.pretrain_finetune import open_corpus
from pipelines.review import DATASET_TAG, SNAPSHOT_TAG, VERDICT_TAG, champion_stage
from pipelines.session import Session
from pipelines.stages import DatasetRef, pinned_stage, run_shard_tasks


@dataclass(frozen=True, kw_only=True)
class RetrainConfig:
    """When to look, where, and how to finetune what is found."""

    incoming: str = ""
    """Class folders with new images, local or s3://."""
    once: bool = False
    """Look once and end; else look again every `every_s` seconds."""
    every_s: float = 3600.0
    corpus: str = ""
    """Unused: so that the main job's config files can be given as they are."""
    recipe: Recipe = field(default_factory=Recipe)
    runtime: Runtime = field(default_factory=Runtime)

    def __post_init__(self) -> None:
        if self.every_s <= 0:
            raise InputError(f"every_s is {self.every_s}; give the seconds between two looks, above 0")


def main(argv: Sequence[str]) -> int:
    """Run once or for ever; nothing new is fine and returns 0."""
    config = parse_config(RetrainConfig, argv, "Retrain the champion when new images have arrived.")
    if not config.incoming:
        raise InputError("incoming is empty: give --incoming with a folder or s3:// prefix of class folders")
    incoming = open_corpus(config.incoming)
    tracking_uri = check_services(config.runtime, incoming)
    session = Session(config.recipe, config.runtime, tracking_uri, actor="pipelines/retrain.py")
    find_champion(session)
    session.connect()
    while True:
        retrain(session, incoming, find_champion(session), asdict(config))
        if config.once:
            return 0
        time.sleep(config.every_s)


def find_champion(session: Session) -> VersionInfo:
    """Return the version to start from; InputError if nothing was promoted yet."""
    name = session.runtime.model_name
    champion = session.registry.champion(name)
    if champion is None:
        raise InputError(
            f"model {name!r} has no champion to retrain: run pipelines/pretrain_finetune.py first, "
            "or name another --runtime.model_name"
        )
    return champion


def retrain(session: Session, incoming: Store, champion: VersionInfo, parameters: Mapping[str, Any]) -> None:
    """Append what is new; train, evaluate and decide if there is something to learn from."""
    path = champion.tags[DATASET_TAG]
    snapshot = append(session, incoming, session.root.sub(path))
    nothing_new = f"retrain: nothing new in {incoming.uri} since snapshot {snapshot.id}"
    if snapshot.id == champion.tags[SNAPSHOT_TAG]:
        announce(nothing_new)
        return
    decode = session.recipe.finetune.decode
    dataset = pinned_stage(DatasetRef.of(snapshot, path))
    parent = champion_stage(session.registry, champion)
    challenger = session.train("finetune", session.recipe.finetune, dataset, parent)
    decided = session.registry.find_version(champion.name, challenger.fingerprint)
    if decided is not None and VERDICT_TAG in decided.tags:
        announce(f"{nothing_new}, whose version {decided.version} was {decided.tags[VERDICT_TAG]}")
        return
    evaluation = session.evaluate(dataset, challenger, decode)
    key = evaluation.fingerprint
    session.start(key=key, name=f"retrain {key}", parameters=parameters)
    session.review(dataset, challenger, evaluation, decode)
    session.finish()


def append(session: Session, incoming: Store, dataset: Store) -> Snapshot:
    """Append the incoming images that no snapshot has seen; return the newest snapshot."""
    parent = load_snapshot(dataset, "HEAD")
    # Whatever arrives is taken: a new class too, and without a cap.
    finetune = replace(session.recipe.finetune, classes=None, max_train_per_class=None)
    sharding = session.recipe.sharding(finetune)
    run_all = run_shard_tasks(incoming, dataset, sharding, session.runtime, announce)
    snapshot = append_snapshot(parent, incoming, dataset, sharding, run_all)
    if snapshot is None:
        return parent
    announce(f"retrain: snapshot {snapshot.id} appended to {parent.id}")
    return snapshot


if __name__ == "__main__":
    run_main(main)
