"""Runs, metrics and artifacts against a real MLflow server with authentication, through outages."""

import logging
import math
import pickle
import socket
import threading
import time
import uuid
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from mlflow import MlflowClient

from coatnet.step import NonFiniteLossError
from coatnet.train_config import TrainConfig
from coatnet.worker import LocalWorker
from data.decode import DecodeConfig
from data.errors import InputError
from infra.folder_store import FolderStore
from infra.tracking import RunRef, Tracker, check_tracking, find_or_create_run, flatten_params
from pipelines.config import PhaseConfig, Runtime
from pipelines.training import TrainPlan, train_worker
from tests.conftest import Stack
from tests.cut_line import CutLine
from tests.small_dataset import small_dataset
from tests.tiny_coatnet import TINY

pytestmark = [pytest.mark.integration]


@pytest.fixture
def mlflow_uri(tracking_stack: Stack) -> str:
    return tracking_stack.environment["MLFLOW_TRACKING_URI"]


@pytest.fixture
def ref(mlflow_uri: str) -> RunRef:
    return new_run(mlflow_uri)


def new_run(uri: str, job: str | None = None) -> RunRef:
    return find_or_create_run(
        tracking_uri=uri,
        experiment="test-tracking",
        identity={"coatnet.job": job or uuid.uuid4().hex},
        name="t",
    )


def steps(ref: RunRef, metric: str) -> list[int]:
    return [point.step for point in MlflowClient(ref.tracking_uri).get_metric_history(ref.run_id, metric)]


def test_check_passes(mlflow_uri: str) -> None:
    check_tracking(mlflow_uri)


def test_check_names_a_server_that_is_down() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # bound but not listening: refused, and nobody else can take it
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
        started = time.monotonic()
        with pytest.raises(
            InputError, match=f"MLflow at {url} does not answer .Connection refused.: start it"
        ):
            check_tracking(url)
    assert time.monotonic() - started < 5


