"""Model versions, aliases and their story in the MLflow registry.

`champion` marks the version that serves, `challenger` the newest one that does not: it waits for the gate or
was rejected. Aliases have no compare-and-swap in MLflow, so the ledger gives promotions their order.
"""

import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mlflow import MlflowClient
from mlflow.artifacts import download_artifacts
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from data.errors import InputError
from infra.ledger import Entry, Intent, Ledger
from infra.registry_writes import describe_decision, set_alias, set_tag

CHAMPION = "champion"
CHALLENGER = "challenger"
FINGERPRINT_TAG = "pipeline.fingerprint"
VERDICT_TAG = "gate.verdict"
_MODEL_ARTIFACT_PATH = "model"


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
            # A folder of its own: a second model of the same run must not change the files of the first.
            path = f"{_MODEL_ARTIFACT_PATH}/{fingerprint}"
            client.log_artifacts(run_id, str(model_dir), path)
            artifact_uri = client.get_run(run_id).info.artifact_uri
            created = client.create_model_version(
                name,
                # Below the run's artifacts, and with the run's id: the version's page links its source run.
                source=f"{artifact_uri}/{path}",
                run_id=run_id,
                tags={**tags, FINGERPRINT_TAG: fingerprint},
                description=description,
            )
            existing = self._first_of(name, fingerprint, str(created.version))
        return self.mark_challenger(existing)

    def mark_challenger(self, version: VersionInfo) -> VersionInfo:
        """Give the version the alias, unless it was decided before: then a newer one may have it."""
        if VERDICT_TAG not in version.tags and CHAMPION not in version.aliases:
            set_alias(self._client(), version.name, CHALLENGER, version.version)
        return self.get_version(version.name, version.version)

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

        Safe to repeat after a crash anywhere in between. `champion` is the only mark of a promoted version.

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
            self._finish_earlier(entry, ledger)
            set_alias(self._client(), intent.model, CHAMPION, intent.version)
        observed = self._read_back(entry, ledger)
        describe_decision(self._client(), intent)
        self._unmark_challenger(intent)
        # Before the entry is closed: a crash in between leaves it pending, and whoever finds it finishes it.
        self._mark_decided(intent)
        closed = ledger.close(entry, "applied", observed)
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
        describe_decision(self._client(), intent)
        closed = ledger.close(entry, "applied", observed)
        self._mark_decided(intent)
        return closed

    def finish_pending(self, name: str, ledger: Ledger) -> list[Entry]:
        """Finish every promotion that was recorded and not closed, or close it as superseded.

        Call it before the gate. A promotion that crashed after its alias moved would else be compared with
        itself; one whose process is still at it comes to the same end, as each of its writes can be repeated.
        """
        return [self._finish(entry, ledger) for entry in ledger.history(name) if entry.is_pending]

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

    def _finish_earlier(self, entry: Entry, ledger: Ledger) -> None:
        """Let the promotions recorded before this one go first; then this one may be stale."""
        for other in ledger.history(entry.intent.model):
            if other.number < entry.number and other.is_pending:
                self._finish(other, ledger)
        try:
            self._check_current(entry.intent)
        except PromotionConflictError:
            ledger.close(entry, "superseded", self._champion_version(entry.intent.model))
            raise

    def _finish(self, entry: Entry, ledger: Ledger) -> Entry:
        try:
            return self.promote(entry.intent, ledger)
        except (PromotionConflictError, InputError):  # another champion since, or the version was deleted
            return ledger.close(entry, "superseded", self._champion_version(entry.intent.model))

    def _read_back(self, entry: Entry, ledger: Ledger) -> str:
        """Return the champion, if it is this entry's or a later one's; give way to a later one."""
        intent = entry.intent
        later = [
            other
            for other in ledger.history(intent.model)
            if other.number > entry.number and other.intent.moves_champion and other.result != "superseded"
        ]
        applied = [other.intent.version for other in later if other.result == "applied"]
        observed = self._champion_version(intent.model)
        if applied and observed == intent.version:
            # We slept while others finished our promotion and made the next one: ours must not undo it.
            set_alias(self._client(), intent.model, CHAMPION, applied[-1])
            return applied[-1]
        if observed in (intent.version, *(other.intent.version for other in later)):
            return str(observed)
        raise PromotionConflictError(
            f"{intent.model}: ledger entry {entry.number} made version {intent.version} champion, but it "
            f"is {observed or 'none'} now: somebody moved it by hand; move it by hand or leave it"
        )

    def _check_current(self, intent: Intent) -> None:
        observed = self._champion_version(intent.model)
        if observed not in (intent.from_version, intent.version):
            raise PromotionConflictError(
                f"{intent.model}: version {intent.version} was compared with "
                f"{intent.from_version or 'no champion'}, but the champion is {observed} now: decide again"
            )

    def _first_of(self, name: str, fingerprint: str, created: str) -> VersionInfo:
        """Return the version that all jobs agree on: of two that registered at once, the first."""
        first = self.find_version(name, fingerprint)
        if first is None or first.version == created:
            return self.get_version(name, created)
        self._client().delete_model_version(name, created)
        return first

    def _unmark_challenger(self, intent: Intent) -> None:
        challenger = self._find(intent.model, CHALLENGER)
        if challenger is not None and challenger.version == intent.version:
            self._client().delete_registered_model_alias(intent.model, CHALLENGER)

    def _mark_decided(self, intent: Intent) -> None:
        """Set `gate.verdict`, the last write to the version: where it stands, everything before it does."""
        set_tag(self._client(), intent.model, intent.version, VERDICT_TAG, intent.verdict)

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
