"""`adopt` of `pipelines/shard.py`: WebDataset tars that exist already become a snapshot where they lie."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from functools import partial
from pathlib import Path

from data.adopt import AdoptOptions, adopt_tars, plan_tars
from data.adopt_scan import ScannedTar, TarPlan, scan_tar
from data.card import card_path
from data.class_runs import measure_class_runs
from data.errors import InputError
from data.snapshot import list_live_snapshots, load_snapshot
from data.store import Store
from infra.ray_tasks import run_tasks
from infra.store import check_store
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
    describe_snapshot,
    open_to_read,
    require,
    snapshot_values,
)
from pipelines.shard_tasks import ShardProgress


@dataclass(frozen=True, kw_only=True)
class AdoptConfig(AdoptOptions):
    """Options of `adopt`."""

    dataset: str = ""
    """The folder that the tars lie below: s3://bucket/path, file:///path or a path. Indexes and snapshots are
    written beside them; the tars themselves are never changed, moved or deleted."""
    classes_file: str = ""
    """A text file with a class name a line: the first names label 0. Without it the labels are the names."""
    runtime: ShardRuntime = field(default_factory=ShardRuntime)
    dry_run: bool = False
    """List the tars, say what would be done, and write nothing."""
    json: bool = False
    """End with one line of JSON."""

    def __post_init__(self) -> None:
        AdoptOptions.__post_init__(self)
        require(self, "dataset")

    @property
    def options(self) -> AdoptOptions:
        """What changes the result."""
        return AdoptOptions(**{f.name: getattr(self, f.name) for f in fields(AdoptOptions)})


def adopt(config: AdoptConfig) -> Outcome:
    """Index tars where they lie: every image is read and checked once, none is copied."""
    dataset, classes = open_to_read(config.dataset), _read_classes(config.classes_file)
    plans = plan_tars(dataset, config.options)
    by_split = Counter(plan.split for plan in plans)
    size_mb = sum(plan.size_bytes for plan in plans) / 1e6
    announce(
        f"adopt: {len(plans):,} tars new in {dataset.uri} ({by_split['train']:,} train, {by_split['eval']:,} "
        f"eval), {size_mb:,.1f} MB"
    )
    if config.dry_run:
        announce("dry run: nothing written")
        return Outcome(values={"dry_run": True, "tars": {plan.path: plan.split for plan in plans}})
    check_store(dataset)
    tracking_uri = check_card_tracking()
    source = CardSource(uri=dataset.uri, images=dataset, config=config.options)
    scan_all = partial(_scan_all, dataset, config.runtime.num_workers)
    snapshot = adopt_tars(dataset, config.options, scan_all, plans=plans, classes=classes) if plans else None
    if snapshot is None:
        head = load_snapshot(dataset, "HEAD") if list_live_snapshots(dataset) else None
        if head is not None:
            publish_missing_card(tracking_uri, dataset, source)
        announce("adopt: no sample that the dataset does not have")
        return Outcome(values={**(snapshot_values(head) if head else {}), "adopted": False})
    publish_card_in_own_run(tracking_uri, dataset, snapshot, source)
    announce(describe_snapshot(snapshot))
    if snapshot.quarantine_path:
        announce(f"what was left out, and why: {dataset.uri}/{snapshot.quarantine_path}")
    announce(f"dataset card: {dataset.uri}/{card_path(snapshot)}")
    runs = measure_class_runs(dataset, snapshot.splits["train"])
    if runs.is_sorted:
        announce(runs.warning)
    values = {
        **snapshot_values(snapshot),
        "adopted": True,
        "quarantine": snapshot.quarantine_path,
        "card": card_path(snapshot),
        "near_duplicates": dict(snapshot.stats["near_duplicates"]),
        "neighbours_same_class": round(runs.share, 4),
        "if_shuffled": round(runs.expected_share, 4),
    }
    return Outcome(values=values)


def _scan_all(dataset: Store, num_workers: int, plans: Sequence[TarPlan]) -> list[ScannedTar]:
    connect_to_ray()
    progress = ShardProgress("adopt", "rejected", len(plans), announce)

    def on_done(index: int, found: ScannedTar) -> None:
        num_images = found.num_samples + len(found.rejects)
        progress.add(num_images=num_images, size_bytes=found.size_bytes, num_problems=len(found.rejects))

    return run_tasks(partial(scan_tar, dataset=dataset), plans, max_in_flight=num_workers, on_done=on_done)


def _read_classes(path: str) -> list[str] | None:
    if not path:
        return None
    try:
        names = Path(path).expanduser().read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"classes_file {path!r} cannot be read ({error}): give a text file") from None
    names = [name.strip() for name in names]
    repeated = [name for name, count in Counter(names).items() if count > 1]
    if not names or "" in names or repeated:
        what = f"{repeated[0]!r} stands there twice" if repeated and repeated[0] else "a line is empty"
        raise InputError(f"classes_file {path!r}: {what}; give one name a line, each once")
    return names


COMMANDS = {
    "adopt": Command(
        config_type=AdoptConfig,
        run=adopt,
        description="Index existing WebDataset tars where they lie, as a snapshot; nothing is copied.",
    )
}
