"""Sixteen writers append to one dataset of the real object store at once: no image lost, none twice."""

import subprocess
import sys
import uuid
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from data.build import ShardingConfig, build_snapshot
from data.shard_write import write_shards_here
from data.snapshot import list_snapshots, load_chain, load_snapshot, read_index
from data.store import Store
from data.verify import verify_lists, verify_shard
from infra.store import open_store
from tests.conftest import REPOSITORY, Stack
from tests.image_samples import fill, photos

pytestmark = pytest.mark.integration

NUM_WRITERS = 16
CONFIG = ShardingConfig(shard_size_bytes=8000)
# In two processes: their writers share nothing but the store. Not in 16, as each imports pyarrow.
WRITER = """
import sys
from concurrent.futures import ThreadPoolExecutor
from data.append import append_snapshot
from data.shard_write import write_shards_here
from data.snapshot import load_snapshot
from infra.store import open_store
from tests.integration.test_append_race import CONFIG

def append(folder):
    dataset, incoming = open_store(sys.argv[1]), open_store(folder)
    write = write_shards_here(incoming, dataset, CONFIG.limits)
    return append_snapshot(load_snapshot(dataset, "1-" + sys.argv[2]), incoming, dataset, CONFIG, write)

with ThreadPoolExecutor(8) as pool:
    for snapshot in pool.map(append, sys.argv[3:]):
        print(snapshot.id)
"""


@pytest.fixture
def uri(object_store: Stack, monkeypatch: pytest.MonkeyPatch) -> str:
    for name, value in object_store.environment.items():
        monkeypatch.setenv(name, value)
    return f"s3://coatnet/race-{uuid.uuid4().hex[:8]}"


def append_in_processes(uri: str, root_hash: str, folders: list[Path]) -> list[str]:
    def run(some: list[Path]) -> list[str]:
        command = [sys.executable, "-c", WRITER, uri, root_hash, *map(str, some)]
        done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=280)
        assert done.returncode == 0, done.stderr
        return done.stdout.split()

    half = len(folders) // 2
    with ThreadPoolExecutor(2) as pool:
        return [id_ for ids in pool.map(run, [folders[:half], folders[half:]]) for id_ in ids]


def labelled(dataset: Store) -> Counter[tuple[str, str]]:
    """Count the samples of HEAD by corpus path and class name, as its indexes and class list say."""
    head = load_snapshot(dataset, "HEAD")
    rows = [
        row
        for shards in head.splits.values()
        for one in shards
        for row in read_index(dataset, one).to_pylist()
    ]
    return Counter((row["path"], head.classes[label]) for row in rows for label in row["labels"])


def test_every_writer_of_sixteen_is_in_the_chain_once_with_its_own_classes(uri: str, tmp_path: Path) -> None:
    """Half of the writers bring a class of their own: labels are places in a list that all of them extend."""
    dataset = open_store(uri)
    root_files = photos("train/old", 4, 0) | photos("test/old", 2, 50)
    corpus = fill(tmp_path / "corpus", root_files)
    root = build_snapshot(corpus, dataset, CONFIG, write_shards_here(corpus, dataset, CONFIG.limits))
    expected = Counter((path, "old") for path in root_files)
    folders: list[Path] = []
    for writer in range(NUM_WRITERS):
        # Names that sort against the order of writers, so that a stale class list would give wrong labels.
        label = f"new-{NUM_WRITERS - writer:02d}" if writer % 2 else "old"
        files = photos(f"train/{label}/w{writer}", 5, 1000 * (writer + 1))
        expected.update((path, label) for path in files)
        fill(tmp_path / f"incoming-{writer}", files)
        folders.append(tmp_path / f"incoming-{writer}")

    committed = append_in_processes(uri, root.content_sha256[:12], folders)

    head = load_snapshot(dataset, "HEAD")
    chain = load_chain(dataset, head)
    assert {one.id for one in chain} == {root.id, *committed}
    assert [one.number for one in list_snapshots(dataset)] == list(range(1, NUM_WRITERS + 2))
    assert labelled(dataset) == expected
    for parent, child in zip(chain[1:], chain, strict=False):
        assert child.parent == parent.id
        assert child.classes[: len(parent.classes)] == parent.classes
        assert len(child.classes) - len(parent.classes) <= 1
    assert set(head.classes) == {label for _, label in expected}
    by_class = Counter(label for path, label in expected.elements() if path.startswith("train"))
    assert head.stats["train"] == by_class
    shards = [shard for found in head.splits.values() for shard in found]
    assert [damage for shard in shards for damage in verify_shard(shard, dataset=dataset)] == []
    assert verify_lists(head, dataset) == ()
    assert not list(dataset.list("leases"))
