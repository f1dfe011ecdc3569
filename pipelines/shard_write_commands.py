"""`create` and `append` of `pipelines/shard.py`."""

from collections import Counter
from dataclasses import dataclass, field, fields
from typing import Any

from data.append import append_snapshot, check_classes, check_relabelled
from data.build import RunAll, build_snapshot, plan_build
from data.card import card_path
from data.corpora.options import CorpusFormat, CorpusOptions
from data.corpus_listing import CorpusListing
from data.errors import InputError
from data.list_corpus import list_for_append, list_for_build, local_folder
from data.outcomes import new_records
from data.sharding_config import ShardingConfig
from data.snapshot import Snapshot, load_snapshot
from data.store import Store
from infra.store import check_store, open_store
from pipelines.corpus import Corpus, CorpusPlace, open_corpus
from pipelines.corpus_tasks import corpus_tasks
from pipelines.dataset_card import (
    CardSource,
    check_card_tracking,
    publish_card_in_own_run,
    publish_missing_card,
)
from pipelines.job import announce, connect_to_ray
from pipelines.shard_command import (
    Command,
    Outcome,
    ShardRuntime,
    describe_listing,
    describe_snapshot,
    open_to_read,
    require,
    snapshot_values,
)
from pipelines.shard_tasks import Arrivals, run_shard_tasks


@dataclass(frozen=True, kw_only=True)
class WriteConfig(ShardingConfig):
    """Options of `create` and `append`."""

    corpus: str = ""
    """A path or s3://: class folders of images, with or without train/ and test/ above them; a .csv or
    .parquet manifest of uri,label[,split]; Parquet with images, WebDataset's or ImageNet's tars, a file or
    a folder of them."""
    corpus_format: CorpusFormat = "auto"
    """By default what is there: a file's extension and columns, or a folder's first files."""
    corpus_options: CorpusOptions = field(default_factory=CorpusOptions)
    dataset: str = ""
    """Where the snapshots are: s3://bucket/path, file:///path or a path."""
    runtime: ShardRuntime = field(default_factory=ShardRuntime)
    dry_run: bool = False
    """List the corpus, say what would be done, and write nothing."""
    json: bool = False
    """End with one line of JSON."""

    def __post_init__(self) -> None:
        ShardingConfig.__post_init__(self)
        require(self, "corpus", "dataset")

    @property
    def sharding(self) -> ShardingConfig:
        """What changes the result."""
        return ShardingConfig(**{f.name: getattr(self, f.name) for f in fields(ShardingConfig)})


def create(config: WriteConfig) -> Outcome:
    """Shard a corpus into a first snapshot; the same corpus again gives the same one, without reading it."""
    dataset, sharding = open_store(config.dataset), config.sharding
    corpus = _open_corpus(config, dataset)
    tracking_uri = None if config.dry_run else _check_services(dataset)
    listing = list_for_build(corpus.source, sharding)
    announce(f"create: {describe_listing(listing)} in {corpus.uri}")
    if config.dry_run:
        shards = Counter(plan.split for plan in plan_build(listing, sharding))
        announce(f"dry run: {shards['train']} shards of train and {shards['eval']} of eval; nothing written")
        return Outcome(values={"dry_run": True, "images": listing.num_images, "shards": dict(shards)})
    run_all = _run_all(config, corpus, dataset)
    snapshot = build_snapshot(corpus.source, dataset, sharding, run_all, listing=listing)
    return _committed(snapshot, dataset, corpus, sharding, tracking_uri)


def append(config: WriteConfig) -> Outcome:
    """Append what no snapshot has seen to the newest one."""
    dataset, sharding = open_to_read(config.dataset), config.sharding
    corpus = _open_corpus(config, dataset)
    parent = load_snapshot(dataset, "HEAD")
    check_classes(sharding, parent)
    tracking_uri = None if config.dry_run else _check_services(dataset)
    listing = list_for_append(corpus.source, sharding)
    _refuse_unknown_classes(config, listing, parent)
    if config.dry_run:
        check_relabelled(dataset, parent, listing, local_folder(corpus.source))
        fresh = new_records(dataset, parent, listing, local_folder(corpus.source))
        announce(f"dry run: {fresh.num_images:,} images are new to snapshot {parent.id}; nothing written")
        return Outcome(values={"dry_run": True, "parent": parent.id, "images": fresh.num_images})
    arrived = Arrivals()
    run_all = arrived.watch(_run_all(config, corpus, dataset))
    appended = append_snapshot(parent, corpus.source, dataset, sharding, run_all, listing=listing)
    if appended is None:
        publish_missing_card(tracking_uri, dataset, _card_source(corpus, sharding))
        corpus.finish()
        announce(f"append: {arrived.describe()} in {corpus.uri} since snapshot {parent.id}")
        return Outcome(values={**snapshot_values(parent), "appended": False, "rejects": arrived.reasons})
    return _committed(appended, dataset, corpus, sharding, tracking_uri)


def _check_services(dataset: Store) -> str | None:
    """Check what is written to; return MLflow's URI, if any. Before the listing, which may take long."""
    check_store(dataset)
    return check_card_tracking()


def _open_corpus(config: WriteConfig, dataset: Store) -> Corpus:
    place = CorpusPlace(
        staging=dataset.sub("staging"),
        run=corpus_tasks(max_in_flight=config.runtime.num_workers, announce=announce),
        is_dry_run=config.dry_run,
    )
    return open_corpus(config.corpus, config.corpus_format, config.corpus_options, place)


def _run_all(config: WriteConfig, corpus: Corpus, dataset: Store) -> RunAll:
    return run_shard_tasks(
        corpus.images,
        dataset,
        config.sharding,
        max_in_flight=config.runtime.num_workers,
        announce=announce,
        connect=corpus.before_reading(connect_to_ray),
    )


def _refuse_unknown_classes(config: WriteConfig, listing: CorpusListing, parent: Snapshot) -> None:
    there = {label for _, label in listing.counts} | set(parent.classes)
    if unknown := [name for name in config.classes or () if name not in there]:
        raise InputError(
            f"class {unknown[0]!r} is neither in {config.corpus} nor in snapshot {parent.id}: "
            "correct --classes, or leave it out for all"
        )


def _card_source(corpus: Corpus, config: ShardingConfig) -> CardSource:
    return CardSource(uri=corpus.uri, images=corpus.images, config=config)


def _committed(
    snapshot: Snapshot, dataset: Store, corpus: Corpus, config: ShardingConfig, tracking_uri: str | None
) -> Outcome:
    publish_card_in_own_run(tracking_uri, dataset, snapshot, _card_source(corpus, config))
    corpus.finish()
    announce(describe_snapshot(snapshot))
    if snapshot.quarantine_path:
        announce(f"what was left out, and why: {dataset.uri}/{snapshot.quarantine_path}")
    announce(f"dataset card: {dataset.uri}/{card_path(snapshot)}")
    values: dict[str, Any] = {
        **snapshot_values(snapshot),
        "quarantine": snapshot.quarantine_path,
        "card": card_path(snapshot),
        "near_duplicates": dict(snapshot.stats.get("near_duplicates", {})),
    }
    if snapshot.parent is not None:
        values["appended"] = True
    return Outcome(values=values)


COMMANDS = {
    "create": Command(
        config_type=WriteConfig,
        run=create,
        description="Shard a corpus into the first snapshot of a dataset.",
    ),
    "append": Command(
        config_type=WriteConfig, run=append, description="Append a corpus's new images as a new snapshot."
    ),
}
