"""Our `shard.py create` against the writers of the peers: the same JPEGs, the same cores, a local folder.

Ours lists, plans, decodes every image, hashes, writes tars and indexes, looks for duplicates and commits
a snapshot; the peers write what they are given. With `validate: header` ours decodes no more than they do.
Ray is started before, for us as for Ray Data. The peers run at the best settings of a small sweep. Every
writer's data set is read back first: the same images, byte by byte, where it does not encode them anew.
On S3 the store shares the cores, so that CPU seconds are compared, the store's own left out.
"""

import itertools
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Generator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from infra.local_stack import read_environment
from tests.benchmarks.contender import Contender
from tests.benchmarks.measure import Timings, in_turn
from tests.benchmarks.real_photos import MIXED_PHOTOS, photo_files, small_files
from tests.benchmarks.session import Session
from tests.benchmarks.venvs import BenchmarkError

_MODULE = "tests.benchmarks.shard_writers"
_NUM_SMALL = 6000
_NUM_CLASSES = 10
_REPEATS = 5
_S3_REPEATS = 3
_HEADER_ONLY = {"limits.validate": "header"}


@dataclass(frozen=True, kw_only=True)
class Peer:
    """One peer and what its sweep tries."""

    writer: str
    title: str
    distribution: str | None
    """Whose version is told; None: our own code without the product around it."""
    sweep: tuple[dict[str, Any], ...]
    keeps_bytes: bool = True
    """Whether the images' bytes come through as they are."""
    writes_s3: bool = True
    venv: str | None = None


def peers(num_cores: int) -> tuple[Peer, ...]:
    """Return the peers with the settings to try on so many cores."""
    processes = tuple({"num_processes": number} for number in (1, num_cores))
    blocks = tuple({"num_blocks": number} for number in (num_cores, 4 * num_cores))
    downloads = tuple({**setting, "num_threads": threads} for setting in processes[1:] for threads in (4, 16))
    return (
        Peer(
            writer="webdataset", title="webdataset ShardWriter", distribution="webdataset", sweep=({},)
        ),
        Peer(
            writer="ray_images", title="Ray Data read_images -> write_webdataset", distribution="ray",
            sweep=blocks, keeps_bytes=False,
        ),
        Peer(
            writer="ray_bytes", title="Ray Data read_binary_files -> write_webdataset", distribution="ray",
            sweep=blocks,
        ),
        Peer(
            writer="mds", title="Mosaic MDSWriter", distribution="mosaicml-streaming", sweep=processes
        ),
        Peer(writer="litdata", title="LitData optimize", distribution="litdata", sweep=processes),
        Peer(
            writer="img2dataset", title="img2dataset", distribution="img2dataset", sweep=downloads,
            writes_s3=False, venv="img2dataset",
        ),
        Peer(
            writer="decode", title="decoding alone", distribution=None,
            sweep=({"decoder": "pillow"}, {"decoder": "simplejpeg"}), writes_s3=False,
        ),
        Peer(
            writer="copy", title="read + hash + write alone", distribution=None, sweep=({},), writes_s3=False
        ),
    )  # fmt: skip


class Round:
    """The corpus and the contenders that have started."""

    def __init__(self, corpus: Path, scratch: Path) -> None:
        self._corpus = corpus
        self._scratch = scratch
        self._numbers = itertools.count()
        self.contenders: dict[str, Contender] = {}

    def write(self, writer: str, settings: Mapping[str, Any]) -> float:
        """Write into a new folder, remove it, and return the seconds of the writing."""
        with self.folder() as out:
            return self._ask(writer, settings, str(out))["seconds"]

    def check(self, writer: str, settings: Mapping[str, Any]) -> dict[str, Any]:
        """Write, and read it back."""
        with self.folder() as out:
            self._ask(writer, settings, str(out))
            return self.contenders[writer].ask("check", out=str(out))

    def cpu_s(self, writer: str, settings: Mapping[str, Any]) -> float:
        """Return the CPU seconds of writing to the object store."""
        with self.folder() as scratch:
            out = f"s3://coatnet/{scratch.name}"
            all_settings = {**settings, "scratch": str(scratch)} if writer == "webdataset" else settings
            return self.contenders[writer].cpu_s(
                "write", corpus=str(self._corpus), out=out, settings=dict(all_settings)
            )

    @contextmanager
    def folder(self) -> Generator[Path]:
        """A path to write to; what was written there is removed."""
        out = self._scratch / f"out-{next(self._numbers)}"
        yield out
        shutil.rmtree(out, ignore_errors=True)

    def _ask(self, writer: str, settings: Mapping[str, Any], out: str) -> dict[str, Any]:
        return self.contenders[writer].ask(
            "write", corpus=str(self._corpus), out=out, settings=dict(settings)
        )


def main() -> None:
    session = Session.from_arguments(
        "bench_shard", ("ray", "webdataset", "mosaicml-streaming", "litdata", "pillow", "simplejpeg")
    )
    cores = sorted(os.sched_getaffinity(0))
    bench = session.out.parent
    with tempfile.TemporaryDirectory(prefix="bench-shard-", dir=bench) as name, ExitStack() as stack:
        scratch = Path(name)
        corpus, num_images = make_corpus(bench / "photos", scratch / "corpus")
        session.note("images", num_images)
        rounds = Round(corpus, scratch)
        environment = stack.enter_context(object_store(scratch / "store"))
        # Ray reads it when it is imported.
        environment["RAY_AUTH_MODE"] = "token"
        for writer in ("ours", *(peer.writer for peer in peers(len(cores)))):
            venv = next((peer.venv for peer in peers(len(cores)) if peer.writer == writer), None)
            python = bench / "venvs" / venv / "bin" / "python" if venv else Path(sys.executable)
            contender = Contender(writer, _MODULE, cores=cores, python=python, environment=environment)
            rounds.contenders[writer] = stack.enter_context(contender)
            contender.ask("start")
        chosen = sweep(session, rounds, peers(len(cores)))
        check_same(session, rounds, peers(len(cores)), chosen)
        compare_local(session, rounds, peers(len(cores)), chosen, num_images)
        compare_s3(session, rounds, peers(len(cores)), chosen, num_images)
    session.write()


