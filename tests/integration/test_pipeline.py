"""What one run of the main job leaves behind: in the store, in MLflow, and for whoever uses the model."""

import io
import json
import re
import subprocess
import sys
from pathlib import Path

import mlflow
import pytest
from mlflow.entities import Run
from PIL import Image

from data.shard_index import read_index
from data.snapshot import load_snapshot
from data.store import Store
from infra.ledger import Ledger
from infra.registry import Registry
from infra.store import open_store
from pipelines.demo import report
from pipelines.job import code_version
from tests.integration.conftest import FinishedJob, submit_job
from tests.job_results import (
    given_datasets,
    list_artifacts,
    load_report,
    nested_runs,
    read_artifact,
    read_records,
)

pytestmark = [
    pytest.mark.integration,
    pytest.mark.timeout(900),  # the first test waits for the job
]
ANIMALS = ["bird", "cat", "deer", "dog", "frog", "horse"]
VEHICLES = ["airplane", "automobile", "ship", "truck"]
STAGES = {"shard": 2, "pretrain": 1, "finetune": 1, "evaluate": 1}


@pytest.fixture(scope="module")
def root(smoke_job: FinishedJob) -> Store:
    return open_store(smoke_job.target.root_uri)


@pytest.fixture(scope="module")
def client(smoke_job: FinishedJob) -> mlflow.MlflowClient:
    return mlflow.MlflowClient(smoke_job.environment["MLFLOW_TRACKING_URI"])


@pytest.fixture(scope="module")
def runs(client: mlflow.MlflowClient, smoke_job: FinishedJob) -> list[Run]:
    experiment = client.get_experiment_by_name(smoke_job.target.experiment)
    assert experiment is not None
    return list(client.search_runs([experiment.experiment_id]))


@pytest.fixture(scope="module")
def parent(runs: list[Run]) -> Run:
    (found,) = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    return found


def test_every_stage_left_a_record_and_the_promotion_its_entry(smoke_job: FinishedJob, root: Store) -> None:
    records = read_records(root)
    assert {name: len(found) for name, found in records.items()} == STAGES
    (pretrained,), (finetuned,) = records["pretrain"], records["finetune"]
    assert pretrained["output"]["classes"] == ANIMALS
    assert finetuned["output"]["classes"] == VEHICLES
    # The head is new; bias tables of another size are resized, which keeps what they learnt.
    assert finetuned["output"]["renewed_parameters"] == ["head.classifier.bias", "head.classifier.weight"]
    for found in records.values():
        for record in found:
            assert record["provenance"]["code_version"] == code_version()
    (entry,) = Ledger(store=root).history(smoke_job.target.model_name)
    assert (entry.intent.verdict, entry.result, entry.intent.from_version) == ("PROMOTED", "applied", None)


def test_evaluation_uses_the_official_test_images_and_training_never_does(root: Store) -> None:
    """The cap of training images once also cut the evaluation: its accuracies could not be compared."""
    for record in read_records(root)["shard"]:
        dataset = root.sub(record["output"]["dataset_path"])
        snapshot = load_snapshot(dataset, record["output"]["snapshot_id"])
        is_pretraining = list(snapshot.classes) == ANIMALS
        for split, folder, per_class in (
            ("train", "train", 500 if is_pretraining else 200),
            ("eval", "test", 1000),
        ):
            names = [
                name
                for shard in snapshot.splits[split]
                for name in read_index(dataset, shard)["name"].to_pylist()
            ]
            assert {tuple(name.split("/")[:2]) for name in names} == {
                (folder, name) for name in snapshot.classes
            }
            assert len(names) == len(set(names)) == per_class * len(snapshot.classes)
    evaluated = load_report(root)
    assert evaluated.num_samples == 4000
    assert all(key.startswith("test/") for key in evaluated.keys)


def test_the_log_tells_progress_and_ends_with_a_report(smoke_job: FinishedJob) -> None:
    log, target = smoke_job.output, smoke_job.target
    for stage in ("shard", "pretrain", "finetune"):
        assert re.search(rf"^{stage}  .*\d images/s.*  ETA \d+", log, re.MULTILINE), stage
    assert re.search(r"^pretraining  top-1 \d+\.\d% on 6 classes$", log, re.MULTILINE)
    assert re.search(r"^finetuning   top-1 \d+\.\d% on 4 classes, 4,000 images$", log, re.MULTILINE)
    assert f"registry     {target.model_name} version 1: PROMOTED" in log
    page = f"{smoke_job.environment['MLFLOW_TRACKING_URI']}/#/models/{target.model_name}/versions/1"
    assert f"review       {page}" in log
    assert smoke_job.environment["MLFLOW_TRACKING_URI"] in report(smoke_job.environment, ["x"], "m", 1.0)


