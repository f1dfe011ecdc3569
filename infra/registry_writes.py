"""Writes to the registry that two processes may make at the same moment."""

from collections.abc import Callable

from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from infra.ledger import Intent


def set_alias(client: MlflowClient, name: str, alias: str, version: str) -> None:
    """Point a model's alias at a version."""
    _repeat_if_raced(lambda: client.set_registered_model_alias(name, alias, version))


def set_tag(client: MlflowClient, name: str, version: str, key: str, value: str) -> None:
    """Set a tag of a version."""
    _repeat_if_raced(lambda: client.set_model_version_tag(name, version, key, value))


def describe_decision(client: MlflowClient, intent: Intent) -> None:
    """Write a decision on its version's page: the description, and tags of what it was made on."""
    client.update_model_version(intent.model, intent.version, description=intent.description)
    tags = {
        "gate.delta": intent.delta,
        "gate.failed": ", ".join(intent.failed_checks) or "none",
        "data.snapshot": ", ".join(intent.snapshot_ids),
        "parent.version": intent.from_version or "none",
        "decided_by": intent.actor,
        "code.version": intent.code_version,
    }
    for key, value in tags.items():
        set_tag(client, intent.model, intent.version, key, value)


def _repeat_if_raced(write: Callable[[], None]) -> None:
    """Do an idempotent write.

    MLflow reads the row, then inserts or updates it. Of two that both found none the second breaks the
    table's unique key, and MLflow answers BAD_REQUEST; done again it finds the row.
    """
    try:
        write()
    except MlflowException as error:
        if error.error_code != "BAD_REQUEST":
            raise
        write()
