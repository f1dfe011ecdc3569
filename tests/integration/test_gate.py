"""Real challengers against a real champion: registry, evaluation reports, gate, ledger and alias."""

import json
import multiprocessing
import os
import signal
import threading
import uuid
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest
from mlflow import MlflowClient

from data.crop import DecodeConfig
from data.errors import InputError
from data.sharding_config import ShardingConfig
from infra.ledger import Ledger
from infra.registry import CHALLENGER, CHAMPION, VERDICT_TAG, Registry, VersionInfo
from infra.store import open_store
from pipelines.evaluation import EvalReport
from pipelines.review import WEIGHTS_TAG, Candidate, champion_stage, check_champion_fits
from pipelines.stage import Stage, StageRecord
from tests.conftest import Stack
from tests.gate_arena import CLASSES, DECODE, Arena, Contest, champion_of, train_contest, write_corpus

pytestmark = [
    pytest.mark.integration,
    # MLflow's own module warns about its own type hints when it is imported.
    pytest.mark.filterwarnings("ignore:.*Any type hint is inferred as AnyType:UserWarning"),
]
_PROCESS_TIMEOUT_S = 120


@pytest.fixture(scope="module")
def contest(tracking_stack: Stack, cifar10: Path, tmp_path_factory: pytest.TempPathFactory) -> Contest:
    uri = tracking_stack.environment["MLFLOW_TRACKING_URI"]
    return train_contest(uri, cifar10, tmp_path_factory.mktemp("gate"))


REFUSALS = {
    "worse": ("REJECTED worse: -", "top-1 difference"),
    "equal": ("REJECTED no improvement: +0.0 pp (95% CI", "top-1 difference"),
    "nan": (
        "REJECTED challenger numbers: not finite: nll, ece, probabilities of 600/600",
        "challenger numbers",
    ),
}


def test_only_the_better_challenger_is_promoted(contest: Contest) -> None:
    arena = contest.fresh()
    first = champion_of(arena)
    assert first.aliases == (CHAMPION,)
    assert "no champion to compare with" in first.description.splitlines()[0]
    for name, (first_line, failed) in REFUSALS.items():
        version = arena.review([])(contest.candidates[name])
        assert champion_of(arena).version == first.version, f"the {name} challenger moved the alias"
        assert version.description.startswith(f"**{first_line}"), version.description
        assert f"| {failed} |" in version.description
        assert "**FAIL**" in version.description
        assert (
            f"The champion stays [version 1](#/models/{arena.model_name}/versions/1)" in version.description
        )
        assert (version.tags[VERDICT_TAG], version.tags["parent.version"]) == ("REJECTED", "1")
        assert failed in version.tags["gate.failed"].split(", ")
        assert version.tags["data.snapshot"] == arena.snapshot_id
        assert version.aliases == (CHALLENGER,)

    better = arena.review([])(contest.candidates["better"])
    assert better.description.startswith("**PROMOTED +"), better.description
    assert "Champion before: [version 1]" in better.description, "where to roll back to"
    assert better.aliases == (CHAMPION,)
    assert (better.tags["gate.failed"], better.tags["parent.version"]) == ("none", "1")
    assert champion_of(arena).version == better.version
    history = arena.ledger.history(arena.model_name)
    assert [(entry.intent.verdict, entry.intent.from_version) for entry in history] == [
        ("PROMOTED", None), ("REJECTED", "1"), ("REJECTED", "1"), ("REJECTED", "1"), ("PROMOTED", "1"),
    ]  # fmt: skip


