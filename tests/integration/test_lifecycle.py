"""How snapshots end, on the real object store: retire, leases, gc, and gc against builds."""

import json
import threading
import uuid
from pathlib import Path
from typing import Any

import pytest

from data.append import append_snapshot
from data.build import ShardingConfig, build_snapshot
from data.errors import InputError
from data.lease import BUILDS, active_leases, hold, pin
from data.retirement import retire_snapshot
from data.shard_write import write_shards_here
from data.snapshot import Snapshot, load_snapshot
from data.store import Store
from data.verify import verify_lists, verify_shard
from infra.store import open_store
from pipelines.config import Recipe, Runtime
from pipelines.session import Session
from pipelines.shard import main
from pipelines.stage import Stage, Workspace
from pipelines.stages import DatasetRef, pinned_stage
from tests.conftest import Stack
from tests.image_samples import fill, photos

pytestmark = pytest.mark.integration

CONFIG = ShardingConfig(shard_size_bytes=8000)
FILES = photos("train/cat", 8, 0) | photos("train/dog", 8, 100) | photos("test/cat", 3, 200)


@pytest.fixture
def dataset(object_store: Stack, monkeypatch: pytest.MonkeyPatch) -> Store:
    for name, value in object_store.environment.items():
        monkeypatch.setenv(name, value)
    return open_store(f"s3://coatnet/lifecycle-{uuid.uuid4().hex[:8]}")


def build(corpus: Store, dataset: Store) -> Snapshot:
    return build_snapshot(corpus, dataset, CONFIG, write_shards_here(corpus, dataset, CONFIG.limits))


def damages(snapshot: Snapshot, dataset: Store) -> list[str]:
    shards = [shard for found in snapshot.splits.values() for shard in found]
    found = [damage for shard in shards for damage in verify_shard(shard, dataset=dataset)]
    return [damage.path for damage in (*found, *verify_lists(snapshot, dataset))]


