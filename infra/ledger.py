"""The append-only record of promotions: what MLflow's aliases lack, a history with actors and one order.

`ledger/{model}/{n:06d}.json` is an intent, written with a conditional put before an alias moves;
`ledger/{model}/{n:06d}.outcome.json` says, also once only, what was read back afterwards.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import Any, Literal

from data.errors import InputError
from data.store import Store, StoreError

Verdict = Literal["PROMOTED", "REJECTED", "ROLLED_BACK"]
Result = Literal["applied", "superseded"]

_ENTRY_NAME = re.compile(r"(\d{6,})\.json")
_MODEL_NAME = re.compile(r"[^/:\s.][^/:]*")
_MAX_ATTEMPTS = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Intent:
    """A decision on a model version, before it takes effect."""

    model: str
    version: str
    from_version: str | None
    """The champion it was compared with; None if there was none."""
    verdict: Verdict
    first_line: str
    """The decision in one line."""
    description: str
    """Markdown for the version's page; opens with the first line."""
    delta: str
    """Short, e.g. `+0.6 pp`."""
    snapshot_ids: tuple[str, ...]
    """The data it was decided on; the evaluation's first."""
    code_version: str
    actor: str
    """Who or what decided: a user's name, or the job's."""
    gates: Mapping[str, Any]
    """The whole decision as JSON values."""

    @property
    def moves_champion(self) -> bool:
        """Return whether the alias is to move."""
        return self.verdict != "REJECTED"

    @property
    def failed_checks(self) -> tuple[str, ...]:
        """Return the names of the gate's checks that failed."""
        return tuple(check["name"] for check in self.gates.get("checks", ()) if not check["passed"])

    @property
    def decision_id(self) -> str:
        """Return the same 16 hex digits for the same decision, whoever makes it and with whatever code."""
        identity = asdict(self)
        for name in ("actor", "code_version", "description"):
            del identity[name]
        return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One line of the ledger."""

    number: int
    intent: Intent
    created_at: datetime
    result: Result | None
    """None while the outcome is not known."""
    observed_champion: str | None
    """The champion's version read back afterwards."""

    @property
    def is_pending(self) -> bool:
        """Return whether it is to move the alias and nobody has said that it did."""
        return self.intent.moves_champion and self.result is None


@dataclass(frozen=True, slots=True, kw_only=True)
class Ledger:
    """The entries of every model below `ledger/` in a store. Picklable if the store is."""

    store: Store

    def record(self, intent: Intent) -> Entry:
        """Append the intent and return its entry; a repeated decision returns the entry it already has.

        A decision repeats if nothing has moved the champion since its entry, which was not given up: so a
        crashed promotion goes on under its own number, and one made again after a rollback gets a new one.

        Raises:
            InputError: the model's name cannot be part of a path.
            StoreError: the store is not to be reached, or no number could be won.
        """
        for _ in range(_MAX_ATTEMPTS):
            entries = self.history(intent.model)
            if known := _find_repeated(entries, intent):
                return known
            number = entries[-1].number + 1 if entries else 1
            entry = Entry(
                number=number,
                intent=intent,
                created_at=datetime.now(UTC),
                result=None,
                observed_champion=None,
            )
            if self.store.put_if_absent(_path(intent.model, number), _encode(entry)):
                return entry
        raise StoreError(
            f"{self.store.uri}: no free ledger number for {intent.model} in {_MAX_ATTEMPTS} attempts"
        )

    def close(self, entry: Entry, result: Result, observed_champion: str | None) -> Entry:
        """Write the outcome unless there is one, and return the entry with the outcome that stands."""
        outcome = {
            "result": result,
            "observed_champion": observed_champion,
            "closed_at": datetime.now(UTC).isoformat(),
        }
        path = _outcome_path(entry.intent.model, entry.number)
        if self.store.put_if_absent(path, json.dumps(outcome, indent=1).encode()):
            return replace(entry, result=result, observed_champion=observed_champion)
        return self._with_outcome(entry)

    def history(self, model: str) -> list[Entry]:
        """Return every entry of a model, oldest first."""
        prefix = _prefix(model)
        names = {info.path.removeprefix(f"{prefix}/") for info in self.store.list(prefix)}
        numbers = sorted(int(match.group(1)) for name in names if (match := _ENTRY_NAME.fullmatch(name)))
        entries: list[Entry] = []
        for number in numbers:
            entry = _decode(number, self.store.get(_path(model, number)))
            closed = _outcome_path(model, number).removeprefix(f"{prefix}/") in names
            entries.append(self._with_outcome(entry) if closed else entry)
        return entries

    def current(self, model: str) -> Entry | None:
        """Return the last entry that moved the champion, or None."""
        applied = [
            entry
            for entry in self.history(model)
            if entry.intent.moves_champion and entry.result == "applied"
        ]
        return applied[-1] if applied else None

    def _with_outcome(self, entry: Entry) -> Entry:
        outcome = json.loads(self.store.get(_outcome_path(entry.intent.model, entry.number)))
        return replace(entry, result=outcome["result"], observed_champion=outcome["observed_champion"])


def _find_repeated(entries: list[Entry], intent: Intent) -> Entry | None:
    for entry in reversed(entries):
        if entry.intent.decision_id == intent.decision_id and entry.result in (None, "applied"):
            return entry
        if entry.intent.moves_champion and entry.result == "applied":
            return None
    return None


def _prefix(model: str) -> str:
    if not _MODEL_NAME.fullmatch(model):
        raise InputError(
            f"model name {model!r} is not allowed: it must not be empty, start with a dot or hold '/' or ':'"
        )
    return f"ledger/{model}"


def _path(model: str, number: int) -> str:
    return f"{_prefix(model)}/{number:06d}.json"


def _outcome_path(model: str, number: int) -> str:
    return f"{_prefix(model)}/{number:06d}.outcome.json"


def _encode(entry: Entry) -> bytes:
    content = {
        "format_version": 1,
        "decision_id": entry.intent.decision_id,
        "created_at": entry.created_at.isoformat(),
        **asdict(entry.intent),
    }
    return json.dumps(content, indent=1, allow_nan=False).encode()


def _decode(number: int, content: bytes) -> Entry:
    values = json.loads(content)
    fields: dict[str, Any] = {name: values[name] for name in Intent.__dataclass_fields__}
    fields["snapshot_ids"] = tuple(values["snapshot_ids"])
    return Entry(
        number=number,
        intent=Intent(**fields),
        created_at=datetime.fromisoformat(values["created_at"]),
        result=None,
        observed_champion=None,
    )