def test_the_decision_is_kept_with_the_run_and_repeating_it_changes_nothing(
    contest: Contest, tmp_path: Path
) -> None:
    arena = contest.fresh()
    promoted = arena.review([])(contest.candidates["better"])
    lines: list[str] = []
    again = arena.review(lines)(contest.candidates["better"])
    assert again == promoted
    assert lines == [
        f"register: version 2 exists ({contest.candidates['better'].fingerprint}), skipped",
        "promote: version 2 was PROMOTED before, skipped",
    ]
    client = MlflowClient(arena.tracking_uri)
    assert promoted.run_id is not None
    gates = json.loads(
        Path(client.download_artifacts(promoted.run_id, "gate/gates.json", str(tmp_path))).read_text()
    )
    assert gates["verdict"] == "PROMOTED"
    assert gates["snapshot_id"] == arena.snapshot_id
    assert {check["name"] for check in gates["checks"]} >= {"same samples", "top-1 difference"}
    pictures = {item.path for item in client.list_artifacts(promoted.run_id, "gate")}
    assert "gate/confusion_delta.png" in pictures


def test_the_promoted_version_serves_what_was_evaluated(
    contest: Contest, cifar10: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The weights that serve must be those the gate saw, with the preprocessing of the evaluation.

    Versions of one run once shared a folder: to register a second one changed the files of the first.
    """
    arena = contest.fresh()
    arena.review([])(contest.candidates["better"])
    arena.review([])(contest.candidates["worse"])
    monkeypatch.setenv("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "False")
    monkeypatch.setattr(mlflow.tracking._tracking_service.utils, "_tracking_uri", arena.tracking_uri)
    served = mlflow.pyfunc.load_model(f"models:/{arena.model_name}@champion")
    report = contest.report("better")
    rows = [0, 150, 300, 450]
    answers = served.predict([str(cifar10 / report.keys[row]) for row in rows])
    ours = [[answer[name] for name in CLASSES] for answer in answers["probabilities"]]
    np.testing.assert_allclose(ours, report.probabilities_NK[rows], atol=1e-5)


@dataclass(frozen=True, kw_only=True)
class Death:
    """Kill this process the moment a method has returned: the next thing it wanted to do never happens."""

    owner: type
    method: str
    when: Callable[..., bool]

    def arm(self) -> None:
        original = getattr(self.owner, self.method)

        def last_call(*arguments: Any, **options: Any) -> Any:
            original(*arguments, **options)
            if self.when(*arguments, **options):
                os.kill(os.getpid(), signal.SIGKILL)

        setattr(self.owner, self.method, last_call)


def always(*arguments: Any, **options: Any) -> bool:
    return True


def moves_champion(client: MlflowClient, name: str, alias: str, version: str) -> bool:
    return alias == CHAMPION


DEATHS = {
    "intent recorded": Death(owner=Ledger, method="record", when=always),
    "alias moved": Death(owner=MlflowClient, method="set_registered_model_alias", when=moves_champion),
    "described": Death(owner=MlflowClient, method="update_model_version", when=always),
    "verdict written": Death(owner=Registry, method="_mark_decided", when=always),
}


def review_and_die(arena: Arena, candidate: Candidate, death: str) -> None:
    DEATHS[death].arm()
    arena.review([])(candidate)


@pytest.mark.faults
@pytest.mark.parametrize("death", DEATHS)
def test_a_promotion_killed_half_way_is_finished_by_the_rerun(contest: Contest, death: str) -> None:
    """Decided anew, a challenger that is champion already would be compared with itself and be stuck."""
    arena = contest.fresh()
    # New processes, forked from one that has done the slow imports.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.integration.test_gate"])
    process = context.Process(target=review_and_die, args=(arena, contest.candidates["better"], death))
    process.start()
    process.join(_PROCESS_TIMEOUT_S)
    assert process.exitcode == -signal.SIGKILL
    (first, pending) = arena.ledger.history(arena.model_name)
    assert (first.result, pending.result) == ("applied", None)
    moved = champion_of(arena).version == "2"
    assert moved == (death != "intent recorded")

    lines: list[str] = []
    version = arena.review(lines)(contest.candidates["better"])
    assert "promote: version 2 was half promoted; now applied" in lines
    assert version.tags[VERDICT_TAG] == "PROMOTED"
    assert version.description.startswith("**PROMOTED +")
    assert version.aliases == (CHAMPION,)
    assert champion_of(arena).version == "2"
    assert [entry.result for entry in arena.ledger.history(arena.model_name)] == ["applied", "applied"]


@pytest.mark.faults
def test_of_two_jobs_that_promote_at_once_one_wins_and_the_other_decides_again(contest: Contest) -> None:
    """Both were better than the champion of their time; the slower one is not better than the faster one."""
    arena = contest.fresh()
    rivals = [replace(contest.candidates["better"], fingerprint=f"better-{n}") for n in range(2)]
    both_have_compared = threading.Barrier(2)
    waited = threading.local()
    outcomes: dict[str, VersionInfo] = {}
    lines: list[str] = []

    def evaluate(champion: Stage, decode: DecodeConfig) -> StageRecord:
        record = arena.evaluate_champion(champion, decode)
        if not hasattr(waited, "once"):
            waited.once = True
            both_have_compared.wait(timeout=60)
        return record

    def compete(candidate: Candidate) -> None:
        outcomes[candidate.fingerprint] = arena.review(lines, evaluate=evaluate)(candidate)

    threads = [threading.Thread(target=compete, args=(rival,)) for rival in rivals]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    by_verdict = {version.tags[VERDICT_TAG]: version for version in outcomes.values()}
    assert set(by_verdict) == {"PROMOTED", "REJECTED"}
    winner, loser = by_verdict["PROMOTED"], by_verdict["REJECTED"]
    assert champion_of(arena).version == winner.version
    assert winner.tags["parent.version"] == "1"
    assert loser.tags["parent.version"] == winner.version
    assert loser.description.startswith("**REJECTED no improvement: +0.0 pp"), loser.description
    assert any(line.endswith("deciding again") for line in lines)


def test_a_champion_is_judged_by_name_on_a_class_it_does_not_know(
    contest: Contest, cifar10: Path, tmp_path: Path
) -> None:
    """By index, a class list in another order would make a good champion look like a bad one."""
    corpus = write_corpus(tmp_path / "corpus", cifar10, num_train=5, num_eval=150)
    for split, count in (("train", 5), ("test", 40)):
        (tmp_path / "corpus" / split / "bird").mkdir()
        for file in sorted((cifar10 / split / "bird").iterdir())[:count]:
            (tmp_path / "corpus" / split / "bird" / file.name).write_bytes(file.read_bytes())
    classes = ("truck", "bird", "ship", "automobile", "airplane")
    snapshot = contest.arena.shard(corpus, ShardingConfig(classes=classes), "grown")
    arena = replace(contest.fresh(), dataset_path="grown", snapshot_id=snapshot.id)
    champion = champion_of(arena)
    record = arena.evaluate_champion(champion_stage(arena.registry, champion), DECODE)
    report = EvalReport.load(open_store(arena.root_uri), record.output["report_path"])
    assert report.unknown_classes == ("bird",)
    assert report.num_samples == 4 * 150 + 40
    recall = dict(zip(report.classes, report.per_class_recall, strict=True))
    before = contest.report("first")
    assert recall == {**dict(zip(before.classes, before.per_class_recall, strict=True)), "bird": 0.0}


def test_a_champion_that_others_registered_is_refused_before_any_work(contest: Contest) -> None:
    arena = replace(contest.arena, model_name=f"foreign-{uuid.uuid4().hex[:8]}")
    client = MlflowClient(arena.tracking_uri)
    client.create_registered_model(arena.model_name)
    client.create_model_version(arena.model_name, source="s3://elsewhere/model")
    client.set_registered_model_alias(arena.model_name, CHAMPION, "1")
    with pytest.raises(InputError, match=r"version 1 of model 'foreign-.*' has no tag 'pipeline.classes'"):
        check_champion_fits(champion_of(arena), CLASSES)


def test_weights_that_changed_in_the_registry_are_refused(contest: Contest) -> None:
    """A challenger must not win against, or start from, something that nobody promoted."""
    arena = contest.fresh()
    client = MlflowClient(arena.tracking_uri)
    client.set_model_version_tag(arena.model_name, "1", WEIGHTS_TAG, "0" * 64)
    with pytest.raises(InputError, match="are not those that were registered"):
        arena.review([])(contest.candidates["better"])
    assert champion_of(arena).version == "1"
