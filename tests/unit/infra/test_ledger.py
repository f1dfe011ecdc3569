"""The promotion ledger in a folder: order, repetition and races."""

import threading
from dataclasses import replace
from pathlib import Path

import pytest

from data.errors import InputError
from infra.ledger import Entry, Intent, Ledger
from infra.store import open_store

INTENT = Intent(
    model="vehicles",
    version="2",
    from_version="1",
    verdict="PROMOTED",
    first_line="PROMOTED +1.0 pp",
    description="**PROMOTED +1.0 pp**",
    delta="+1.0 pp",
    snapshot_ids=("3-abc", "2-def"),
    code_version="0123abc",
    actor="job-1",
    gates={"checks": [{"name": "top-1 difference", "passed": True}], "delta": 0.01},
)


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(store=open_store(str(tmp_path)))


def race(count: int, ledger: Ledger, intents: list[Intent]) -> list[Entry]:
    entries: list[Entry] = []
    barrier = threading.Barrier(count)

    def run(intent: Intent) -> None:
        barrier.wait()
        entries.append(ledger.record(intent))

    threads = [threading.Thread(target=run, args=(intent,)) for intent in intents]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return entries


def test_an_entry_comes_back_as_it_was(ledger: Ledger) -> None:
    entry = ledger.record(INTENT)
    assert ledger.history("vehicles") == [entry]
    assert ledger.history("animals") == []
    assert entry.is_pending
    assert ledger.current("vehicles") is None
    closed = ledger.close(entry, "applied", "2")
    assert ledger.current("vehicles") == closed
    assert not closed.is_pending
    # Once closed, the outcome stands.
    assert ledger.close(entry, "superseded", "1") == closed


def test_eight_threads_get_eight_numbers(ledger: Ledger) -> None:
    intents = [replace(INTENT, version=str(number)) for number in range(8)]
    entries = race(8, ledger, intents)
    assert sorted(entry.number for entry in entries) == list(range(1, 9))
    assert {entry.intent.version for entry in ledger.history("vehicles")} == {str(n) for n in range(8)}


def test_eight_threads_with_one_decision_make_one_entry(ledger: Ledger) -> None:
    entries = race(8, ledger, [replace(INTENT, actor=f"worker-{n}") for n in range(8)])
    assert {entry.number for entry in entries} == {1}
    assert len(ledger.history("vehicles")) == 1


def test_a_decision_repeats_until_the_champion_moved_on(ledger: Ledger) -> None:
    first = ledger.close(ledger.record(INTENT), "applied", "2")
    assert ledger.record(INTENT) == first
    rejected = ledger.record(replace(INTENT, version="3", verdict="REJECTED"))
    ledger.close(rejected, "applied", "2")
    assert ledger.record(INTENT) == first, "a rejection moves nothing"
    ledger.close(
        ledger.record(replace(INTENT, version="1", from_version="2", verdict="ROLLED_BACK")), "applied", "1"
    )
    assert ledger.record(INTENT).number == 4
    assert [entry.intent.verdict for entry in ledger.history("vehicles")][2] == "ROLLED_BACK"


def test_what_was_given_up_is_not_repeated(ledger: Ledger) -> None:
    ledger.close(ledger.record(INTENT), "superseded", "1")
    assert ledger.record(INTENT).number == 2


def test_decision_id_is_of_the_decision_not_of_who_made_it() -> None:
    assert replace(INTENT, actor="ann", code_version="fff").decision_id == INTENT.decision_id
    assert replace(INTENT, from_version=None).decision_id != INTENT.decision_id
    assert replace(INTENT, gates={}).decision_id != INTENT.decision_id


def test_failed_checks_are_named() -> None:
    checks = [
        {"name": "calibration", "passed": False},
        {"name": "top-1 floor", "passed": True},
        {"name": "latency", "passed": False},
    ]
    assert replace(INTENT, gates={"checks": checks}).failed_checks == ("calibration", "latency")
    assert replace(INTENT, gates={}).failed_checks == ()


@pytest.mark.parametrize("name", ["", "a/b", "models:x", ".hidden"])
def test_model_names_that_are_no_path_part(ledger: Ledger, name: str) -> None:
    with pytest.raises(InputError, match="model name"):
        ledger.record(replace(INTENT, model=name))
