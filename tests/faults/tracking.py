"""What a job's MLflow runs say of it."""

from mlflow import MlflowClient
from mlflow.entities import Run

from tests.faults.jobs import Job


def runs(job: Job) -> dict[str, Run]:
    """Return the runs of a job by their stage, the job's own as `job`; a second dataset's as `shard 2`."""
    client = MlflowClient(tracking_uri=job.environment["MLFLOW_TRACKING_URI"])
    experiment = client.get_experiment_by_name(job.name)
    assert experiment is not None
    found = client.search_runs([experiment.experiment_id])
    stages = [run.data.tags.get("coatnet.stage_fingerprint") for run in found]
    assert len(stages) == len(set(stages)), "a stage, or the job, has two runs"
    named: dict[str, Run] = {}
    for run in found:
        title = str(run.info.run_name) if "mlflow.parentRunId" in run.data.tags else "job"
        name = title.partition(" ")[0]
        named[f"{name} 2" if name in named else name] = run
    return named


def statuses(job: Job) -> dict[str, str]:
    """Return the status of each run by name."""
    return {name: run.info.status for name, run in runs(job).items()}


def curve(job: Job, metric: str) -> list[tuple[int, float]]:
    """Return the points of pretraining's curve as logged, doubles included."""
    client = MlflowClient(tracking_uri=job.environment["MLFLOW_TRACKING_URI"])
    history = client.get_metric_history(runs(job)["pretrain"].info.run_id, metric)
    return sorted((point.step, point.value) for point in history)
