"""`show` of `pipelines/shard.py`: a snapshot, one shard, one sample, or where other tools read the shards."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from data.card import read_provenance
from data.errors import InputError
from data.lease import LeaseInfo, active_leases
from data.lineage import SampleInfo, added_by, find_by_name, find_shard
from data.retirement import RetirementRecord, retirements
from data.shard_index import read_index
from data.snapshot import Snapshot, list_snapshots, load_snapshot
from data.store import Store, StoreRefusedError
from data.types import ShardInfo
from infra.store import readable_url
from pipelines.job import announce
from pipelines.shard_command import (
    Command,
    Outcome,
    counts,
    describe_snapshot,
    open_to_read,
    shorten,
    snapshot_values,
    split_names,
)
from pipelines.shard_read_commands import ReadConfig

_SHOWN_CLASSES = 40
_SHOWN_SAMPLES = 10
_MAX_PRESIGN_S = 7 * 24 * 3600  # S3 signs for no longer


@dataclass(frozen=True, kw_only=True)
class ShowConfig(ReadConfig):
    """Options of `show`; without --key, --shard and --urls it shows the snapshot as a whole."""

    key: str = ""
    """Show one sample: where it is, and from which file of the corpus it came. Its name, its path in the
    corpus, or its key in a tar; the path of a tar or Parquet file shows all of its samples. For an image
    that was left out: why."""
    shard: str = ""
    """Show one shard, and from which file of the corpus each sample came. Its path in the dataset, or its
    file name."""
    urls: bool = False
    """Print where stock tools can read the shards, a line each: webdataset.WebDataset takes them as they
    are from a folder, and as "pipe:curl -sf 'URL'" from S3."""
    presign_s: int = 3600
    """With --urls: for how many seconds URLs of an S3 dataset let anyone read."""

    def __post_init__(self) -> None:
        ReadConfig.__post_init__(self)
        if bool(self.key) + bool(self.shard) + self.urls > 1:
            raise InputError("give only one of --key, --shard and --urls")
        if not 1 <= self.presign_s <= _MAX_PRESIGN_S:
            raise InputError(f"presign_s is {self.presign_s}; give 1 to {_MAX_PRESIGN_S} (7 days)")


def show(config: ShowConfig) -> Outcome:
    """Show what a snapshot holds, or one thing in it."""
    dataset = open_to_read(config.dataset)
    snapshot = load_snapshot(dataset, config.snapshot)
    if config.key:
        return _show_key(dataset, snapshot, config.key)
    if config.shard:
        return _show_shard(dataset, snapshot, config.shard)
    if config.urls:
        return _show_urls(dataset, snapshot, config.presign_s)
    return _show_snapshot(dataset, snapshot)


def _show_snapshot(dataset: Store, snapshot: Snapshot) -> Outcome:
    retired = retirements(dataset)
    announce(describe_snapshot(snapshot))
    if mark := _mark(retired.get(snapshot.id)):
        announce(f"it is {mark}")
    splits = split_names(snapshot)
    rows = [(name, *(snapshot.stats[split][name] for split in splits)) for name in snapshot.classes]
    width = max(len(name) for name in ("class", *snapshot.classes))
    announce(f"{'class':{width}}  " + "  ".join(f"{split:>9}" for split in splits))
    for name, *numbers in rows[:_SHOWN_CLASSES]:
        announce(f"{name:{width}}  " + "  ".join(f"{number:>9,}" for number in numbers))
    if len(rows) > _SHOWN_CLASSES:
        announce(f"and {len(rows) - _SHOWN_CLASSES} more classes; --json has them all")
    snapshots = list_snapshots(dataset)
    marks = {one.id: _mark(retired.get(one.id)) for one in snapshots}
    parts = [f"{one.id} ({marks[one.id]})" if marks[one.id] else one.id for one in snapshots]
    announce(f"snapshots: {shorten(parts)}")
    leases = _leases(dataset)
    for lease in leases:
        announce(f"lease on {lease.what} of {lease.owner}, for {lease.expires_in_s / 60:.0f} minutes more")
    values = {
        **snapshot_values(snapshot),
        "by_class": {split: dict(snapshot.stats[split]) for split in snapshot.splits},
        "snapshots": [one.number for one in snapshots],
        "retired": {id_: asdict(record) for id_, record in retired.items() if not record.is_live},
        "leases": [asdict(lease) for lease in leases],
    }
    return Outcome(values=values)


def _leases(dataset: Store) -> list[LeaseInfo]:
    """Return the leases, or none where this user may not write: telling their age takes a note's time."""
    try:
        return active_leases(dataset)
    except StoreRefusedError as error:
        announce(f"leases: not shown, that needs the right to write ({error})")
        return []


