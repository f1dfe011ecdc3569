"""Stages that are computed once: a fingerprint names the result, `record.json` says it is done."""

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from data.store import ObjectNotFoundError, Store
from pipelines.fingerprint import fingerprint

RECORD_NAME = "record.json"


@dataclass(frozen=True, kw_only=True)
class StageRecord:
    """What a finished stage left behind; it exists if and only if the stage is done."""

    stage: str
    fingerprint: str
    output: Mapping[str, Any]
    """Plain values: ids, paths relative to the root, metrics."""
    provenance: Mapping[str, Any] = field(default_factory=dict)
    """When, by which code and where; not part of the identity."""

    def to_json(self) -> bytes:
        """Return the record's file."""
        return json.dumps(self.__dict__, indent=2, sort_keys=True).encode()


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A pure function of its identity and its inputs, and where its result goes."""

    name: str
    recipe_version: int
    """Raised by us when the stage's code changes its result."""
    identity: Mapping[str, Any]
    inputs: tuple["Stage", ...] = ()
    detail: str = ""
    """Tells stages of one name apart for a reader; not part of the identity."""
    run: Callable[["Workspace"], Mapping[str, Any]]

    @property
    def fingerprint(self) -> str:
        """Identity of the result; never a path, bucket, worker count or git SHA, but for a dataset that lies
        outside of the root (docs/decisions/0016)."""
        return fingerprint(
            name=self.name,
            recipe_version=self.recipe_version,
            identity=self.identity,
            inputs=[stage.fingerprint for stage in self.inputs],
        )

    @property
    def title(self) -> str:
        """What a log line and an MLflow run call the stage."""
        return f"{self.name} {self.detail}".rstrip()

    @property
    def path(self) -> str:
        """Where the output goes below the root."""
        return f"{self.name}/{self.fingerprint}"


@dataclass(frozen=True, kw_only=True)
class Workspace:
    """What a running stage is given."""

    stage: Stage
    store: Store
    """The stage's own folder; kept over a stop, so that the stage resumes inside."""
    inputs: tuple[StageRecord, ...]


class Materializer:
    """Runs the stages that are not done yet and hands out the records of those that are."""

    def __init__(
        self,
        root: Store,
        *,
        provenance: Mapping[str, Any],
        announce: Callable[[str], None],
        observe: "StageObserver | None" = None,
    ) -> None:
        self._root = root
        self._provenance = provenance
        self._announce = announce
        self._observe = observe
        self._records: dict[str, StageRecord] = {}

    def __call__(self, stage: Stage) -> StageRecord:
        """Return the stage's record, computing it and its missing inputs at most once."""
        if stage.path not in self._records:
            self._records[stage.path] = self._load(stage) or self._compute(stage)
        return self._records[stage.path]

    def _load(self, stage: Stage) -> StageRecord | None:
        record = load_record(self._root.sub(stage.path))
        if record is not None:
            self._announce(f"{stage.title}: finished before ({stage.fingerprint}), skipped")
        return record

    def _compute(self, stage: Stage) -> StageRecord:
        inputs = tuple(self(parent) for parent in stage.inputs)
        store = self._root.sub(stage.path)
        self._announce(f"{stage.title}: started ({stage.fingerprint})")
        started = time.time()
        workspace = Workspace(stage=stage, store=store, inputs=inputs)
        output = self._observe(workspace) if self._observe else stage.run(workspace)
        seconds = round(time.time() - started, 1)
        record = StageRecord(
            stage=stage.name,
            fingerprint=stage.fingerprint,
            output=output,
            provenance={**self._provenance, "seconds": seconds, "finished_at": int(time.time())},
        )
        store.put_if_absent(RECORD_NAME, record.to_json())
        # Another driver may have finished the same stage first; its record is the result.
        final = load_record(store)
        assert final is not None
        self._announce(f"{stage.title}: done in {seconds} s")
        return final


StageObserver = Callable[[Workspace], Mapping[str, Any]]
"""Runs a stage with bookkeeping around it, such as an MLflow run."""


def load_record(store: Store) -> StageRecord | None:
    """Return the record of a finished stage's folder, or None."""
    try:
        return StageRecord(**json.loads(store.get(RECORD_NAME)))
    except ObjectNotFoundError:
        return None
