from pathlib import Path

import pytest

from data.errors import InputError
from data.listing import CorpusReader
from data.sharding_config import ShardingConfig
from data.store import Store
from pipelines import shard_write_commands
from pipelines.shard_write_commands import WriteConfig, append, create
from tests.image_samples import fill
from tests.small_builds import FILES, build


def _no_listing(corpus: Store | CorpusReader, config: ShardingConfig) -> None:
    pytest.fail("listed")


def test_a_dataset_that_cannot_be_written_is_told_before_the_corpus_is_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ten million images were listed first, to find that the bucket's name was wrong."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    corpus = fill(tmp_path / "corpus", FILES)
    (tmp_path / "file").write_bytes(b"")
    config = WriteConfig(corpus=str(tmp_path / "corpus"), dataset=str(tmp_path / "file" / "dataset"))
    dry = WriteConfig(corpus=config.corpus, dataset=config.dataset, dry_run=True)
    assert create(dry).values["images"] == len(FILES)
    monkeypatch.setattr(shard_write_commands, "list_for_build", _no_listing)
    with pytest.raises(InputError, match="cannot be written"):
        create(config)

    dataset = fill(tmp_path / "dataset", {})
    build(corpus, dataset)
    monkeypatch.setattr(shard_write_commands, "list_for_append", _no_listing)

    def refuse(store: Store, *, writable: bool = True) -> None:
        if writable:
            raise InputError(f"{store.uri} cannot be written")

    monkeypatch.setattr(shard_write_commands, "check_store", refuse)
    with pytest.raises(InputError, match="cannot be written"):
        append(WriteConfig(corpus=config.corpus, dataset=str(tmp_path / "dataset")))