def _mark(record: RetirementRecord | None) -> str:
    if record is None or record.is_live:
        return ""
    ended = ", its shards are freed" if record.state == "collected" else ""
    return f"retired: {record.reason}{ended}"


def _show_key(dataset: Store, snapshot: Snapshot, key: str) -> Outcome:
    found = find_by_name(dataset, snapshot, key)
    if not found.samples and not found.rejects:
        near = f"; names like it: {', '.join(map(repr, found.nearest))}" if found.nearest else ""
        raise InputError(f"no image {key!r} in snapshot {snapshot.id}, and none left out{near}")
    # A file with many images is a name of them all: what is the same for a shard is read once.
    shards = {sample.shard.path: sample.shard for sample in found.samples}
    origins = {path: _origin(dataset, snapshot, shard) for path, shard in shards.items()}
    samples = [
        _sample_values(dataset, snapshot, sample, origins[sample.shard.path]) for sample in found.samples
    ]
    texts = ["\n".join(f"{name:12}{value}" for name, value in values.items()) for values in samples]
    for reject in found.rejects:
        why = f"{reject['reason']}, {reject['detail']}"
        texts.append(f"{reject['key']} (corpus file {reject['path']}) was left out: {why}")
    _announce_first(texts)
    return Outcome(values={"snapshot": snapshot.id, "samples": samples, "rejects": list(found.rejects)})


def _announce_first(texts: Sequence[str]) -> None:
    for text in texts[:_SHOWN_SAMPLES]:
        announce(text)
    if len(texts) > _SHOWN_SAMPLES:
        announce(f"and {len(texts) - _SHOWN_SAMPLES:,} more; --json has them all")


def _origin(dataset: Store, snapshot: Snapshot, shard: ShardInfo) -> tuple[str, str]:
    """Return the corpus that a shard is of, and the snapshot it was written for."""
    first = added_by(dataset, snapshot, shard)
    return read_provenance(dataset, first).get("corpus", "not recorded"), first


def _sample_values(
    dataset: Store, snapshot: Snapshot, sample: SampleInfo, origin: tuple[str, str]
) -> dict[str, Any]:
    row = sample.row
    corpus, first = origin
    return {
        "name": row["name"],
        "corpus": corpus,
        "corpus_path": row["path"],
        "labels": [snapshot.classes[label] for label in row["labels"]],
        "split": sample.split,
        "pixels": f"{row['width']}x{row['height']}",
        "sha256": row["sha256"],
        "reencoded": row["reencoded"],
        "shard": f"{dataset.uri}/{sample.shard.path}",
        "member": f"{row['key']}.{row['extension']}",
        "offset": row["offset"],
        "size_bytes": row["size"],
        "added_by": first,
    }


def _show_shard(dataset: Store, snapshot: Snapshot, name: str) -> Outcome:
    found = find_shard(snapshot, name)
    if found is None:
        raise InputError(
            f"no shard {name!r} in snapshot {snapshot.id}: --urls lists them, --snapshot chooses another one"
        )
    split, shard = found
    rows = read_index(dataset, shard).select(["name", "path", "labels"]).to_pylist()
    by_class = Counter(snapshot.classes[label] for row in rows for label in row["labels"])
    corpus, first = _origin(dataset, snapshot, shard)
    how = "adopted where it lies" if shard.is_adopted else "written"
    announce(f"{dataset.uri}/{shard.path}: {split}, {how} for snapshot {first}")
    announce(f"corpus {corpus}")
    announce(f"{shard.num_samples:,} images, {shard.size_bytes:,} bytes, sha256 {shard.sha256}")
    announce(f"index {dataset.uri}/{shard.index_path}")
    announce(f"classes: {counts(by_class)}")
    _announce_first([f"  {row['name']} (corpus file {row['path']})" for row in rows])
    values = {
        "snapshot": snapshot.id,
        "split": split,
        "adopted": shard.is_adopted,
        "added_by": first,
        "corpus": corpus,
        "by_class": dict(by_class),
        "samples": [{"name": row["name"], "corpus_path": row["path"]} for row in rows],
        **asdict(shard),
    }
    return Outcome(values=values)


def _show_urls(dataset: Store, snapshot: Snapshot, presign_s: int) -> Outcome:
    urls = {
        split: [readable_url(dataset, shard.path, presign_s) for shard in snapshot.splits[split]]
        for split in split_names(snapshot)
    }
    for split, found in urls.items():
        for url in found:
            announce(f"{split}\t{url}")
    return Outcome(values={"snapshot": snapshot.id, "urls": urls})


COMMANDS = {
    "show": Command(
        config_type=ShowConfig,
        run=show,
        description="Show what a snapshot holds; or one image's origin, one shard, or the shards' URLs.",
    )
}
