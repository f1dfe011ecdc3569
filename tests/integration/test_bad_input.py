"""What a user can mend is one line and exit code 2, found before anything is written."""

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import mlflow
import pytest
from PIL import Image

from data.errors import InputError
from pipelines.config import parse_run_config
from tests.conftest import REPOSITORY, Stack

_CONFIG = "pipelines/configs/smoke.yaml"
_EXPERIMENT = "bad-input"
_NOWHERE = "http://127.0.0.1:9"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--recipe.pretrain.epoch", "3"], r"unknown config key 'recipe.pretrain.epoch'; keys of .*classes"),
        (["--recipe.pretrain.train.epoch", "3"], r"did you mean recipe.pretrain.train.epochs\?"),
        (["--recipe.pretrain.train.epochs", "0"], r"epochs is 0"),
        (["--recipe.pretrain.train.peak_learning_rate", "-1"], r"peak_learning_rate is -1"),
        (["--recipe.model", "coatnet_9"], r"unknown model 'coatnet_9'; models: coatnet_0"),
        (["--recipe.model_overrides", "{width: 3}"], r"unknown model option 'width'; options: "),
        (["--runtime.num_workers", "0"], r"runtime.num_workers is 0; it must be at least 1"),
        (["--config", "pipelines/configs/absent.yaml"], r"absent.yaml"),
    ],
)
def test_a_bad_config_is_named(options: list[str], message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY)
    with pytest.raises(InputError, match=message):
        parse_run_config(["--config", _CONFIG, *options], "A test.")


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    """Three images in each of two classes."""
    folder = tmp_path / "photographs"
    for level, name in enumerate(("cat", "dog")):
        (folder / name).mkdir(parents=True)
        for number in range(3):
            Image.new("RGB", (40, 40), (80 * level, 40 * number, 9)).save(folder / name / f"{number}.png")
    return folder


@pytest.mark.integration
class TestPreflight:
    """Each is a process of its own, as a user would run it."""

    def test_an_empty_folder(self, tracking_stack: Stack, tmp_path: Path) -> None:
        corpus = tmp_path / "nothing"
        corpus.mkdir()
        assert "nothing" in _refused(tracking_stack, tmp_path, ["--corpus", str(corpus)])

    def test_a_missing_folder(self, tracking_stack: Stack, tmp_path: Path) -> None:
        line = _refused(tracking_stack, tmp_path, ["--corpus", str(tmp_path / "absent")])
        assert "is not a folder: give a folder of class folders" in line

    def test_a_class_without_an_image(self, tracking_stack: Stack, tmp_path: Path, photographs: Path) -> None:
        (photographs / "unicorn").mkdir()
        assert "unicorn" in _refused(tracking_stack, tmp_path, ["--corpus", str(photographs)])

    def test_a_class_that_is_not_there(
        self, tracking_stack: Stack, tmp_path: Path, photographs: Path
    ) -> None:
        options = ["--corpus", str(photographs), "--recipe.finetune.classes", "[cat, unicorn]"]
        line = _refused(tracking_stack, tmp_path, options)
        assert "unicorn" in line
        assert "dog" in line

    def test_mlflow_is_down(self, tracking_stack: Stack, tmp_path: Path, photographs: Path) -> None:
        environment = {"MLFLOW_TRACKING_URI": _NOWHERE}
        line = _refused(tracking_stack, tmp_path, ["--corpus", str(photographs)], environment)
        assert _NOWHERE in line

    def test_a_wrong_mlflow_password(self, tracking_stack: Stack, tmp_path: Path, photographs: Path) -> None:
        environment = {"MLFLOW_TRACKING_PASSWORD": "not-the-password"}
        line = _refused(tracking_stack, tmp_path, ["--corpus", str(photographs)], environment)
        assert "MLFLOW_TRACKING_PASSWORD" in line
        assert "not-the-password" not in line

    def test_no_store(self, tracking_stack: Stack, tmp_path: Path, photographs: Path) -> None:
        options = ["--corpus", str(photographs), "--runtime.root", "s3://coatnet/bad-input"]
        assert _NOWHERE in _refused(tracking_stack, tmp_path, options, {"AWS_ENDPOINT_URL": _NOWHERE})

    def test_wrong_store_credentials(self, tracking_stack: Stack, tmp_path: Path, photographs: Path) -> None:
        options = ["--corpus", str(photographs), "--runtime.root", "s3://coatnet/bad-input"]
        line = _refused(tracking_stack, tmp_path, options, {"AWS_SECRET_ACCESS_KEY": "not-the-secret"})
        assert "s3://coatnet" in line
        assert "not-the-secret" not in line


def _refused(
    stack: Stack, folder: Path, options: list[str], environment: Mapping[str, str] | None = None
) -> str:
    """Run the job, check that it only complained, and return its one line."""
    root = folder / "root"
    command = [sys.executable, "pipelines/pretrain_finetune.py", "--config", _CONFIG]
    command += ["--runtime.root", root.as_uri(), "--runtime.experiment", _EXPERIMENT, *options]
    names = ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS")
    own = {name: value for name, value in stack.environment.items() if name not in names}
    done = subprocess.run(
        command,
        cwd=REPOSITORY,
        env={**os.environ, **own, **(environment or {})},
        capture_output=True,
        text=True,
        timeout=120,
    )
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    assert done.returncode == 2, done.stderr
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("error: ")
    written = [path for path in root.rglob("*") if path.is_file()] if root.exists() else []
    assert written == []
    assert (
        mlflow.MlflowClient(stack.environment["MLFLOW_TRACKING_URI"]).get_experiment_by_name(_EXPERIMENT)
        is None
    )
    return lines[0]
