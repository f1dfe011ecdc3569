"""The datasets that several files of tests begin with."""

from pathlib import Path

import pytest

from data.store import Store
from infra.store import open_store
from tests import small_dataset, small_loaders


@pytest.fixture
def dataset(tmp_path: Path) -> Store:
    """An empty one."""
    return open_store(str(tmp_path / "dataset"))


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> small_dataset.Dataset:
    """A small one that no test changes."""
    return small_dataset.small_dataset(tmp_path_factory.mktemp("pristine"), num_train=24)


@pytest.fixture(scope="module")
def cached(tmp_path_factory: pytest.TempPathFactory) -> small_loaders.Dataset:
    """A small one with a cache, that no test changes."""
    return small_loaders.cached_dataset(tmp_path_factory.mktemp("cached"))


@pytest.fixture(scope="module")
def expected(cached: small_loaders.Dataset) -> list[list[small_loaders.Row]]:
    """Its first epoch."""
    return small_loaders.epoch_rows(cached, 1)
