"""Promotions that crash, race or were overtaken, against a real MLflow server: one order, one champion."""

import contextlib
import threading
from collections.abc import Callable
from dataclasses import replace

import pytest
from mlflow import MlflowClient

from data.errors import InputError
from infra.ledger import Ledger
from infra.registry import PromotionConflictError, Registry, VersionInfo
from infra.registry_writes import set_alias, set_tag
from tests.integration.conftest import promotion

pytestmark = [
    pytest.mark.integration,
    # MLflow's own module warns about its own type hints when it is imported.
    pytest.mark.filterwarnings("ignore:.*Any type hint is inferred as AnyType:UserWarning"),
]


def test_promotion_resumes_after_a_crash_between_intent_and_alias(
    registry: Registry, ledger: Ledger, register: Callable[..., VersionInfo]
) -> None:
    intent = promotion(register("a"), None)
    pending = ledger.record(intent)
    assert pending.result is None
    for _ in range(2):
        assert registry.promote(intent, ledger).number == pending.number
    assert len(ledger.history(intent.model)) == 1
    champion = registry.champion(intent.model)
    assert champion is not None
    assert champion.version == intent.version


def test_a_crash_after_the_alias_moved_keeps_the_verdict(
    registry: Registry, ledger: Ledger, register: Callable[..., VersionInfo]
) -> None:
    """Deciding again would compare the new champion with itself, or with nothing."""
    one, two = register("a"), register("b")
    registry.promote(promotion(one, None), ledger)
    ledger.record(promotion(two, "1"))
    MlflowClient(registry.tracking_uri).set_registered_model_alias(one.name, "champion", "2")
    assert "gate.verdict" not in registry.get_version(one.name, "2").tags
    (resumed,) = registry.finish_pending(one.name, ledger)
    assert (resumed.number, resumed.result) == (2, "applied")
    after = registry.get_version(one.name, "2")
    assert after.tags["gate.verdict"] == "PROMOTED"
    assert after.aliases == ("champion",), "a promoted version is no challenger any more"
    assert registry.finish_pending(one.name, ledger) == []


def test_a_crashed_promotion_that_was_overtaken_is_closed(
    registry: Registry, ledger: Ledger, register: Callable[..., VersionInfo]
) -> None:
    one, two = register("a"), register("b")
    ledger.record(promotion(two, None))
    MlflowClient(registry.tracking_uri).set_registered_model_alias(one.name, "champion", "1")
    (closed,) = registry.finish_pending(one.name, ledger)
    assert closed.result == "superseded"
    champion = registry.champion(one.name)
    assert champion is not None
    assert champion.version == "1"


def test_a_pending_promotion_of_a_deleted_version_is_closed(
    registry: Registry, ledger: Ledger, register: Callable[..., VersionInfo]
) -> None:
    """Nothing could be promoted any more if it stayed pending."""
    one, two = register("a"), register("b")
    ledger.record(promotion(two, None))
    MlflowClient(registry.tracking_uri).delete_model_version(two.name, two.version)
    assert registry.promote(promotion(one, None), ledger).result == "applied"
    assert [entry.result for entry in ledger.history(one.name)] == ["superseded", "applied"]


def test_a_decision_against_another_champion_is_stale(
    registry: Registry, ledger: Ledger, register: Callable[..., VersionInfo]
) -> None:
    one, two, three = register("a"), register("b"), register("c")
    registry.promote(promotion(one, None), ledger)
    registry.promote(promotion(two, "1"), ledger)
    with pytest.raises(PromotionConflictError, match="compared with 1, but the champion is 2 now"):
        registry.promote(promotion(three, "1"), ledger)
    with pytest.raises(InputError, match="is the champion itself"):
        registry.reject(replace(promotion(two, "2"), verdict="REJECTED"), ledger)
    # Back to 1 by hand, then the same decision for 2 again: a new entry each.
    registry.promote(replace(promotion(one, "2"), verdict="ROLLED_BACK", actor="ann"), ledger)
    registry.promote(promotion(two, "1"), ledger)
    assert [entry.intent.version for entry in ledger.history(one.name)] == ["1", "2", "1", "2"]


