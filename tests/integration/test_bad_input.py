"""What a user can mend is one line and exit code 2, found before anything is written."""

import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import mlflow
import pytest

from data.errors import InputError
from infra.store import open_store
from pipelines.config import parse_run_config
from tests.conftest import REPOSITORY, Stack
from tests.entry_point_cases import Case, Outcome, run_cases
from tests.image_samples import fill, photos

_CONFIG = ["--config", "pipelines/configs/smoke.yaml"]
_NAME = "bad-input"
_ROOT = f"s3://coatnet/{_NAME}"
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
        (["--recipe.finetune.num_lanes", "3"], r"finetune: global_batch_size 16 is not a multiple of .* 3"),
        (["--recipe.finetune.decode.image_size_px", "0"], r"image_size_px is 0; it must be 1 to 8192"),
        (
            ["--recipe.pretrain.decode.image_size_px", "4"],
            r"image_size_px is 4: .*'coatnet_nano'.* at least 8",
        ),
        (
            ["--recipe.pretrain.augment.mixup_alpha", "0.2", "--recipe.pretrain.num_lanes", "16"],
            r"pretrain: Mixup and .* is 1$",
        ),
        (["--runtime.num_workers", "0"], r"runtime.num_workers is 0; it must be at least 1"),
        (["--runtime.num_workers", "5"], r"runtime.num_workers is 5; .*pretrain.num_lanes .* 4"),
        (["--runtime.model_name", "a/b"], r"runtime.model_name is 'a/b'"),
        (["--runtime.experiment", ""], r"runtime.experiment is ''"),
        (["--config", "pipelines/configs/absent.yaml"], r"absent.yaml"),
    ],
)
def test_a_bad_config_is_named(options: list[str], message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a config lets through is found by a worker, after the images were read."""
    monkeypatch.chdir(REPOSITORY)
    with pytest.raises(InputError, match=message) as caught:
        parse_run_config([*_CONFIG, *options], "A test.")
    assert "\n" not in str(caught.value)


_CASES: dict[str, tuple[Case, tuple[str, ...]]] = {
    "empty folder": (Case(options=["--corpus", "CORPORA/empty"]), ("no images in", "expected CLASS/IMAGE")),
    "missing folder": (Case(options=["--corpus", "CORPORA/absent"]), ("absent", "does not exist")),
    "missing bucket": (Case(options=["--corpus", "s3://absent-bucket/x"]), ("absent-bucket", "NoSuchBucket")),
    "empty prefix": (
        Case(options=["--corpus", "s3://coatnet/absent"]),
        ("no images in s3://coatnet/absent",),
    ),
    "a class without an image": (Case(options=["--corpus", "CORPORA/hollow"]), ("'unicorn'", "no image")),
    "an image outside of a class": (Case(options=["--corpus", "CORPORA/loose"]), ("'lost.png'",)),
    "a class that is not there": (
        Case(options=["--corpus", "CORPORA/good", "--recipe.finetune.classes", "[cat, unicorn]"]),
        ("'unicorn'", "classes there are cat, dog"),
    ),
    "one class": (Case(options=["--corpus", "CORPORA/single"]), ("'cat'", "at least two classes")),
    "one class asked for": (
        Case(options=["--corpus", "CORPORA/good", "--recipe.finetune.classes", "[cat]"]),
        ("finetune", "'cat'", "at least two classes"),
    ),
    "a class without a training image": (
        Case(options=["--corpus", "CORPORA/untrained"]),
        ("'dog'", "no image for training"),
    ),
    "no image for evaluation": (
        Case(options=["--corpus", "CORPORA/good", "--recipe.shard.eval_fraction", "0"]),
        ("no image for evaluation", "eval_fraction"),
    ),
    "fewer images than a batch": (
        Case(options=["--corpus", "CORPORA/good", "--recipe.pretrain.global_batch_size", "512"]),
        ("pretrain", "global_batch_size is 512"),
    ),
    "store is down": (Case(options=[], environment={"AWS_ENDPOINT_URL_S3": _NOWHERE}), (_ROOT, _NOWHERE)),
    "wrong store secret": (
        Case(options=[], environment={"AWS_SECRET_ACCESS_KEY": "not-the-secret"}),
        (_ROOT, "AWS_SECRET_ACCESS_KEY"),
    ),
    "unknown store key": (
        Case(options=[], environment={"AWS_ACCESS_KEY_ID": "not-the-key"}),
        (_ROOT, "AWS_ACCESS_KEY_ID"),
    ),
    "root's bucket is not there": (
        Case(options=["--runtime.root", "s3://absent-bucket/x"]),
        ("absent-bucket", "create it"),
    ),
    "root cannot be written": (Case(options=["--runtime.root", "file:///proc/root-of-a-job"]), ("/proc/",)),
    "MLflow is down": (
        Case(options=[], environment={"MLFLOW_TRACKING_URI": _NOWHERE}),
        (_NOWHERE, "start it"),
    ),
    "no MLflow named": (Case(options=[], environment={"MLFLOW_TRACKING_URI": ""}), ("MLFLOW_TRACKING_URI",)),
    "wrong MLflow password": (
        Case(options=[], environment={"MLFLOW_TRACKING_PASSWORD": "not-the-password"}),
        ("refuses user 'admin'", "MLFLOW_TRACKING_PASSWORD"),
    ),
}


@pytest.fixture(scope="module")
def outcomes(tracking_stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Outcome]:
    """Every case, run by the job's own entry point."""
    folder = tmp_path_factory.mktemp("bad input")
    make_corpora(folder)
    options = [*_CONFIG, *target(folder), "--corpus", str(folder / "good")]
    cases = [
        replace(case, options=[*options, *(o.replace("CORPORA", str(folder)) for o in case.options)])
        for case, _ in _CASES.values()
    ]
    environment = {**os.environ, **without_ray(tracking_stack.environment)}
    return dict(zip(_CASES, run_cases("pipelines.pretrain_finetune", cases, environment), strict=True))


def make_corpora(folder: Path) -> None:
    """Write a good corpus and some with a fault each."""
    both = {**photos("cat", 30, 0), **photos("dog", 30, 100)}
    fill(folder / "good", both)
    fill(folder / "hollow", both)
    (folder / "hollow" / "unicorn").mkdir()
    fill(folder / "loose", {**both, "lost.png": both["cat/000.png"]})
    fill(folder / "single", photos("cat", 30, 0))
    fill(folder / "untrained", {**photos("train/cat", 30, 0), **photos("test/dog", 5, 100)})
    (folder / "empty").mkdir()


def target(folder: Path) -> list[str]:
    """Return the options that lead a job to where nothing should come to be."""
    return [
        *("--runtime.root", _ROOT),
        *("--runtime.experiment", _NAME),
        *("--runtime.model_name", _NAME),
        *("--runtime.cache_dir", str(folder / "cache")),
    ]


def without_ray(environment: Mapping[str, str]) -> dict[str, str]:
    """Leave out the cluster: what passes the preflight by mistake must not reach another test's."""
    return {name: value for name, value in environment.items() if name not in ("RAY_ADDRESS",)}


@pytest.mark.integration
@pytest.mark.parametrize("name", _CASES)
def test_it_is_one_line_that_says_what_to_mend(outcomes: dict[str, Outcome], name: str) -> None:
    assert_refused(outcomes[name].exit_code, outcomes[name].stderr, *_CASES[name][1])
    assert outcomes[name].stdout == ""
    assert outcomes[name].seconds < 30


@pytest.mark.integration
def test_it_is_found_before_anything_is_written(outcomes: dict[str, Outcome], tracking_stack: Stack) -> None:
    """A half-made run or dataset of a typo would be found by the next job, or by a colleague."""
    assert len(outcomes) == len(_CASES)
    assert_nothing_written(tracking_stack)


@pytest.mark.integration
def test_more_workers_than_the_cluster_has_cpus(stack: Stack, tmp_path: Path) -> None:
    """Ray would wait for the CPUs for ever. This one is found by a process of its own, on the cluster."""
    make_corpora(tmp_path)
    options = [*_CONFIG, *target(tmp_path), "--corpus", str(tmp_path / "good")]
    options += ["--runtime.num_workers", "4", "--runtime.cpus_per_worker", "3"]
    done = subprocess.run(
        [sys.executable, "pipelines/pretrain_finetune.py", *options],
        cwd=REPOSITORY,
        env={**os.environ, **stack.environment},
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert_refused(done.returncode, done.stderr, "4 workers need 12 CPUs", "lower runtime.num_workers")
    assert_nothing_written(stack)


def assert_refused(exit_code: int, stderr: str, *parts: str) -> None:
    """Check that a run only said what is wrong, and which words that line has."""
    lines = [line for line in stderr.splitlines() if line.strip()]
    assert len(lines) == 1, stderr
    assert lines[0].startswith("error: "), stderr
    assert exit_code == 2
    for part in parts:
        assert part in lines[0]
    assert "not-the-" not in lines[0], "a secret, even a wrong one, is not for the log"


def assert_nothing_written(stack: Stack) -> None:
    assert list(open_store(_ROOT).list()) == []
    client = mlflow.MlflowClient(stack.environment["MLFLOW_TRACKING_URI"])
    assert client.get_experiment_by_name(_NAME) is None
    assert client.search_registered_models(f"name = '{_NAME}'") == []
