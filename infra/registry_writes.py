"""Writes to the registry that two processes may make at the same moment."""

from collections.abc import Callable

from mlflow import MlflowClient
from mlflow.exceptions import MlflowException


def set_alias(client: MlflowClient, name: str, alias: str, version: str) -> None:
    """Point a model's alias at a version."""
    _repeat_if_raced(lambda: client.set_registered_model_alias(name, alias, version))


def set_tag(client: MlflowClient, name: str, version: str, key: str, value: str) -> None:
    """Set a tag of a version."""
    _repeat_if_raced(lambda: client.set_model_version_tag(name, version, key, value))


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