def test_an_alias_moved_by_hand_is_not_undone(
    registry: Registry, ledger: Ledger, register: Callable[..., VersionInfo]
) -> None:
    one, two = register("a"), register("b")
    registry.promote(promotion(one, None), ledger)
    registry.promote(promotion(two, "1"), ledger)
    MlflowClient(registry.tracking_uri).set_registered_model_alias(one.name, "champion", "1")
    with pytest.raises(PromotionConflictError, match="somebody moved it by hand"):
        registry.promote(promotion(two, "1"), ledger)


def test_an_earlier_pending_promotion_is_finished_first(
    registry: Registry, ledger: Ledger, register: Callable[..., VersionInfo]
) -> None:
    one, two, three = register("a"), register("b"), register("c")
    registry.promote(promotion(one, None), ledger)
    ledger.record(promotion(two, "1"))  # its process is about to move the alias, or has crashed
    with pytest.raises(PromotionConflictError, match="compared with 1, but the champion is 2 now"):
        registry.promote(promotion(three, "1"), ledger)
    assert registry.get_version(one.name, "2").tags["gate.verdict"] == "PROMOTED"
    entry = registry.promote(promotion(three, "2"), ledger)
    results = [other.result for other in ledger.history(one.name)]
    assert (entry.number, results) == (4, ["applied", "applied", "superseded", "applied"])


def test_a_promotion_that_slept_does_not_undo_a_later_one(
    registry: Registry, ledger: Ledger, register: Callable[..., VersionInfo], monkeypatch: pytest.MonkeyPatch
) -> None:
    """MLflow has no compare-and-swap: a paused process would move the alias back hours later."""
    one, two, three = register("a"), register("b"), register("c")
    registry.promote(promotion(one, None), ledger)
    move = MlflowClient.set_registered_model_alias

    def sleep_then_move(client: MlflowClient, name: str, alias: str, version: str) -> None:
        monkeypatch.undo()
        # Meanwhile another process finishes this promotion, and makes its own.
        assert registry.promote(promotion(two, "1"), ledger).number == 2
        assert registry.promote(promotion(three, "2"), ledger).number == 3
        move(client, name, alias, version)

    monkeypatch.setattr(MlflowClient, "set_registered_model_alias", sleep_then_move)
    assert registry.promote(promotion(two, "1"), ledger).result == "applied"
    champion = registry.champion(one.name)
    assert champion is not None
    assert champion.version == "3"


def test_a_race_of_promotions_has_one_winner(
    registry: Registry, ledger: Ledger, register: Callable[..., VersionInfo]
) -> None:
    versions = [register(f"f{index}") for index in range(4)]
    won: list[str] = []

    def promote(version: VersionInfo) -> None:
        with contextlib.suppress(PromotionConflictError):
            won.append(registry.promote(promotion(version, None), ledger).intent.version)

    threads = [threading.Thread(target=promote, args=(version,)) for version in versions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    champion = registry.champion(versions[0].name)
    assert champion is not None
    assert won == [champion.version]


def test_writes_of_one_promotion_by_several_processes_at_once_are_no_error(
    registry: Registry, register: Callable[..., VersionInfo]
) -> None:
    """MLflow answered `BAD_REQUEST: UNIQUE constraint failed` to the second of two that finished the same
    crashed promotion: each found no row, both inserted it."""
    version = register("a")
    client = MlflowClient(registry.tracking_uri)
    num_threads, num_rows = 4, 15
    together = threading.Barrier(num_threads)
    errors: list[Exception] = []

    def write() -> None:
        try:
            for row in range(num_rows):
                together.wait(timeout=60)
                set_alias(client, version.name, f"alias-{row}", version.version)
                set_tag(client, version.name, version.version, f"tag-{row}", "value")
        except Exception as error:
            errors.append(error)
            together.abort()

    threads = [threading.Thread(target=write) for _ in range(num_threads)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    after = registry.get_version(version.name, version.version)
    assert {f"alias-{row}" for row in range(num_rows)} <= set(after.aliases)
    assert {f"tag-{row}" for row in range(num_rows)} <= set(after.tags)