def make_corpus(photos: Path, corpus: Path) -> tuple[Path, int]:
    """Lay out the photographs and CIFAR-10's images in class folders; return the folder and their number."""
    files = [*photo_files(photos, MIXED_PHOTOS), *small_files(photos, _NUM_SMALL)]
    for number, path in enumerate(files):
        target = corpus / f"class{number % _NUM_CLASSES}" / f"{number:05d}.jpg"
        target.parent.mkdir(parents=True, exist_ok=True)
        os.link(path, target)
    return corpus, len(files)


@contextmanager
def object_store(home: Path) -> Generator[dict[str, str]]:
    """Start SeaweedFS; yield the environment of its clients."""
    command = [sys.executable, "-m", "infra.local_stack"]
    up = [*command, "up", "--services", "s3", "--home", str(home)]
    done = subprocess.run(up, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise BenchmarkError(f"the object store does not start: {done.stderr.strip()}")
    try:
        environment = read_environment(home)
        yield {name: environment[name] for name in environment if name.startswith("AWS_")}
    finally:
        subprocess.run([*command, "down", "--home", str(home)], capture_output=True, check=False)


def sweep(session: Session, rounds: Round, all_peers: tuple[Peer, ...]) -> dict[str, dict[str, Any]]:
    """Try each peer's settings once after a warm-up, and return the fastest."""
    chosen: dict[str, dict[str, Any]] = {}
    for peer in all_peers:
        seconds = {}
        for number, settings in enumerate(peer.sweep):
            if len(peer.sweep) > 1:
                rounds.write(peer.writer, settings)
                seconds[number] = rounds.write(peer.writer, settings)
        best = min(seconds, key=seconds.__getitem__, default=0)
        chosen[peer.writer] = peer.sweep[best]
        session.note(f"{peer.title}: settings", peer.sweep[best])
        tried = [f"{peer.sweep[number]}: {second:.2f} s" for number, second in seconds.items()]
        session.announce(f"sweep of {peer.title}: {'; '.join(tried) or 'nothing to try'}")
    return chosen


def check_same(
    session: Session, rounds: Round, all_peers: tuple[Peer, ...], chosen: Mapping[str, Mapping[str, Any]]
) -> None:
    """Assert that each data set holds the same images."""
    ours = rounds.check("ours", {})
    assert ours == rounds.check("ours", _HEADER_ONLY), "the two validations keep different images"
    for peer in all_peers:
        if peer.distribution is None:
            continue
        theirs = rounds.check(peer.writer, chosen[peer.writer])
        assert theirs["num_images"] == ours["num_images"], f"{peer.title} wrote {theirs['num_images']} images"
        assert theirs["digest"] == ours["digest"] or not peer.keeps_bytes, f"{peer.title} wrote other bytes"
        session.announce(f"{peer.title}: the same {ours['num_images']} images")


def compare_local(
    session: Session,
    rounds: Round,
    all_peers: tuple[Peer, ...],
    chosen: Mapping[str, Mapping[str, Any]],
    num_images: int,
) -> None:
    calls = {
        "full validation": lambda: rounds.write("ours", {}),
        "validate: header": lambda: rounds.write("ours", _HEADER_ONLY),
        **{
            peer.title: lambda peer=peer: rounds.write(peer.writer, chosen[peer.writer]) for peer in all_peers
        },
    }
    seconds = in_turn(calls, repeats=_REPEATS)
    for ours, peer in itertools.product(("full validation", "validate: header"), all_peers):
        session.add(
            f"{ours}, against {peer.title}",
            Timings(ours_s=seconds[ours], peer_s=seconds[peer.title]),
            num_items=num_images,
            unit="images/s",
            peer_version=_version(peer),
        )


def compare_s3(
    session: Session,
    rounds: Round,
    all_peers: tuple[Peer, ...],
    chosen: Mapping[str, Mapping[str, Any]],
    num_images: int,
) -> None:
    """Compare images a CPU second of the whole process tree."""
    on_s3 = [peer for peer in all_peers if peer.writes_s3]
    calls = {
        "full validation": lambda: rounds.cpu_s("ours", {}),
        "validate: header": lambda: rounds.cpu_s("ours", _HEADER_ONLY),
        **{peer.title: lambda peer=peer: rounds.cpu_s(peer.writer, chosen[peer.writer]) for peer in on_s3},
    }
    seconds = in_turn(calls, repeats=_S3_REPEATS)
    for ours, peer in itertools.product(("full validation", "validate: header"), on_s3):
        session.add(
            f"to S3, images a CPU second, {ours}, against {peer.title}",
            Timings(ours_s=seconds[ours], peer_s=seconds[peer.title]),
            num_items=num_images,
            unit="images/s",
            peer_version=_version(peer),
        )


def _version(peer: Peer) -> str:
    if peer.distribution is None:
        return "the same libraries"
    if peer.venv is not None:
        requirements = Path(__file__).parent / "requirements" / f"{peer.venv}.txt"
        pins = requirements.read_text().splitlines()
        return next(pin.replace("==", " ") for pin in pins if pin.startswith(f"{peer.distribution}=="))
    return f"{peer.distribution} {metadata.version(peer.distribution)}"


if __name__ == "__main__":
    main()