def test_the_log_holds_what_a_user_can_use(smoke_job: FinishedJob) -> None:
    """A second Ray on the machine once put a traceback of Ray Train into every job's log; boto3 told
    every time where it had found its credentials."""
    assert "Traceback" not in smoke_job.output
    assert "Found credentials" not in smoke_job.output


def test_no_secret_is_told(
    smoke_job: FinishedJob, root: Store, client: mlflow.MlflowClient, runs: list[Run]
) -> None:
    """Not in the log, nor in what the job wrote to the store and to MLflow."""
    environment = smoke_job.environment
    names = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "MLFLOW_TRACKING_PASSWORD")
    secrets = [environment[name].encode() for name in names]
    secrets.append(Path(environment["RAY_AUTH_TOKEN_PATH"]).read_bytes().strip())
    assert all(len(secret) >= 16 for secret in secrets)
    told = {"log": smoke_job.output.encode()}
    told |= {info.path: root.get(info.path) for info in root.list() if not info.path.endswith(".tar")}
    for run in runs:
        told[f"run {run.info.run_name}"] = json.dumps(run.to_dictionary()).encode()
        for path in list_artifacts(client, run.info.run_id):
            if not path.endswith((".png", ".safetensors", ".py")):
                told[f"{run.info.run_name}/{path}"] = read_artifact(client, run, path)
    version = Registry(tracking_uri=environment["MLFLOW_TRACKING_URI"]).champion(smoke_job.target.model_name)
    told["version"] = repr(version).encode()
    assert len(told) > 30
    assert [name for name, content in told.items() if any(secret in content for secret in secrets)] == []


def test_mlflow_has_a_run_of_the_job_and_one_of_each_stage(
    client: mlflow.MlflowClient, runs: list[Run], parent: Run
) -> None:
    nested = nested_runs(runs, parent)
    assert {name: len(found) for name, found in nested.items()} == STAGES
    assert {run.info.run_name for run in nested["shard"]} == {"shard 6 classes", "shard 4 classes"}
    assert {run.info.status for run in runs} == {"FINISHED"}
    assert parent.data.tags["code.version"] == code_version() != "unknown"
    assert parent.data.params["recipe.model"] == "coatnet_nano"
    assert parent.data.params["recipe.finetune.decode.image_size_px"] == "48"
    assert 0.3 <= parent.data.metrics["eval/top1"] <= 1
    assert len(given_datasets(parent)) == 2, "the snapshots of animals and of vehicles"
    for stage, snapshot_context in (("pretrain", "training"), ("evaluate", "evaluation")):
        (run,) = nested[stage]
        (given,) = given_datasets(run)
        assert re.fullmatch(r"1-[0-9a-f]{12}", given.dataset.digest)
        assert [tag.value for tag in given.tags] == [snapshot_context]
    for stage in ("pretrain", "finetune"):
        run_id = nested[stage][0].info.run_id
        for curve in (
            "train/loss",
            "train/learning_rate",
            "train/gradient_norm",
            "train/images_per_s",
            "train/data_wait_share",
            "data/fetch_s",
            "data/decode_s",
            "data/copy_s",
            "data/augment_s",
            "data/wait_s",
            "data/queue_depth",
            "data/cache_hit_share",
            "data/read_bytes",
        ):
            steps = [point.step for point in client.get_metric_history(run_id, curve)]
            assert len(steps) >= 4, curve
            assert steps == sorted(set(steps)), curve
        assert client.get_metric_history(run_id, "eval/top1")
        assert {point.value for point in client.get_metric_history(run_id, "data/bad_samples")} == {0.0}