def test_check_names_a_server_that_hangs() -> None:
    """MLflow's client alone waits 120 s, and tries eight times."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        started = time.monotonic()
        with pytest.raises(InputError, match=r"does not answer \(timed out\)"):
            check_tracking(f"http://127.0.0.1:{silent.getsockname()[1]}", timeout_s=1)
    assert time.monotonic() - started < 5


def test_check_names_wrong_credentials(mlflow_uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "wrong")
    with pytest.raises(InputError, match=r"refuses user 'admin' \(401\): set MLFLOW_TRACKING_USERNAME"):
        check_tracking(mlflow_uri)
    monkeypatch.delenv("MLFLOW_TRACKING_USERNAME")
    monkeypatch.delenv("MLFLOW_TRACKING_PASSWORD")
    with pytest.raises(InputError, match="refuses a request without a user"):
        check_tracking(mlflow_uri)


def test_check_refuses_what_is_no_url() -> None:
    with pytest.raises(InputError, match="is no http"):
        check_tracking("./mlruns")


def test_a_resumed_job_continues_its_run(mlflow_uri: str) -> None:
    job = uuid.uuid4().hex
    first = new_run(mlflow_uri, job)
    assert Tracker(first).finish("FAILED")
    again = new_run(mlflow_uri, job)
    assert again == first
    client = MlflowClient(mlflow_uri)
    assert client.get_run(first.run_id).info.status == "RUNNING"
    assert new_run(mlflow_uri).run_id != first.run_id
    child = find_or_create_run(
        tracking_uri=mlflow_uri,
        experiment="test-tracking",
        identity={"coatnet.job": job, "coatnet.stage": "shard"},
        name="shard",
        parent_run_id=first.run_id,
    )
    parent = client.get_parent_run(child.run_id)
    assert parent is not None
    assert parent.info.run_id == first.run_id


def test_params_are_flat_cut_and_repeatable(ref: RunRef) -> None:
    tracker = Tracker(pickle.loads(pickle.dumps(ref)))  # noqa: S301, as Ray ships it to a worker
    config = {"model": {"depths": (2, 3), "name": "c"}, "empty": {}, "odd?key": 1, "long": "x" * 9000}
    config |= {f"p{index}": index for index in range(150)}  # more than one request takes
    tracker.log_params(config)
    tracker.log_params({**config, "model": {"depths": (2, 3), "name": "d"}})
    found = tracker.run().data
    assert found.params["model.depths"] == "(2, 3)"
    assert found.params["model.name"] == "c"
    assert found.tags["changed.model.name"] == "d"
    assert found.params["odd_key"] == "1"
    assert len(found.params["long"]) == 6000
    assert found.params["p149"] == "149"
    assert tracker.close()


def test_flatten_params() -> None:
    assert flatten_params({"a": {"b": {"c": None}}, "d": []}) == {"a.b.c": "None", "d": "[]"}


def test_metrics_arrive_and_a_resumed_run_repeats_no_step(ref: RunRef) -> None:
    """Resuming from the checkpoint of step 5 replays steps that are logged already."""
    first = Tracker(ref)
    for step in range(10):
        first.log_metrics(step, {"train/loss": 1.0 / (step + 1), "nan": math.nan})
    assert first.flush(30)
    assert first.last_logged_step("train/loss") == 9
    assert first.last_logged_step("never") is None
    assert first.close()
    resumed = Tracker(ref)
    for step in range(5, 15):
        resumed.log_metrics(step, {"train/loss": 1.0 / (step + 1), "new": 0.0})
    assert resumed.finish()
    assert steps(ref, "train/loss") == list(range(15))
    assert steps(ref, "new") == list(range(5, 15))
    assert MlflowClient(ref.tracking_uri).get_run(ref.run_id).info.status == "FINISHED"


def test_logging_is_quick_and_batched(ref: RunRef) -> None:
    tracker = Tracker(ref)
    started = time.monotonic()
    for step in range(3000):
        tracker.log_metrics(step, {"a": 1.0, "b": 2.0})
    assert time.monotonic() - started < 1.0, "the training loop must not wait for the server"
    assert tracker.close(timeout_s=60)
    assert len(steps(ref, "b")) == 3000


def test_artifacts_and_dataset(ref: RunRef, tmp_path: object) -> None:
    tracker = Tracker(ref)
    tracker.log_text("report/report.html", "<p>ü</p>")
    tracker.log_json("gates.json", {"a": 1})
    for _ in range(2):
        tracker.log_dataset(snapshot_id="3-0123456789ab", name="cifar10", uri="s3://b/d", context="training")
    assert tracker.close()
    client = MlflowClient(ref.tracking_uri)
    path = client.download_artifacts(ref.run_id, "report/report.html", str(tmp_path))
    with open(path, encoding="utf-8") as file:
        assert file.read() == "<p>ü</p>"
    inputs = tracker.run().inputs.dataset_inputs
    assert [(entry.dataset.name, entry.dataset.digest) for entry in inputs] == [("cifar10", "3-0123456789ab")]
    with pytest.raises(InputError, match="MLflow allows 36"):
        tracker.log_dataset(snapshot_id="x" * 37, name="n", uri="u", context="training")


def test_an_outage_loses_nothing(ref: RunRef, caplog: pytest.LogCaptureFixture) -> None:
    """The server goes away in mid-run and comes back: training never notices, and every step is there."""
    with CutLine(ref.tracking_uri) as line:
        tracker = Tracker(RunRef(tracking_uri=line.url, run_id=ref.run_id))
        tracker.log_metrics(0, {"loss": 1.0})
        assert tracker.flush(30)
        line.cut()
        for step in range(1, 50):
            tracker.log_metrics(step, {"loss": 1.0})
        assert not tracker.flush(3), "nothing can have arrived"
        line.mend()
        assert tracker.close(timeout_s=60)
        assert tracker.num_dropped == 0
    assert steps(ref, "loss") == list(range(50))
    assert "MLflow does not take the metrics now" in caplog.text


def test_a_server_that_stays_away_costs_metrics_not_the_training(
    ref: RunRef, caplog: pytest.LogCaptureFixture
) -> None:
    with CutLine(ref.tracking_uri) as line, caplog.at_level(logging.WARNING):
        tracker = Tracker(RunRef(tracking_uri=line.url, run_id=ref.run_id), capacity=20)
        line.cut()
        for step in range(50):
            tracker.log_metrics(step, {"loss": 1.0, "accuracy": 0.5})
        started = time.monotonic()
        assert not tracker.close(timeout_s=1)
        assert time.monotonic() - started < 5
    assert tracker.num_dropped == 100
    assert "lost so far" in caplog.text


def test_a_refused_batch_does_not_hold_up_the_rest(mlflow_uri: str) -> None:
    tracker = Tracker(RunRef(tracking_uri=mlflow_uri, run_id="0" * 32))  # no such run: refused for good
    tracker.log_metrics(0, {"loss": 1.0})
    assert tracker.flush(30)
    assert tracker.num_dropped == 1
    assert not tracker.close()


def test_a_training_that_fails_ends_with_all_that_it_logged(ref: RunRef, tmp_path: Path) -> None:
    """The tracker was closed after a success only: its process went, and the last losses with it."""
    store, snapshot = small_dataset(tmp_path, num_train=24)
    model = replace(TINY, num_classes=len(snapshot.classes))
    phase = PhaseConfig(
        global_batch_size=8, num_lanes=2, decode=DecodeConfig(image_size_px=32),
        train=TrainConfig(epochs=20, warmup_epochs=0, schedule="constant", peak_learning_rate=1e30),
    )  # fmt: skip
    plan = TrainPlan(
        name="pretrain", root_uri=FolderStore(root=store.root.parent).uri, stage_path="stages/fails",
        dataset_path=store.root.name, snapshot_id=snapshot.id, model_config=model, initial_weights_path=None,
        phase=phase, seed=1, run=ref, runtime=Runtime(cache_dir=str(tmp_path / "cache")),
    )  # fmt: skip
    before = set(threading.enumerate())
    with pytest.raises(NonFiniteLossError):
        train_worker(LocalWorker(device=torch.device("cpu"), show=lambda line: None), plan)
    assert steps(ref, "data/left_out_per_epoch") == [0]
    sending = [thread for thread in set(threading.enumerate()) - before if thread.name == "mlflow-tracking"]
    for thread in sending:
        thread.join(10)
    assert not [thread for thread in sending if thread.is_alive()]
