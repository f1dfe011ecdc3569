"""`retrain.py --once` as a process on the real stack, from the main job's champion to the gate's verdict."""

import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from mlflow import MlflowClient

from data.errors import InputError
from data.snapshot import Snapshot, load_snapshot
from data.store import Store
from infra.ledger import Ledger
from infra.registry import CHALLENGER, CHAMPION, VERDICT_TAG, Registry, VersionInfo
from infra.store import open_store
from pipelines.retrain import main
from pipelines.review import DATASET_TAG, SNAPSHOT_TAG
from tests.conftest import Stack
from tests.integration.conftest import SMOKE_CONFIG, FinishedJob, JobTarget, run_script

pytestmark = [pytest.mark.integration, pytest.mark.slow]
_TIMEOUT_S = 600
VEHICLES = ("airplane", "automobile", "ship", "truck")


@dataclass(frozen=True, kw_only=True)
class Shop:
    """A model that serves, the data set it was trained on, and the prefix that is watched."""

    stack: Stack
    target: JobTarget
    cifar10: Path

    @property
    def incoming(self) -> Store:
        return open_store(f"{self.target.root_uri}-incoming")

    @property
    def registry(self) -> Registry:
        return Registry(tracking_uri=self.stack.environment["MLFLOW_TRACKING_URI"])

    @property
    def champion(self) -> VersionInfo:
        champion = self.registry.champion(self.target.model_name)
        assert champion is not None
        return champion

    @property
    def head(self) -> Snapshot:
        return load_snapshot(open_store(self.target.root_uri).sub(self.champion.tags[DATASET_TAG]), "HEAD")

    @property
    def ledger(self) -> Ledger:
        return Ledger(store=open_store(self.target.root_uri))

    @property
    def run_names(self) -> list[str]:
        """The names of the experiment's MLflow runs, oldest first."""
        client = MlflowClient(self.registry.tracking_uri)
        experiment = client.get_experiment_by_name(self.target.experiment)
        if experiment is None:
            return []
        runs = client.search_runs([experiment.experiment_id], order_by=["attributes.start_time ASC"])
        return [run.info.run_name for run in runs]

    def deliver(self, name: str, rows: slice, split: str = "train") -> None:
        """Put some of CIFAR-10's photographs of a class into the watched prefix."""
        incoming = self.incoming  # a new one each time: making a client takes longer than the upload
        for file in sorted((self.cifar10 / split / name).iterdir())[rows]:
            incoming.put(f"{name}/{split}-{file.name}", file.read_bytes())

    def options(self, *more: str) -> list[str]:
        given = ["--once", "--config", SMOKE_CONFIG, *self.target.options]
        return [*given, "--incoming", self.incoming.uri, *more]

    def retrain(self, *more: str, exit_code: int = 0) -> tuple[str, float]:
        """Run the command as a user does; return what it printed, and the seconds it took."""
        started = time.monotonic()
        options = self.options(*more)
        output = run_script(self.stack, "retrain", options, timeout_s=_TIMEOUT_S, exit_code=exit_code)
        return output, time.monotonic() - started


@pytest.fixture
def shop(stack: Stack, smoke_job: FinishedJob, cifar10: Path, tmp_path: Path) -> Shop:
    return open_shop(stack, smoke_job, cifar10, tmp_path)


@pytest.fixture(scope="module")
def quiet_shop(
    stack: Stack, smoke_job: FinishedJob, cifar10: Path, tmp_path_factory: pytest.TempPathFactory
) -> Shop:
    """A shop for those who change nothing in it."""
    return open_shop(stack, smoke_job, cifar10, tmp_path_factory.mktemp("quiet"))