def test_mlflow_has_the_pictures_and_the_report(
    client: mlflow.MlflowClient, runs: list[Run], parent: Run
) -> None:
    nested = nested_runs(runs, parent)
    for run, path in (
        (parent, "confusion.png"),
        (parent, "reliability.png"),
        (nested["pretrain"][0], "augmented_samples.png"),
        (nested["finetune"][0], "augmented_samples.png"),
    ):
        with Image.open(io.BytesIO(read_artifact(client, run, path))) as picture:
            assert min(picture.size) >= 300, path
            assert len(picture.convert("RGB").getcolors(2**24) or ()) > 50, f"{path} is empty"
    page = read_artifact(client, parent, "report.html").decode()
    assert all(name in page for name in VEHICLES)
    cards = [read_artifact(client, run, "dataset_card.html").decode() for run in nested["shard"]]
    assert sum(all(name in card for name in VEHICLES) for card in cards) == 1
    assert min(card.count("<img") for card in cards) > 30
    decided = json.loads(read_artifact(client, parent, "gate/gates.json"))
    assert decided["verdict"] == "PROMOTED"


def test_the_version_says_why_it_serves(smoke_job: FinishedJob, root: Store, parent: Run) -> None:
    """Readable on the version's page, without opening a file."""
    registry = Registry(tracking_uri=smoke_job.environment["MLFLOW_TRACKING_URI"])
    champion = registry.champion(smoke_job.target.model_name)
    assert champion is not None
    assert (champion.version, champion.run_id) == ("1", parent.info.run_id)
    evaluated = load_report(root)
    first_line = champion.description.splitlines()[0]
    assert first_line == f"**PROMOTED top-1 {evaluated.top1:.1%} (n = 4000), no champion to compare with**"
    assert "| top-1 floor |" in champion.description
    assert {name: champion.tags[name] for name in ("gate.verdict", "data.snapshot", "parent.version")} == {
        "gate.verdict": "PROMOTED",
        "data.snapshot": evaluated.snapshot_id,
        "parent.version": "none",
    }
    assert champion.tags["code.version"] == code_version()


_CLASSIFY = """
import importlib.util, json, sys
# As on a machine without this project: forget that it is installed here for development.
sys.meta_path = [finder for finder in sys.meta_path if "__editable__" not in repr(finder)]
assert importlib.util.find_spec("coatnet") is None, "coatnet is importable without the model"
import mlflow
model = mlflow.pyfunc.load_model(sys.argv[1])
print(model.predict(sys.argv[2:]).to_json(orient="records"))
"""


def test_the_champion_classifies_files_anywhere_as_it_did_in_the_evaluation(
    smoke_job: FinishedJob, root: Store, cifar10: Path, tmp_path: Path
) -> None:
    """The version brings its own code, weights and preprocessing. Other resizing or normalisation in
    serving than in evaluation is the classic bug that nobody sees."""
    evaluated = load_report(root)
    rows = range(0, 4000, 500)
    photos = [str(cifar10 / evaluated.keys[row]) for row in rows]
    uri = f"models:/{smoke_job.target.model_name}@champion"
    done = subprocess.run(
        [sys.executable, "-I", "-c", _CLASSIFY, uri, *photos],
        cwd=tmp_path,
        env=smoke_job.environment,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    for row, answer in zip(rows, json.loads(done.stdout.splitlines()[-1]), strict=True):
        expected = dict(zip(VEHICLES, evaluated.probabilities_NK[row].tolist(), strict=True))
        assert answer["probabilities"] == pytest.approx(expected, abs=1e-4)
        assert answer["label"] == VEHICLES[evaluated.predicted_N[row]]
        assert answer["score"] == max(answer["probabilities"].values())


def test_a_second_run_skips_every_stage(
    request: pytest.FixtureRequest, smoke_job: FinishedJob, client: mlflow.MlflowClient
) -> None:
    """A finished stage that is computed again costs hours and gives another version."""
    again = submit_job(request.getfixturevalue("stack"), smoke_job.target)
    assert again.exit_code == 0, again.output
    for name, number in STAGES.items():
        assert (
            len(re.findall(rf"^{name}[^:]*: finished before \(\w+\), skipped$", again.output, re.M)) == number
        )
    assert "register: version 1 exists" in again.output
    assert "promote: version 1 was PROMOTED before, skipped" in again.output
    assert not re.search(r"images/s|: started", again.output)
    assert again.seconds < smoke_job.seconds / 2
    versions = client.search_model_versions(f"name = '{smoke_job.target.model_name}'")
    assert [str(version.version) for version in versions] == ["1"]
