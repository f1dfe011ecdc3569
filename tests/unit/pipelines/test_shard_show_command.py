import os
import tempfile
from pathlib import Path

import pytest

from data.lease import hold
from pipelines.shard_show_command import ShowConfig, show
from tests.other_user import without_rights
from tests.small_dataset import small_dataset


def allow(folder: str, mode: int) -> None:
    for path, _, _ in os.walk(folder):
        Path(path).chmod(mode)


def test_who_may_only_read_sees_all_but_leases(capsys: pytest.CaptureFixture[str]) -> None:
    """Where a lease stood, `show` wrote a note to tell its age, and failed for whoever may only read."""
    with tempfile.TemporaryDirectory(prefix="readable-") as folder:
        dataset, snapshot = small_dataset(Path(folder), num_train=6)
        with hold(dataset, snapshot.id) as lease:
            allow(folder, 0o555)
            with without_rights():
                seen = show(ShowConfig(dataset=dataset.uri)).values
            allow(folder, 0o755)
            assert "leases: not shown, that needs the right to write (file://" in capsys.readouterr().out
            assert seen["leases"] == []
            assert seen["by_class"]
            whole = show(ShowConfig(dataset=dataset.uri)).values
            assert [one["owner"] for one in whole["leases"]] == [lease.owner]