def open_shop(stack: Stack, smoke_job: FinishedJob, cifar10: Path, folder: Path) -> Shop:
    """Copy what the main job left: its data set to another root, its champion to another name."""
    name = f"retrain-{uuid.uuid4().hex[:8]}"
    target = JobTarget(
        root_uri=f"s3://coatnet/{name}", experiment=name, model_name=name, cache_dir=folder / "cache"
    )
    registry = Registry(tracking_uri=stack.environment["MLFLOW_TRACKING_URI"])
    original = registry.champion(smoke_job.target.model_name)
    assert original is not None
    client = MlflowClient(registry.tracking_uri)
    client.copy_model_version(f"models:/{original.name}/{original.version}", name)
    client.set_registered_model_alias(name, CHAMPION, "1")
    path = original.tags[DATASET_TAG]
    source, copy = (open_store(uri).sub(path) for uri in (smoke_job.target.root_uri, target.root_uri))
    for info in source.list():
        copy.put(info.path, source.get(info.path))
    return Shop(stack=stack, target=target, cifar10=cifar10)


def test_new_images_lead_to_a_verdict_once(shop: Shop) -> None:
    """Nothing of use, then new images of old and new classes, then nothing new again."""
    champion, first = shop.champion, shop.head
    assert first.id == champion.tags[SNAPSHOT_TAG]

    # What the data set has already, and what is no image: told, remembered, and no snapshot.
    shop.deliver("ship", slice(0, 5), split="test")
    shop.incoming.put("truck/broken.png", b"\x89PNG, but not really")
    output, _ = shop.retrain()
    assert "6 new images, none of use (5 known already, 1 unreadable)" in output
    assert f"retrain: nothing new since snapshot {first.id} of champion version 1" in output
    assert shop.head.id == first.id
    assert shop.run_names == [], "without anything to learn from there is nothing to track"

    for name in VEHICLES:
        shop.deliver(name, slice(4900, 4910))
    shop.deliver("bird", slice(0, 40))
    shop.incoming.put("ship/broken.png", b"")
    output, _ = shop.retrain("--recipe.finetune.train.epochs", "1")
    head = shop.head
    assert (head.number, head.parent, head.classes) == (2, first.id, (*VEHICLES, "bird"))
    assert head.stats["rejects"]["empty"] == 1
    assert f"retrain: snapshot {head.id} appended to {first.id}: " in output
    assert "new classes: bird" in output
    challenger = shop.registry.get_version(shop.target.model_name, "2")
    verdict = challenger.tags[VERDICT_TAG]
    first_line = challenger.description.splitlines()[0].strip("*")
    assert first_line.startswith(verdict)
    assert f"promote: version 2: {first_line}" in output
    assert "| known classes |" in challenger.description, "the champion was compared, though it knows no bird"
    assert challenger.tags["data.snapshot"] == head.id
    assert challenger.tags["parent.version"] == "1"
    assert [entry.intent.verdict for entry in shop.ledger.history(shop.target.model_name)] == [verdict]
    assert shop.champion.version == ("2" if verdict == "PROMOTED" else "1")
    assert challenger.aliases == ((CHAMPION,) if verdict == "PROMOTED" else (CHALLENGER,))
    run_names = shop.run_names
    assert run_names[0].startswith("retrain ")
    assert {"snapshot", "champion", "finetune", "evaluate"} <= set(run_names)

    output, seconds = shop.retrain("--recipe.finetune.train.epochs", "1")
    assert "no new image in" in output
    assert f"retrain: nothing new since snapshot {head.id}" in output
    assert shop.run_names == run_names
    assert seconds < 30


def test_new_images_may_come_as_a_manifest(shop: Shop, tmp_path: Path) -> None:
    """Only class folders were taken."""
    known = min((shop.cifar10 / "test" / "ship").iterdir())
    (tmp_path / "known.png").write_bytes(known.read_bytes())
    (tmp_path / "broken.png").write_bytes(b"\x89PNG, but not really")
    (tmp_path / "new.csv").write_text("uri,label\nknown.png,ship\nbroken.png,truck\n")
    output, _ = shop.retrain("--incoming", str(tmp_path / "new.csv"))
    assert "2 new images, none of use (1 known already, 1 unreadable)" in output