def test_a_bad_append_from_its_retirement_to_its_end(
    dataset: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(*arguments: str) -> tuple[str, dict[str, Any]]:
        assert main([*arguments, "--dataset", dataset.uri, "--json"]) == 0
        text = capsys.readouterr().out
        return text, json.loads(text.splitlines()[-1])

    good = build(fill(tmp_path / "corpus", FILES), dataset)
    incoming = fill(tmp_path / "wrong", photos("train/cat", 4, 500))
    bad = append_snapshot(
        good, incoming, dataset, CONFIG, write_shards_here(incoming, dataset, CONFIG.limits)
    )
    assert bad is not None
    retire = ("retire", "--snapshot", bad.id, "--reason", "these are dogs")
    assert run(*retire, "--dry-run")[1]["snapshots"] == [bad.id]
    assert load_snapshot(dataset, "HEAD") == bad
    with pin(dataset, bad.id) as lease:
        text, values = run(*retire)
        assert f"still read by {lease.owner}" in text
        assert values["head"] == good.id
        text, shown = run("show", "--snapshot", bad.id)
        assert "it is retired: these are dogs" in text
        assert shown["retired"][bad.id]["state"] == "retired"
        assert [one["owner"] for one in shown["leases"]] == [lease.owner]
        assert run("gc", "--grace_days", "0")[1]["held_back"] == {bad.id: f"leased by {lease.owner}"}
    assert run("retire", "--undo", "--snapshot", bad.id)[1]["head"] == bad.id
    assert run(*retire)[1]["head"] == good.id
    with pytest.raises(InputError, match=r"is retired \(these are dogs\)"), pin(dataset, bad.id):
        pytest.fail("pinned")

    assert run("gc")[1]["objects"] == 0, "all is younger than seven days"
    planned = run("gc", "--grace_days", "0", "--dry-run")[1]
    assert planned["ended"] == [bad.id]
    assert damages(bad, dataset) == [], "a dry run frees nothing"
    text, freed = run("gc", "--grace_days", "0")
    assert f"retired snapshot {bad.id} is gone for good" in text
    names = ("objects", "size_bytes", "by_folder", "ended")
    assert {name: freed[name] for name in names} == {name: planned[name] for name in names}
    assert damages(bad, dataset) != []
    assert damages(good, dataset) == []
    assert run("gc", "--grace_days", "0")[1]["objects"] == 0
    with pytest.raises(InputError, match="cannot come back"):
        main(["retire", "--undo", "--snapshot", bad.id, "--dataset", dataset.uri])


def test_old_snapshots_are_retired_by_policy_but_never_head(
    dataset: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chain = [build(fill(tmp_path / "corpus", FILES), dataset)]
    for number in range(2):
        incoming = fill(tmp_path / f"more-{number}", photos("train/cat", 2, 500 + 10 * number))
        write = write_shards_here(incoming, dataset, CONFIG.limits)
        appended = append_snapshot(chain[-1], incoming, dataset, CONFIG, write)
        assert appended is not None
        chain.append(appended)

    def retired(*policy: str) -> list[str]:
        command = ["retire", "--dataset", dataset.uri, "--reason", "old", "--dry-run", "--json", *policy]
        assert main(command) == 0
        return json.loads(capsys.readouterr().out.splitlines()[-1])["snapshots"]

    ids = [one.id for one in chain]
    assert retired("--keep_last", "2") == ids[:1]
    assert retired("--older_than_days", "1") == []
    assert retired("--keep_last", "1", "--older_than_days", "1") == []
    for wrong, message in (
        (["--reason", "x"], "give either --snapshot"),
        (["--snapshot", ids[0]], "reason is empty"),
        (["--keep_last", "0", "--reason", "x"], "HEAD always stays"),
        (["--keep_last", "1", "--snapshot", ids[0], "--reason", "x"], "give either --snapshot"),
    ):
        with pytest.raises(InputError, match=message):
            main(["retire", "--dataset", dataset.uri, *wrong])


def test_a_snapshot_with_a_damaged_shard_list_can_be_retired(
    dataset: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Retiring it is the way out, so it must not need the list."""
    snapshot = build(fill(tmp_path / "corpus", FILES), dataset)
    dataset.put(snapshot.shard_lists[0].path, b"damaged")
    place = ("--dataset", dataset.uri, "--snapshot", snapshot.id)
    assert main(["retire", *place, "--reason", "its list is damaged"]) == 0
    assert "HEAD: none" in capsys.readouterr().out


def test_gc_and_builds_that_need_its_garbage_never_meet(dataset: Store, tmp_path: Path) -> None:
    """The garbage is what the next build writes or finds again: shards are named by their content."""
    corpus = fill(tmp_path / "corpus", FILES)
    snapshot = build(corpus, dataset)
    for _ in range(3):
        retire_snapshot(dataset, snapshot.id, "old")
        start, refused = threading.Barrier(3), list[str]()

        def collect(start: threading.Barrier, refused: list[str]) -> None:
            start.wait()
            for _ in range(3):
                try:
                    main(["gc", "--dataset", dataset.uri, "--grace_days", "0"])
                except InputError as error:
                    refused.append(str(error))

        threads = [threading.Thread(target=collect, args=(start, refused)) for _ in range(2)]
        for thread in threads:
            thread.start()
        start.wait()
        snapshot = build(corpus, dataset)
        for thread in threads:
            thread.join()
        assert damages(snapshot, dataset) == []
        assert all("at work in" in message for message in refused)


def test_gc_says_which_build_it_waits_for(dataset: Store, tmp_path: Path) -> None:
    build(fill(tmp_path / "corpus", FILES), dataset)
    with (
        hold(dataset, BUILDS) as lease,
        pytest.raises(InputError, match=rf"first: {lease.owner}.*delete leases/"),
    ):
        main(["gc", "--dataset", dataset.uri])


def test_a_job_holds_a_lease_on_what_its_stages_read(
    dataset: Store, tracking_stack: Stack, tmp_path: Path
) -> None:
    snapshot = build(fill(tmp_path / "corpus", FILES), dataset)
    root_uri, _, name = dataset.uri.rpartition("/")
    runtime = Runtime(root=root_uri, experiment="lease")
    session = Session(Recipe(), runtime, tracking_stack.environment["MLFLOW_TRACKING_URI"], actor="test")
    data = pinned_stage(DatasetRef.of(snapshot, name))

    def look(workspace: Workspace) -> dict[str, Any]:
        return {"leases": [lease.what for lease in active_leases(dataset)]}

    def stage(number: int) -> Stage:
        identity = {"number": number, "dataset": name}
        return Stage(name="look", recipe_version=1, identity=identity, inputs=(data,), run=look)

    with session.job(key=name, name="lease test", parameters={}):
        assert session.materialize(stage(1)).output["leases"] == [snapshot.id]
        assert session.materialize(stage(2)).output["leases"] == [snapshot.id], "one lease, to the end"
        assert len(active_leases(dataset)) == 1
    assert active_leases(dataset) == []
    retire_snapshot(dataset, snapshot.id, "old")
    late = Session(Recipe(), runtime, session.tracking_uri, actor="test")
    with (
        pytest.raises(InputError, match=r"is retired \(old\)"),
        late.job(key=f"{name} again", name="lease test", parameters={}),
    ):
        late.materialize(stage(3))
