"""From an evaluated model to a decision: register the challenger, run the gate, move the alias."""

import hashlib
import json
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from coatnet.interop import WEIGHTS_NAME, load_config
from data.crop import DecodeConfig
from data.errors import InputError
from data.plain import with_tuples
from data.store import Store
from infra.ledger import Intent, Ledger
from infra.registry import CHAMPION, VERDICT_TAG, PromotionConflictError, Registry, VersionInfo
from infra.tracking import RunRef, Tracker
from infra.transfer import download_folder, upload_folder
from pipelines.dataset_ref import DatasetRef
from pipelines.evaluation import EvalReport
from pipelines.evaluation_plots import confusion_delta_png, confusion_png, reliability_png, report_html
from pipelines.gate_checks import GatePolicy
from pipelines.job import code_version
from pipelines.promotion import Decision, decide_promotion
from pipelines.serving import save_pyfunc, weights_in
from pipelines.stage import Stage, StageRecord, Workspace
from pipelines.training import MODEL_FOLDER

DATASET_TAG = "pipeline.dataset_path"
SNAPSHOT_TAG = "pipeline.snapshot_id"
CLASSES_TAG = "pipeline.classes"
DECODE_TAG = "pipeline.decode"
WEIGHTS_TAG = "pipeline.weights_sha256"
# A conflict means that another job has promoted its model meanwhile: more than a few in a row are no chance.
_MAX_CONFLICTS = 4


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """An evaluated model that asks for promotion."""

    fingerprint: str
    """Of the stage that trained it."""
    model_path: str
    """Folder of its weights, below the root."""
    report_path: str
    dataset: DatasetRef
    decode: DecodeConfig

    @staticmethod
    def of(
        trained: StageRecord, evaluated: StageRecord, dataset: StageRecord, decode: DecodeConfig
    ) -> "Candidate":
        """Put the records of a training and its evaluation together."""
        return Candidate(
            fingerprint=trained.fingerprint,
            model_path=trained.output["model_path"],
            report_path=evaluated.output["report_path"],
            dataset=DatasetRef.from_record(dataset),
            decode=decode,
        )


@dataclass(frozen=True, kw_only=True)
class Review:
    """Everything that a review needs around the candidate."""

    root: Store
    registry: Registry
    model_name: str
    policy: GatePolicy
    run: RunRef
    """The run that the version points to."""
    actor: str
    announce: Callable[[str], None]
    evaluate_champion: Callable[[Stage, DecodeConfig], StageRecord]
    """Evaluates a champion's weights on the candidate's snapshot."""

    def __call__(self, candidate: Candidate) -> VersionInfo:
        """Register the candidate and promote it if it has earned it; safe to repeat."""
        report = EvalReport.load(self.root, candidate.report_path)
        version = self._register(candidate, report)
        for _ in range(_MAX_CONFLICTS):
            try:
                return self._decide(candidate, report, version.version)
            except PromotionConflictError as conflict:
                self.announce(f"promote: {conflict}; deciding again")
        return self._decide(candidate, report, version.version)

    def _decide(self, candidate: Candidate, report: EvalReport, number: str) -> VersionInfo:
        """Compare with the champion of now; PromotionConflictError if it is another one by the end."""
        ledger = Ledger(store=self.root)
        finish_pending(self.registry, self.model_name, ledger, self.announce)
        version = self.registry.get_version(self.model_name, number)
        if VERDICT_TAG in version.tags:
            self.announce(f"promote: version {number} was {version.tags[VERDICT_TAG]} before, skipped")
            return version
        champion = self.registry.champion(self.model_name)
        champion_report = self._champion_report(champion) if champion else None
        decision = decide_promotion(report, champion_report, self.policy)
        self._log_decision(decision, report, champion_report)
        intent = self._intent(candidate, version, champion, decision)
        if decision.promoted:
            self.registry.promote(intent, ledger)
        else:
            self.registry.reject(intent, ledger)
        self.announce(f"promote: version {number}: {decision.first_line}")
        return self.registry.get_version(self.model_name, number)

    def _register(self, candidate: Candidate, report: EvalReport) -> VersionInfo:
        existing = self.registry.find_version(self.model_name, candidate.fingerprint)
        if existing is not None:
            self.announce(f"register: version {existing.version} exists ({candidate.fingerprint}), skipped")
            return self.registry.mark_challenger(existing)
        with tempfile.TemporaryDirectory() as scratch:
            weights, packed = Path(scratch) / "weights", Path(scratch) / "model"
            download_folder(self.root.sub(candidate.model_path), weights)
            config = load_config(weights)
            save_pyfunc(
                target_dir=packed,
                weights_dir=weights,
                decode=candidate.decode,
                mean=config.mean,
                std=config.std,
                classes=report.classes,
            )
            version = self.registry.register_version(
                run_id=self.run.run_id,
                model_dir=packed,
                name=self.model_name,
                fingerprint=candidate.fingerprint,
                tags={**_tags(candidate, report), WEIGHTS_TAG: _sha256(weights / WEIGHTS_NAME)},
                description=f"Not decided yet. Top-1 {report.top1:.1%} on {report.num_samples} images.",
            )
        self.announce(f"register: version {version.version} of {self.model_name}")
        return version

    def _champion_report(self, champion: VersionInfo) -> EvalReport:
        decode = DecodeConfig(**with_tuples(json.loads(required_tag(champion, DECODE_TAG))))
        record = self.evaluate_champion(champion_stage(self.registry, champion), decode)
        return EvalReport.load(self.root, record.output["report_path"])

    def _intent(
        self, candidate: Candidate, version: VersionInfo, champion: VersionInfo | None, decision: Decision
    ) -> Intent:
        return Intent(
            model=self.model_name,
            version=version.version,
            from_version=champion.version if champion else None,
            verdict=decision.verdict,
            first_line=decision.first_line,
            description=f"{decision.to_markdown()}\n\n{_champion_line(champion, decision)}",
            delta=decision.delta_label,
            snapshot_ids=(candidate.dataset.snapshot_id,),
            code_version=code_version(),
            actor=self.actor,
            gates=_strict(decision.to_dict()),
        )

    def _log_decision(self, decision: Decision, report: EvalReport, champion: EvalReport | None) -> None:
        tracker = Tracker(self.run)
        tracker.log_json("gate/gates.json", _strict(decision.to_dict()))
        tracker.log_text("gate/decision.md", decision.to_markdown())
        if champion is not None and champion.keys == report.keys:
            tracker.log_bytes("gate/confusion_delta.png", confusion_delta_png(report, champion))
        tracker.close()


