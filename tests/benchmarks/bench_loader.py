"""Our loader against the peers': the same JPEGs to random-resized crops of 224 px, page cache warm.

Ours, webdataset and Ray Data read the same tars; the others read the form that they write. Each runs in a
process of its own, pinned to one core or to all, at the best settings of a small sweep, and yields
batches to its consumer, who does nothing with them. An epoch is timed from the asking for its first batch
to its last one; worker processes are started before. Equal work is asserted first: the same number of
images, the same labels, and nearly the same mean level of the pixels.
"""

import os
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from statistics import fmean
from typing import Any

from data.snapshot import commit_snapshot, load_snapshot, make_snapshot
from data.types import ShardInfo
from infra.folder_store import FolderStore
from tests.benchmarks.contender import Contender
from tests.benchmarks.measure import Timings, in_turn
from tests.benchmarks.photos import make_dataset
from tests.benchmarks.real_photos import LARGE_PHOTOS, WEB_PHOTOS, PhotoSet, photo_files
from tests.benchmarks.report import single_row
from tests.benchmarks.session import Session

_MODULE = "tests.benchmarks.loaders"
_NUM_CLASSES = 10
_REPEATS = 5
_RAY_PASSES = 3
_LARGEST_LEVEL_DIFFERENCE = 3.0
"""Of 255: crops of different draws over hundreds of images agree on their mean to about one."""
_CROPS_COMPARED = 512
"""At least; of fewer images several epochs are drawn."""
_MANY_SHARDS = 10_000
PEERS = {
    "webdataset": "webdataset",
    "folder": "torchvision",
    "mds": "mosaicml-streaming",
    "litdata": "litdata",
    "ray": "ray",
}
"""Names of `loaders.LOADERS` and the distributions whose versions are told."""
TITLES = {
    "webdataset": "webdataset",
    "folder": "torch DataLoader over an image folder",
    "mds": "Mosaic Streaming",
    "litdata": "LitData",
    "ray": "Ray Data read_webdataset",
}


@dataclass(frozen=True, kw_only=True)
class Workload:
    """One set of photographs, laid out for every loader below `root`."""

    photos: PhotoSet
    title: str
    batch_size: int
    """Small enough that an epoch is many batches for each worker process."""
    shard_size_bytes: int
    root: Path


def main() -> None:
    session = Session.from_arguments(
        "bench_loader", ("torch", "pillow", "simplejpeg", *PEERS.values()), num_threads=None
    )
    bench = session.out.parent
    with tempfile.TemporaryDirectory(prefix="bench-loader-", dir=bench) as name:
        web, large = (
            Workload(
                photos=WEB_PHOTOS, title="JPEG 500x375", batch_size=32, shard_size_bytes=4 * 2**20,
                root=Path(name) / "web",
            ),
            Workload(
                photos=LARGE_PHOTOS, title="JPEG 2000x1500", batch_size=16, shard_size_bytes=16 * 2**20,
                root=Path(name) / "large",
            ),
        )  # fmt: skip
        cores = sorted(os.sched_getaffinity(0))
        for work in (web, large):
            lay_out(work, bench / "photos")
            session.announce(f"{work.title}: laid out")
        many = Path(name) / "many"
        make_many_shards(web, many)
        for used in (cores[:1], cores) if len(cores) > 1 else (cores,):
            with ExitStack() as stack:
                contenders = {
                    loader: stack.enter_context(Contender(loader, _MODULE, cores=used))
                    for loader in ("ours", "decoder", *PEERS)
                }
                for work in (web, large):
                    compare(session, work, contenders, len(used))
        compare_first_batch(session, many, cores)
    session.write()


def lay_out(work: Workload, photos: Path) -> None:
    """Write the photographs as class folders, as our shards, as Mosaic's and as LitData's."""
    files = photo_files(photos, work.photos)
    contents = {
        f"class{number % _NUM_CLASSES}/{path.name}": path.read_bytes() for number, path in enumerate(files)
    }
    make_dataset(work.root, contents, shard_size_bytes=work.shard_size_bytes)
    (work.root / "corpus").rename(work.root / "classes")
    for writer, settings in (("mds", {"num_processes": 1}), ("litdata", {"num_processes": 1})):
        with Contender(writer, "tests.benchmarks.shard_writers", cores=os.sched_getaffinity(0)) as contender:
            corpus, out = str(work.root / "classes"), str(work.root / writer)
            contender.ask("write", corpus=corpus, out=out, settings=settings)


