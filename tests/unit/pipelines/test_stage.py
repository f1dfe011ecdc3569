from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infra.store import open_store
from pipelines.fingerprint import fingerprint
from pipelines.stage import Materializer, Stage, Workspace, load_record


@dataclass(frozen=True)
class Choice:
    x: tuple[int, ...] = (1, 2)


plain_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text() | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@settings(deadline=None)
@given(st.dictionaries(st.text(), plain_values, max_size=4))
def test_fingerprint_ignores_the_order_of_keys(values: dict[str, Any]) -> None:
    assert fingerprint(identity=values) == fingerprint(identity=dict(reversed(values.items())))


def test_fingerprint_tells_values_apart_and_reads_dataclasses() -> None:
    assert fingerprint(identity=Choice()) == fingerprint(identity={"x": [1, 2]})
    assert fingerprint(identity=Choice()) != fingerprint(identity=Choice(x=(2, 1)))
    assert fingerprint(identity=1) != fingerprint(identity="1")


def test_fingerprint_refuses_what_is_not_data(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="PosixPath"):
        fingerprint(identity={"folder": tmp_path})


class Counting:
    """A chain of stages that counts how often each runs."""

    def __init__(self, tmp_path: Path) -> None:
        self.root = open_store(str(tmp_path))
        self.calls: list[str] = []
        self.lines: list[str] = []

    def stage(self, name: str, *inputs: Stage, seed: int = 0, fails: bool = False) -> Stage:
        def run(workspace: Workspace) -> Mapping[str, Any]:
            self.calls.append(name)
            if fails:
                raise OSError("disk full")
            return {"sum": 1 + sum(record.output["sum"] for record in workspace.inputs)}

        return Stage(name=name, recipe_version=1, identity={"seed": seed}, inputs=inputs, run=run)

    def materializer(self) -> Materializer:
        return Materializer(self.root, provenance={"code_version": "test"}, announce=self.lines.append)


def test_each_stage_runs_once_over_all_jobs(tmp_path: Path) -> None:
    jobs = Counting(tmp_path)
    last = jobs.stage("b", jobs.stage("a"))
    assert jobs.materializer()(last).output == {"sum": 2}
    assert jobs.materializer()(last).output == {"sum": 2}
    assert jobs.calls == ["a", "b"]
    assert jobs.lines[-1] == f"b: finished before ({last.fingerprint}), skipped"


def test_a_finished_stage_does_not_rebuild_its_ancestors(tmp_path: Path) -> None:
    jobs = Counting(tmp_path)
    first = jobs.stage("a")
    last = jobs.stage("b", first)
    jobs.materializer()(last)
    jobs.root.delete(f"{first.path}/record.json")
    jobs.materializer()(last)
    assert jobs.calls == ["a", "b"]


def test_a_failed_stage_leaves_no_record_and_keeps_what_was_done(tmp_path: Path) -> None:
    jobs = Counting(tmp_path)
    first = jobs.stage("a")
    broken = jobs.stage("b", first, fails=True)
    with pytest.raises(OSError, match="disk full"):
        jobs.materializer()(broken)
    assert load_record(jobs.root.sub(first.path)) is not None
    assert load_record(jobs.root.sub(broken.path)) is None
    jobs.materializer()(jobs.stage("b", first))
    assert jobs.calls == ["a", "b", "b"]


def test_another_identity_or_input_is_another_result(tmp_path: Path) -> None:
    jobs = Counting(tmp_path)
    base = jobs.stage("b", jobs.stage("a"))
    assert base.fingerprint != jobs.stage("b", jobs.stage("a", seed=1)).fingerprint
    assert base.fingerprint != jobs.stage("b", jobs.stage("a"), seed=1).fingerprint
    assert base.fingerprint != jobs.stage("b").fingerprint
    assert base.fingerprint == jobs.stage("b", jobs.stage("a")).fingerprint


def test_the_first_of_two_drivers_wins(tmp_path: Path) -> None:
    """Two jobs that finish one stage at the same time must agree on its record."""
    jobs = Counting(tmp_path)
    stage = jobs.stage("a")
    other = Stage(
        name="a",
        recipe_version=1,
        identity={"seed": 0},
        run=lambda workspace: jobs.materializer()(stage).output and {"sum": 99},
    )
    assert other.path == stage.path
    assert jobs.materializer()(other).output == {"sum": 1}