def log_report(tracker: Tracker, report: EvalReport, title: str) -> None:
    """Log an evaluation's numbers, pictures and page."""
    tracker.log_metrics(0, {"eval/top1": report.top1, "eval/nll": report.nll, "eval/ece": report.ece})
    tracker.log_bytes("confusion.png", confusion_png(report))
    tracker.log_bytes("reliability.png", reliability_png(report))
    tracker.log_text("report.html", report_html(report, title=title))


def finish_pending(
    registry: Registry, model_name: str, ledger: Ledger, announce: Callable[[str], None]
) -> None:
    """Bring every promotion that a crash left half done to its end, before anything is compared."""
    for entry in registry.finish_pending(model_name, ledger):
        announce(f"promote: version {entry.intent.version} was half promoted; now {entry.result}")


def champion_stage(registry: Registry, champion: VersionInfo) -> Stage:
    """Return the stage that copies a registered version's weights from the registry into the root."""
    digest = required_tag(champion, WEIGHTS_TAG)
    classes = json.loads(required_tag(champion, CLASSES_TAG))

    def run(workspace: Workspace) -> Mapping[str, Any]:
        with tempfile.TemporaryDirectory(prefix="champion-") as scratch:
            folder = registry.download_version(champion.name, champion.version, Path(scratch) / "model")
            weights = weights_in(folder)
            if _sha256(weights / WEIGHTS_NAME) != digest:
                raise InputError(
                    f"the weights of {champion.name!r} version {champion.version} are not those that were "
                    f"registered (tag {WEIGHTS_TAG}): move the alias {CHAMPION!r} to an intact version"
                )
            upload_folder(weights, workspace.store.sub(MODEL_FOLDER))
        return {"model_path": f"{workspace.stage.path}/{MODEL_FOLDER}", "classes": classes}

    identity = {"weights_sha256": digest, "classes": classes}
    return Stage(name="champion", recipe_version=1, identity=identity, run=run)


def required_tag(version: VersionInfo, tag: str) -> str:
    """Return what registering wrote on a version; InputError for a version that somebody else made."""
    if tag not in version.tags:
        raise InputError(
            f"version {version.version} of model {version.name!r} has no tag {tag!r}: this pipeline did not "
            f"register it; move the alias {CHAMPION!r} to a version that it did, or give another "
            "--runtime.model_name"
        )
    return version.tags[tag]


def check_champion_fits(champion: VersionInfo | None, classes: tuple[str, ...]) -> None:
    """Raise InputError if the champion knows a class that is not in `classes`: no gate could compare."""
    if champion is None:
        return
    known: list[str] = json.loads(required_tag(champion, CLASSES_TAG))
    if not set(known) <= set(classes):
        raise InputError(
            f"the champion of model {champion.name!r} (version {champion.version}) knows the classes "
            f"{', '.join(known)}; this run has {', '.join(classes)}: give another --runtime.model_name"
        )


def _champion_line(champion: VersionInfo | None, decision: Decision) -> str:
    """Say whose place this version took, or did not: where to roll back to."""
    if champion is None:
        return "There was no champion before."
    link = f"[version {champion.version}](#/models/{quote(champion.name)}/versions/{champion.version})"
    if not decision.promoted:
        return f"The champion stays {link}."
    return f"Champion before: {link}. To roll back, move the alias `{CHAMPION}` there."


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _tags(candidate: Candidate, report: EvalReport) -> dict[str, str]:
    return {
        DATASET_TAG: candidate.dataset.path,
        SNAPSHOT_TAG: candidate.dataset.snapshot_id,
        CLASSES_TAG: json.dumps(list(report.classes)),
        DECODE_TAG: json.dumps(asdict(candidate.decode)),
        "eval.top1": f"{report.top1:.4f}",
    }


def _strict(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values with NaN and infinities as text: strict JSON has none."""
    return json.loads(json.dumps(values), parse_constant=str)
