"""From a corpus's new images to a snapshot on top of another one."""

from collections import Counter
from collections.abc import Sequence

from data.build import (
    MAX_COMMIT_TRIES,
    RunAll,
    check_counts,
    describe_snapshot,
    named_counts,
)
from data.corpus_listing import CorpusListing
from data.deduplicate import Written, deduplicate
from data.errors import InputError
from data.lease import Lease, building
from data.list_corpus import list_for_append, local_folder
from data.listing import CorpusReader
from data.near_duplicate_drop import settle_near_duplicates
from data.outcomes import new_records, relabelled_records, remember_rejects
from data.retirement import check_live
from data.shard_plan import ShardPlans
from data.sharding_config import ShardingConfig
from data.snapshot import (
    Snapshot,
    SnapshotConflictError,
    check_head,
    commit_snapshot,
    head_and_next_number,
    load_chain,
    load_snapshot,
)
from data.split import SPLITS
from data.store import Store


def append_snapshot(
    parent: Snapshot,
    corpus: Store | CorpusReader,
    dataset: Store,
    config: ShardingConfig,
    run_all: RunAll,
    *,
    listing: CorpusListing | None = None,
) -> Snapshot | None:
    """Append the corpus's new images to `parent`; None where that adds no sample.

    New is a (path, offset, size, etag) that no snapshot of the chain has processed, in a local folder also
    one of another folder; the key gets a hash of all, so a file uploaded again under its name is another
    sample. New classes go to the end.
    An image whose bytes the chain has is put aside as `duplicate`, or as `leak` if it would be in
    the other split; so is one of a new train and a new eval image, by policy. Unusable images never
    stop an append, as they would stop every later one too: the quarantine and the stats tell.
    Where nothing is left, the rejects are remembered and not read again.

    If another append was committed first, this one is done again on top of it. Raises
    `InputError` for a new class without a usable train image, for `config.classes` that rename or
    remove a class of the parent, and for images that come under another class's name (`check_renamed`,
    `check_relabelled`), `SnapshotConflictError` where HEAD does not descend from `parent` (which was
    retired meanwhile, for example) or conflicts do not end.
    """
    check_live(dataset, parent.id)
    check_classes(config, parent)
    listing = listing or list_for_append(corpus, config)
    with building(dataset) as lease:
        for _ in range(MAX_COMMIT_TRIES):
            try:
                return _append_once(parent, listing, local_folder(corpus), dataset, config, run_all, lease)
            except SnapshotConflictError:
                head = load_snapshot(dataset, "HEAD")
                if parent.id not in {ancestor.id for ancestor in load_chain(dataset, head)}:
                    raise
                parent = head
    raise SnapshotConflictError(f"{dataset.uri}: {MAX_COMMIT_TRIES} other writers committed first; try again")


def check_classes(config: ShardingConfig, parent: Snapshot) -> None:
    """Raise `InputError` where `config.classes` leaves out a class of the parent.

    A label in a shard is a class's place in the parent's list, so no append can take a class away; the
    order of `config.classes` is that of the classes which are not there yet.
    """
    if config.classes is None:
        return
    for name in parent.classes:
        if name not in config.classes:
            raise InputError(
                f"class {name!r} of snapshot {parent.id} is not among classes: an append can neither rename "
                "nor remove a class; name it too (it needs no new image), or create another dataset"
            )


def check_renamed(added: Sequence[str], parent: Snapshot, listing: CorpusListing, written: Written) -> None:
    """Raise `InputError` where an added class is one of the parent's under another name.

    It is where a class that is absent from the listing has most of the added one's images, or the added
    one has most of its images, by their bytes. A class that is merely absent is none of an append's business:
    a folder of new images seldom has all. Nor are a few images that two classes share. An image of
    several labels tells nothing here.
    """
    present = {name for _, name in listing.counts}
    known: dict[str, Counter[str]] = {name: Counter() for name in added}
    first = len(parent.classes)
    for (label, old), count in written.relabelled.items():
        if label >= first and old < first and parent.classes[old] not in present:
            known[added[label - first]][parent.classes[old]] += count
    for label, (name, by_old) in enumerate(known.items(), start=first):
        num_new = sum(count for (_, one), count in written.label_counts.items() if one == label)
        renamed = by_old.total() > num_new or any(
            2 * count > _num_samples(parent, old) for old, count in by_old.items()
        )
        if renamed:
            raise InputError(_renamed_line(name, by_old, parent))


def _num_samples(snapshot: Snapshot, name: str) -> int:
    return sum(snapshot.stats[split].get(name, 0) for split in SPLITS)


def _renamed_line(name: str, by_old: Counter[str], parent: Snapshot) -> str:
    old, count = by_old.most_common(1)[0]
    return (
        f"class {name!r} has {count} images that snapshot {parent.id} knows as {old!r}, a class without an "
        "image in this corpus: an append cannot rename a class; name it as before, leave those images "
        "out, or create another dataset"
    )


def check_relabelled(dataset: Store, parent: Snapshot, listing: CorpusListing, folder: str) -> None:
    """Raise `InputError` where the corpus has known records under a new class: so a manifest renames one.

    Only a class that the parent does not have makes it read what became of earlier records.
    """
    unknown = [name for name in listing.classes if name not in parent.classes]
    counts = relabelled_records(dataset, parent, listing, unknown, folder) if unknown else Counter[str]()
    for name, count in counts.most_common(1):
        raise InputError(
            f"class {name!r} has {count} images that snapshot {parent.id} has under another class: an append "
            "cannot rename a class or move images; name it as before, or create another dataset"
        )


def _append_once(
    parent: Snapshot,
    listing: CorpusListing,
    folder: str,
    dataset: Store,
    config: ShardingConfig,
    run_all: RunAll,
    lease: Lease,
) -> Snapshot | None:
    head, number = head_and_next_number(dataset)
    if head.id != parent.id:
        raise SnapshotConflictError(
            f"{dataset.uri}: snapshot {head.number} was committed by another writer as {head.id}"
        )
    check_relabelled(dataset, parent, listing, folder)
    fresh = new_records(dataset, parent, listing, folder)
    if not fresh.num_images:
        return None
    known, arrived = set(parent.classes), set(fresh.classes)
    added = [name for name in config.classes or fresh.classes if name in arrived and name not in known]
    classes = (*parent.classes, *added)
    plans = ShardPlans(fresh, classes=classes, shard_size_bytes=config.shard_size_bytes)
    policy = "drop_train" if config.leak_policy == "error" else config.leak_policy
    results = list(run_all(plans))
    written = deduplicate(results, fresh, dataset, known=parent.splits, leak_policy=policy)
    check_renamed(added, parent, listing, written)
    written, near = settle_near_duplicates(written, fresh, dataset, known=parent.splits, config=config)
    if not any(written.shards.values()):
        reasons = {reject.key: reject.reason for reject in written.rejects}
        remember_rejects(dataset, parent, fresh, reasons, folder)
        return None
    check_counts(named_counts(written.label_counts, classes), added, needs_eval=False)
    snapshot = describe_snapshot(parent, number, fresh, classes, written, near, dataset, folder)
    lease.check()
    check_head(dataset, parent)
    return commit_snapshot(dataset, snapshot)