@pytest.mark.slow
@pytest.mark.timeout(900)  # the first test alone has the main job in its setup
def test_a_better_model_of_more_images_is_promoted(shop: Shop) -> None:
    """The point of it all: five times the images and the champion's weights to start from."""
    for name in VEHICLES:
        shop.deliver(name, slice(4000, 5000))
    output, _ = shop.retrain("--recipe.finetune.train.epochs", "4")
    assert "promote: version 2: PROMOTED +" in output
    assert shop.champion.version == "2"
    assert shop.champion.aliases == (CHAMPION,)
    assert "Champion before: [version 1]" in shop.champion.description
    output, _ = shop.retrain("--recipe.finetune.train.epochs", "4")
    assert f"retrain: nothing new since snapshot {shop.head.id} of champion version 2" in output


def test_a_misspelt_prefix_is_told(quiet_shop: Shop, capsys: pytest.CaptureFixture[str]) -> None:
    """An object store has no folders: a wrong name looks like a prefix where nothing ever arrives."""
    assert main(quiet_shop.options()) == 0
    output = capsys.readouterr().out
    assert f"no new image in {quiet_shop.incoming.uri}: it is empty, or the name is wrong" in output
    assert "retrain: nothing new since" in output
    assert quiet_shop.run_names == []


def test_a_promotion_that_crashed_is_finished_although_nothing_is_new(
    shop: Shop, smoke_job: FinishedJob, capsys: pytest.CaptureFixture[str]
) -> None:
    """The champion's snapshot is the newest then: without this the verdict would stay unwritten for ever."""
    client = MlflowClient(shop.registry.tracking_uri)
    client.copy_model_version(f"models:/{shop.target.model_name}/1", shop.target.model_name)
    client.delete_model_version_tag(shop.target.model_name, "2", VERDICT_TAG)
    (promotion, *_) = Ledger(store=open_store(smoke_job.target.root_uri)).history(smoke_job.target.model_name)
    intent = replace(promotion.intent, model=shop.target.model_name, version="2", from_version="1")
    shop.ledger.record(intent)
    client.set_registered_model_alias(shop.target.model_name, CHAMPION, "2")
    assert main(shop.options()) == 0
    assert "promote: version 2 was half promoted; now applied" in capsys.readouterr().out
    assert shop.champion.tags[VERDICT_TAG] == "PROMOTED"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--runtime.model_name", "nobody"], "model 'nobody' has no champion to retrain: run pipelines/pre"),
        (["--runtime.root", "s3://coatnet/elsewhere"], "give the --runtime.root that it was trained with"),
        (["--incoming", "/no/such/folder"], "folder /no/such/folder does not exist"),
        (["--incoming", "s3://no-such-bucket/x"], "the bucket does not exist"),
        (["--incoming", ""], "incoming is empty: give --incoming"),
        (["--incoming", "/no/such/new.csv"], "folder /no/such does not exist"),
        (["--once=false"], "give --once"),
        (["--corpus", "x"], "retraining reads no --corpus: give --incoming"),
    ],
)
def test_bad_input_is_one_line_before_any_work(
    quiet_shop: Shop, options: Sequence[str], message: str
) -> None:
    with pytest.raises(InputError) as caught:
        main(quiet_shop.options(*options))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert quiet_shop.run_names == []


def test_without_the_recipe_of_the_champion_nothing_is_trained(quiet_shop: Shop) -> None:
    with pytest.raises(InputError, match="no recipe: give --config with the file that the champion"):
        main(["--once", "--incoming", quiet_shop.incoming.uri, *quiet_shop.target.options])


@pytest.mark.slow
def test_a_class_that_nobody_could_evaluate_is_told_before_training(shop: Shop) -> None:
    """The gate can only refuse a model of a class without an image for evaluation: hours for nothing."""
    for file in sorted((shop.cifar10 / "train" / "frog").iterdir())[:3]:
        shop.incoming.put(f"train/frog/{file.name}", file.read_bytes())
    output, _ = shop.retrain(exit_code=2)
    assert "error: class 'frog' has no image for evaluation in snapshot 2-" in output
    assert shop.run_names == []
