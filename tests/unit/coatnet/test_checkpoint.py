import logging
from pathlib import Path
from typing import Any

import pytest
import torch

from coatnet.checkpoint import Checkpoint, CheckpointStore
from data.errors import InputError
from data.store import StoreError
from infra.folder_store import FolderStore


def make_checkpoint(step: int, value: float = 1.0) -> Checkpoint:
    return Checkpoint(
        step=step,
        cursor={"epoch": 1, "step": 2, "identity": {"seed": 3}},
        model={
            "w": torch.full((4, 3, 2, 2), value).to(memory_format=torch.channels_last),
            "n": torch.tensor(5),
        },
        optimizer={"exp_avg/w": torch.randn(4, 3, 2, 2), "step/w": torch.tensor(7.0)},
        ema={"w": torch.zeros(4, 3, 2, 2)},
        metrics={"eval/top1": 0.1 + 0.2},
        losses=(1.5, 0.1 + 0.2),
    )


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "c").iterdir())


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    saved = make_checkpoint(12)
    checkpoints = CheckpointStore(FolderStore(root=tmp_path), "c")
    checkpoints.save(saved)
    checkpoints.finish()
    found = CheckpointStore(FolderStore(root=tmp_path), "c").load_latest()
    assert found is not None
    loaded = found[1]
    assert (loaded.step, loaded.cursor, loaded.metrics) == (12, saved.cursor, saved.metrics)
    assert tuple(loaded.losses) == saved.losses
    for group in ("model", "optimizer", "ema"):
        ours, theirs = getattr(saved, group), getattr(loaded, group)
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_an_empty_store_has_no_checkpoint(tmp_path: Path) -> None:
    assert CheckpointStore(FolderStore(root=tmp_path), "c").load_latest() is None


def test_training_may_change_tensors_while_they_are_uploaded(tmp_path: Path) -> None:
    checkpoints = CheckpointStore(FolderStore(root=tmp_path), "c")
    checkpoint = make_checkpoint(1, value=1.0)
    checkpoints.save(checkpoint)
    checkpoint.model["w"].fill_(2.0)
    checkpoints.finish()
    found = checkpoints.load_latest()
    assert found is not None
    assert (found[1].model["w"] == 1.0).all()


def test_the_newest_two_are_kept(tmp_path: Path) -> None:
    checkpoints = CheckpointStore(FolderStore(root=tmp_path), "c", keep_last=2)
    for step in (1, 20, 3, 40):
        checkpoints.save(make_checkpoint(step))
    checkpoints.finish()
    assert [name[:14] for name in names_in(tmp_path)] == ["step-000000020", "step-000000040"]


@pytest.mark.parametrize("damage", ["cut", "flip", "empty"])
def test_a_damaged_checkpoint_gives_way_to_the_one_before(
    tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    checkpoints = CheckpointStore(FolderStore(root=tmp_path), "c")
    checkpoints.save(make_checkpoint(1))
    checkpoints.save(make_checkpoint(2))
    checkpoints.finish()
    newest = tmp_path / "c" / names_in(tmp_path)[-1]
    content = bytearray(newest.read_bytes())
    content[-1] ^= 1
    newest.write_bytes({"cut": content[:-9], "flip": bytes(content), "empty": b""}[damage])
    found = checkpoints.load_latest()
    assert found is not None
    assert found[1].step == 1
    assert newest.name in caplog.text


class FaultyStore(FolderStore):
    """A folder whose next writes fail."""

    faults: list[StoreError] = []  # noqa: RUF012 - shared on purpose, the dataclass is frozen

    def put(self, path: str, content: bytes) -> None:
        if self.faults:
            raise self.faults.pop()
        FolderStore.put(self, path, content)


def test_a_short_fault_is_retried(tmp_path: Path) -> None:
    waits: list[float] = []
    store = FaultyStore(root=tmp_path)
    store.faults[:] = [StoreError("503"), StoreError("503")]
    checkpoints = CheckpointStore(store, "c", sleep=waits.append)
    checkpoints.save(make_checkpoint(1))
    checkpoints.finish()
    assert len(waits) == 2
    assert waits[0] < waits[1]
    assert checkpoints.load_latest() is not None


def test_a_long_fault_is_fatal_only_for_the_last_save(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = FaultyStore(root=tmp_path)
    store.faults[:] = [StoreError("503")] * 3
    checkpoints = CheckpointStore(store, "c", sleep=lambda _: None)
    with caplog.at_level(logging.WARNING):
        checkpoints.save(make_checkpoint(1))
        checkpoints.save(make_checkpoint(2))
        checkpoints.finish()
    assert "step 1 could not be saved" in caplog.text
    store.faults[:] = [StoreError("503")] * 3
    checkpoints.save(make_checkpoint(3))
    with pytest.raises(StoreError, match="503"):
        checkpoints.finish()
    found = checkpoints.load_latest()
    assert found is not None
    assert found[1].step == 2


def test_a_bug_in_the_upload_is_not_lost(tmp_path: Path) -> None:
    class BrokenStore(FolderStore):
        def put(self, path: str, content: bytes) -> None:
            raise ZeroDivisionError

    checkpoints = CheckpointStore(BrokenStore(root=tmp_path), "c")
    checkpoints.save(make_checkpoint(1))
    with pytest.raises(ZeroDivisionError):
        checkpoints.finish()


def test_nothing_is_unpickled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoints = CheckpointStore(FolderStore(root=tmp_path), "c")
    checkpoints.save(make_checkpoint(1))
    checkpoints.finish()

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("unpickled")

    monkeypatch.setattr("pickle.Unpickler", refuse)
    monkeypatch.setattr("pickle.loads", refuse)
    assert checkpoints.load_latest() is not None


def test_what_stands_behind_a_checkpoint_is_done_first(tmp_path: Path) -> None:
    """Metrics of the last second before a checkpoint were lost with their process: never logged again."""
    names_before: list[list[str]] = []
    folder = tmp_path / "c"
    checkpoints = CheckpointStore(
        FolderStore(root=tmp_path),
        "c",
        before_upload=lambda: names_before.append(names_in(tmp_path) if folder.exists() else []),
    )
    checkpoints.save(make_checkpoint(1))
    checkpoints.save(make_checkpoint(2))
    checkpoints.finish()
    assert [len(names) for names in names_before] == [0, 1]


def test_a_checkpoint_of_another_format_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as older:
        older.setattr("coatnet.checkpoint._FORMAT", 1)
        checkpoints = CheckpointStore(FolderStore(root=tmp_path), "c")
        checkpoints.save(make_checkpoint(1))
        checkpoints.finish()
    with pytest.raises(InputError, match=r"c/step-.* has format 1, this version reads \d: delete it"):
        CheckpointStore(FolderStore(root=tmp_path), "c").load_latest()
