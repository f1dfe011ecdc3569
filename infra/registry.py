"""Model versions, aliases and their story in the MLflow registry.

`challenger` marks the newest version that was evaluated, `champion` the one that serves. Aliases have no
compare-and-swap in MLflow, so the ledger gives promotions their order.
"""

import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from mlflow import MlflowClient
from mlflow.artifacts import download_artifacts
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from data.errors import InputError
from infra.ledger import Entry, Intent, Ledger

CHAMPION = "champion"
CHALLENGER = "challenger"
FINGERPRINT_TAG = "coatnet.fingerprint"
VERDICT_TAG = "gate.verdict"
_MODEL_ARTIFACT_PATH = "model"
# A promotion takes seconds; one that has not ended after this long has crashed.
_PENDING_LIMIT = timedelta(minutes=5)


class PromotionConflictError(RuntimeError):
    """Another promotion came first: compare with the new champion and decide again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionInfo:
    """A registered model version as it stands."""

    name: str
    version: str
    run_id: str | None
    description: str
    tags: Mapping[str, str]
    aliases: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Registry:
    """The registry of one MLflow server; credentials come from MLflow's own environment. Picklable."""

    tracking_uri: str

    def register_version(
        self,
        *,
        run_id: str,
        model_dir: Path,
        name: str,
        fingerprint: str,
        tags: Mapping[str, str],
        description: str,
    ) -> VersionInfo:
        """Upload a saved model to its run and register it as the challenger.

        A version with the same fingerprint is returned as it is. The files are uploaded before the version
        is made, so a version never points at half a model.
        """
        self._ensure_model(name)
        existing = self.find_version(name, fingerprint)
        if existing is None:
            client = self._client()
            client.log_artifacts(run_id, str(model_dir), _MODEL_ARTIFACT_PATH)
            artifact_uri = client.get_run(run_id).info.artifact_uri
            created = client.create_model_version(
                name,
                # Below the run's artifacts, and with the run's id: the version's page links its source run.
                source=f"{artifact_uri}/{_MODEL_ARTIFACT_PATH}",
                run_id=run_id,
                tags={**tags, FINGERPRINT_TAG: fingerprint},
                description=description,
            )
            existing = self.get_version(name, str(created.version))
        champion = self.champion(name)
        if champion is None or champion.version != existing.version:
            self._client().set_registered_model_alias(name, CHALLENGER, existing.version)
        return self.get_version(name, existing.version)

    def find_version(self, name: str, fingerprint: str) -> VersionInfo | None:
        """Return the oldest version with this fingerprint, or None."""
        found = self._client().search_model_versions(
            f"name = '{name}' and tags.`{FINGERPRINT_TAG}` = '{fingerprint}'", order_by=["version_number ASC"]
        )
        # The search leaves aliases out: read the version itself.
        return self.get_version(name, str(found[0].version)) if found else None

    def get_version(self, name: str, version: str) -> VersionInfo:
        """Return a version by its number or alias.

        Raises:
            InputError: there is none; the message names those there are.
        """
        found = self._find(name, version)
        if found is None:
            there = [str(v.version) for v in self._client().search_model_versions(f"name = '{name}'")]
            raise InputError(
                f"model {name!r} has no version or alias {version!r}: "
                + (
                    f"there are versions {', '.join(sorted(there, key=int))}"
                    if there
                    else "it has no version yet"
                )
            )
        return found

    def champion(self, name: str) -> VersionInfo | None:
        """Return the version that serves, or None."""
        return self._find(name, CHAMPION)

    def promote(self, intent: Intent, ledger: Ledger) -> Entry:
        """Move `champion` as the intent says: record it, move the alias, read it back, close the entry.

        Safe to repeat after a crash anywhere in between.

        Raises:
            InputError: the intent is a rejection, or its version is not there.
            PromotionConflictError: the champion is not the one that the decision was made against.
        """
        if not intent.moves_champion:
            raise InputError(f"version {intent.version} was {intent.verdict}: it cannot become champion")
        self.get_version(intent.model, intent.version)
        self._check_current(intent)
        entry = ledger.record(intent)
        if entry.result is None:
            self._yield_to_earlier(entry, ledger)
            self._client().set_registered_model_alias(intent.model, CHAMPION, intent.version)
        observed = self._champion_version(intent.model)
        if observed != intent.version:
            raise PromotionConflictError(
                f"{intent.model}: ledger entry {entry.number} made version {intent.version} champion, but it "
                f"is {observed or 'none'} now: somebody moved it by hand; move it by hand or leave it"
            )
        self._describe(intent)
        closed = ledger.close(entry, "applied", observed)
        self._mark_decided(intent)
        if closed.result != "applied":
            raise PromotionConflictError(
                f"{intent.model}: ledger entry {entry.number} was given up as {closed.result} while it took "
                "effect: look at the champion, then promote or roll back by hand"
            )
        return closed

    def reject(self, intent: Intent, ledger: Ledger) -> Entry:
        """Write the verdict on the version's page and in the ledger; the champion stays.

        Raises:
            InputError: the intent is no rejection, or its version is the champion: nothing to reject.
        """
        if intent.moves_champion:
            raise InputError(f"version {intent.version} was {intent.verdict}: call promote")
        observed = self._champion_version(intent.model)
        if observed == intent.version:
            raise InputError(
                f"{intent.model}: version {intent.version} is the champion itself: roll back to replace it"
            )
        entry = ledger.record(intent)
        self._describe(intent)
        closed = ledger.close(entry, "applied", observed)
        self._mark_decided(intent)
        return closed

    def resume_promotion(self, name: str, version: str, ledger: Ledger) -> Entry | None:
        """Finish a promotion of this version that crashed after its intent was recorded, if there is one.

        Call it before the gate: after the alias has moved, the version would be compared with itself.
        """
        for entry in ledger.history(name):
            if entry.is_pending and entry.intent.version == version:
                try:
                    return self.promote(entry.intent, ledger)
                except PromotionConflictError:
                    ledger.close(entry, "superseded", self._champion_version(name))
        return None

    def download_version(self, name: str, version: str, target: Path) -> Path:
        """Copy a version's files to the folder `target`, which appears whole or not at all."""
        info = self.get_version(name, version)
        client = self._client()
        source = client.get_model_version_download_uri(name, info.version)
        if target.exists():
            raise InputError(f"{target} exists already: name a folder that does not")
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
        try:
            # MLflow adds a folder named like the source's last part.
            Path(
                download_artifacts(artifact_uri=source, dst_path=str(partial), tracking_uri=self.tracking_uri)
            ).rename(target)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        return target

    def _yield_to_earlier(self, entry: Entry, ledger: Ledger) -> None:
        """Let the lowest pending entry win; one that is too old has crashed and is closed as abandoned."""
        for other in ledger.history(entry.intent.model):
            if other.number >= entry.number or not other.is_pending:
                continue
            age = datetime.now(UTC) - other.created_at
            observed = self._champion_version(entry.intent.model)
            if observed == other.intent.version or age > _PENDING_LIMIT:
                ledger.close(other, "applied" if observed == other.intent.version else "abandoned", observed)
                continue
            ledger.close(entry, "superseded", observed)
            raise PromotionConflictError(
                f"{entry.intent.model}: {other.intent.actor} is promoting version {other.intent.version} "
                f"(ledger entry {other.number}, {age.total_seconds():.0f} s old): decide again after it"
            )

        # An earlier entry that is closed has moved the alias: read it once more.
        try:
            self._check_current(entry.intent)
        except PromotionConflictError:
            ledger.close(entry, "superseded", self._champion_version(entry.intent.model))
            raise

    def _check_current(self, intent: Intent) -> None:
        observed = self._champion_version(intent.model)
        if observed not in (intent.from_version, intent.version):
            raise PromotionConflictError(
                f"{intent.model}: version {intent.version} was compared with "
                f"{intent.from_version or 'no champion'}, but the champion is {observed} now: decide again"
            )

    def _describe(self, intent: Intent) -> None:
        client = self._client()
        client.update_model_version(intent.model, intent.version, description=intent.description)
        tags = {
            "gate.delta": intent.delta,
            "data.snapshot": ", ".join(intent.snapshot_ids),
            "parent.version": intent.from_version or "none",
            "decided_by": intent.actor,
            "code.version": intent.code_version,
        }
        for key, value in tags.items():
            client.set_model_version_tag(intent.model, intent.version, key, value)

    def _mark_decided(self, intent: Intent) -> None:
        """Set `gate.verdict`, the last write of a decision: where it stands, everything before it does."""
        self._client().set_model_version_tag(intent.model, intent.version, VERDICT_TAG, intent.verdict)

    def _champion_version(self, name: str) -> str | None:
        champion = self.champion(name)
        return champion.version if champion else None

    def _ensure_model(self, name: str) -> None:
        try:
            self._client().create_registered_model(name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise

    def _find(self, name: str, version: str) -> VersionInfo | None:
        client = self._client()
        try:
            if version.isdigit():
                return _to_info(client.get_model_version(name, version))
            return _to_info(client.get_model_version_by_alias(name, version))
        except MlflowException as error:
            # An alias that is not there is INVALID_PARAMETER_VALUE, a model or version is the other.
            if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                return None
            raise

    def _client(self) -> MlflowClient:
        return MlflowClient(tracking_uri=self.tracking_uri, registry_uri=self.tracking_uri)


def _to_info(version: ModelVersion) -> VersionInfo:
    return VersionInfo(
        name=version.name,
        version=str(version.version),
        run_id=version.run_id or None,
        description=version.description or "",
        tags=dict(version.tags),
        aliases=tuple(version.aliases),
    )
