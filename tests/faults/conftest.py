"""Small real photographs, and jobs on them."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from pipelines.cifar10 import default_cache_dir, fetch_cifar10
from tests.conftest import Stack
from tests.faults.jobs import (
    FINETUNE_CLASSES,
    NUM_TEST,
    NUM_TRAIN,
    PRETRAIN_CLASSES,
    PRETRAIN_ONLY,
    Job,
)


@pytest.fixture(scope="session")
def small_corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A few hundred photographs of CIFAR-10, copied once: a copy's time is part of the listing."""
    source = fetch_cifar10(default_cache_dir(), lambda line: print(line, flush=True))
    target = tmp_path_factory.mktemp("photographs")
    for split, count in (("train", NUM_TRAIN), ("test", NUM_TEST)):
        for name in (*PRETRAIN_CLASSES, *FINETUNE_CLASSES):
            (target / split / name).mkdir(parents=True)
            for path in sorted((source / split / name).iterdir())[:count]:
                shutil.copy(path, target / split / name)
    return target


@pytest.fixture(scope="session")
def make_job(
    stack: Stack, small_corpus: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Job]:
    """Return a function that describes a job by a name of its own; nothing is shared between names."""

    def make(name: str, *overrides: str, program: str = PRETRAIN_ONLY) -> Job:
        return Job(
            folder=tmp_path_factory.mktemp(name, numbered=False),
            corpus=small_corpus,
            root_uri=f"s3://coatnet/faults/{name}",
            program=program,
            environment=stack.environment,
            overrides=overrides,
        )

    return make


@pytest.fixture(scope="session")
def undisturbed(make_job: Callable[..., Job]) -> Job:
    """A job that nothing happened to: what every other one must end like."""
    job = make_job("undisturbed")
    job.run()
    return job