def candidates(loader: str, work: Workload, num_cores: int) -> list[dict[str, Any]]:
    """Return the settings that the sweep tries."""
    base: dict[str, Any] = {"batch_size": work.batch_size, "prefetch": 2, "num_workers": num_cores}
    if loader in ("ours", "decoder"):
        return [base]
    base["draft"] = True
    undrafted = [{**base, "draft": False}] if work.photos is not LARGE_PHOTOS else []
    if loader == "ray":
        return [{**tried, "passes": _RAY_PASSES, "shuffle_buffer": None} for tried in (base, *undrafted)]
    # On one core: no process beside the consumer's. On several: one more than there are cores.
    other_count = 0 if num_cores == 1 else num_cores + 1
    return [base, {**base, "num_workers": other_count}, {**base, "prefetch": 4}, *undrafted]


def compare(session: Session, work: Workload, contenders: Mapping[str, Contender], num_cores: int) -> None:
    """Compare on so many cores: speed, and on all of them memory, too."""
    where = "1 core" if num_cores == 1 else f"{num_cores} cores"
    for loader, contender in contenders.items():
        settings = choose(contender, work, candidates(loader, work, num_cores))
        session.note(f"{loader}, {work.title}, {where}", settings)
        session.announce(f"{work.title}, {where}: {loader} runs with {settings}")
    check_levels(contenders, num_epochs=-(-_CROPS_COMPARED // work.photos.num_photos))
    calls = {loader: timed_epoch(contender, work, loader) for loader, contender in contenders.items()}
    seconds = in_turn(calls, repeats=_REPEATS)
    for loader in ("decoder", *PEERS):
        against = TITLES.get(loader, "our decoder alone, bytes in memory")
        session.add(
            f"{work.title}, {where}, against {against}",
            Timings(ours_s=seconds["ours"], peer_s=seconds[loader]),
            num_items=work.photos.num_photos,
            unit="images/s",
            peer_version=_version(loader),
        )
    if num_cores > 1:
        compare_memory(session, work, where, contenders)


def choose(contender: Contender, work: Workload, tried: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Open the loader with the settings that were the fastest in their second epoch; return them."""
    seconds: list[float] = []
    for settings in tried if len(tried) > 1 else ():
        contender.ask("open", root=str(work.root), settings=dict(settings))
        contender.ask("epoch")
        seconds.append(contender.ask("epoch")["seconds"])
    best = dict(tried[seconds.index(min(seconds)) if seconds else 0])
    contender.ask("open", root=str(work.root), settings=best)
    return best


def check_levels(contenders: Mapping[str, Contender], num_epochs: int) -> None:
    """Assert that every loader's crops are about as bright as ours."""
    levels = {
        loader: fmean(contender.ask("mean")["mean_level"] for _ in range(num_epochs))
        for loader, contender in contenders.items()
    }
    for loader, level in levels.items():
        difference = abs(level - levels["ours"])
        assert difference < _LARGEST_LEVEL_DIFFERENCE, f"{loader}: its mean level differs by {difference:.1f}"


def timed_epoch(contender: Contender, work: Workload, loader: str) -> Callable[[], float]:
    """Return a call that gives an epoch's seconds, asserting that each image came once with its label."""
    passes = _RAY_PASSES if loader == "ray" else 1
    label_sum = sum(number % _NUM_CLASSES for number in range(work.photos.num_photos))

    def call() -> float:
        found = contender.ask("epoch")
        expected = (passes * work.photos.num_photos, passes * label_sum)
        counts = (found["num_images"], found["label_sum"])
        assert counts == expected, f"{loader}: images and sum of labels are {counts}, not {expected}"
        return found["seconds"] / passes

    return call


def compare_memory(session: Session, work: Workload, where: str, contenders: Mapping[str, Contender]) -> None:
    """Add rows of the process trees' memory over an epoch: whole, and beyond one process that has torch."""
    found = {loader: contender.peak_memory_mb("epoch") for loader, contender in contenders.items()}
    with Contender("nothing", _MODULE, cores=os.sched_getaffinity(0)) as contender:
        contender.ask("idle")
        torch_mb = contender.peak_memory_mb("idle")
    session.note(
        f"{work.title}, {where}: memory of a process that has imported torch, MB", round(torch_mb, 1)
    )
    for part, base_mb in (("memory of the process tree", 0.0), ("memory beyond torch's import", torch_mb)):
        for loader in PEERS:
            row = f"{work.title}, {where}, {part}, against {TITLES[loader]}"
            ours_mb, peer_mb = found["ours"] - base_mb, found[loader] - base_mb
            session.rows.append(single_row(row, ours_mb, peer_mb, unit="MB", peer_version=_version(loader)))


def make_many_shards(work: Workload, root: Path) -> None:
    """Make a data set of ten thousand shards out of links to one that holds all the photographs."""
    contents = {
        path.relative_to(work.root / "classes"): path for path in (work.root / "classes").rglob("*.jpg")
    }
    files = {str(name): path.read_bytes() for name, path in contents.items()}
    store, (shard, *rest) = make_dataset(root, files)
    assert not rest, "one shard was meant to hold all photographs"
    shards = []
    for number in range(_MANY_SHARDS):
        copy = replace(
            shard,
            path=f"shards/train-{number:016x}.tar",
            index_path=f"shards/train-{number:016x}.parquet",
            sha256=f"{number:064x}",  # The cache names its files so.
        )
        os.link(store.root / shard.path, store.root / copy.path)
        os.link(store.root / shard.index_path, store.root / copy.index_path)
        shards.append(copy)
    # Stock webdataset takes all tars of the folder.
    (store.root / shard.path).unlink()
    commit_many(store, shards)


def commit_many(store: FolderStore, shards: Sequence[ShardInfo]) -> None:
    """Commit a snapshot of these train shards alone."""
    head = load_snapshot(store, "HEAD")
    only = make_snapshot(
        store,
        None,
        {"train": tuple(shards), "eval": ()},
        classes=head.classes,
        stats=head.stats,
        listing_digest=head.listing_digest,
        listing_paths=head.listing_paths,
        quarantine_path=None,
    )
    commit_snapshot(store, replace(only, number=head.number + 1))


def compare_first_batch(session: Session, root: Path, cores: Sequence[int]) -> None:
    """Time from nothing but the libraries to the first batch; our node cache is empty each time."""
    settings = {"batch_size": 64, "prefetch": 2, "num_workers": len(cores), "draft": True}
    with ExitStack() as stack:
        ours, peer = (
            stack.enter_context(Contender(loader, _MODULE, cores=cores)) for loader in ("ours", "webdataset")
        )
        caches = iter(range(10**9))

        def first(contender: Contender) -> float:
            fresh = {**settings, "cache": f"cache-{next(caches)}"}
            answer = contender.ask("first", root=str(root), settings=fresh)
            shutil.rmtree(root / fresh["cache"], ignore_errors=True)
            return answer["seconds"]

        seconds = in_turn({"ours": lambda: first(ours), "webdataset": lambda: first(peer)}, repeats=_REPEATS)
    session.environment["repeats"]["first batch"] = seconds
    middle = {name: sorted(values)[len(values) // 2] for name, values in seconds.items()}
    session.rows.append(
        single_row(
            f"time to the first batch, {_MANY_SHARDS:,} shards, against webdataset",
            middle["ours"],
            middle["webdataset"],
            unit="s",
            peer_version=_version("webdataset"),
        )
    )


def _version(loader: str) -> str:
    return f"{PEERS[loader]} {metadata.version(PEERS[loader])}" if loader in PEERS else "the same libraries"


if __name__ == "__main__":
    main()
