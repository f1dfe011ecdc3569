"""A machine that others use too."""

from pathlib import Path

import pytest

from infra.stack_process import choose_port
from tests.conftest import run_stack

pytestmark = pytest.mark.integration


def test_what_another_user_left_in_tmp_does_not_matter(tmp_path: Path) -> None:
    """SeaweedFS ended with `Failed to remove /tmp/seaweedfs-s3-8333.sock: operation not permitted`."""
    port = choose_port([None], set())
    # What cannot be removed stands for what may not be.
    left = Path(f"/tmp/seaweedfs-s3-{port}.sock")
    (left / "in the way").mkdir(parents=True)
    try:
        run_stack(tmp_path, "up", "--services", "s3", "--s3-port", str(port))
        assert f"http://127.0.0.1:{port}" in run_stack(tmp_path, "status", "--services", "s3").stdout
        assert (tmp_path / "s3.sock").is_socket()
    finally:
        run_stack(tmp_path, "down")
        (left / "in the way").rmdir()
        left.rmdir()
