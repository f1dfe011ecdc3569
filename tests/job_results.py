"""What a job left in its store and in MLflow, by name."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow
from mlflow.entities import DatasetInput, Run

from data.store import Store
from pipelines.evaluation import EvalReport


def read_records(root: Store) -> dict[str, list[dict[str, Any]]]:
    """Return the record of every finished stage, by the stage's name."""
    records: dict[str, list[dict[str, Any]]] = {}
    for info in root.list():
        if info.path.endswith("/record.json"):
            record = json.loads(root.get(info.path))
            assert info.path == f"{record['stage']}/{record['fingerprint']}/record.json"
            records.setdefault(record["stage"], []).append(record)
    return records


def load_report(root: Store) -> EvalReport:
    """Return the evaluation's report with all its predictions."""
    (evaluated,) = read_records(root)["evaluate"]
    return EvalReport.load(root, evaluated["output"]["report_path"])


def nested_runs(runs: list[Run], parent: Run) -> dict[str, list[Run]]:
    """Return the runs below the job's, by the stage's name, without what tells two of a name apart."""
    nested: dict[str, list[Run]] = {}
    for run in runs:
        if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id:
            nested.setdefault(str(run.info.run_name).partition(" ")[0], []).append(run)
    return nested


def given_datasets(run: Run) -> list[DatasetInput]:
    return run.inputs.dataset_inputs if run.inputs else []


def list_artifacts(client: mlflow.MlflowClient, run_id: str, folder: str | None = None) -> Iterator[str]:
    """Yield the path of every file among a run's artifacts."""
    for artifact in client.list_artifacts(run_id, folder):
        if artifact.is_dir:
            yield from list_artifacts(client, run_id, artifact.path)
        else:
            yield artifact.path


def read_artifact(client: mlflow.MlflowClient, run: Run, path: str) -> bytes:
    return Path(client.download_artifacts(run.info.run_id, path)).read_bytes()
