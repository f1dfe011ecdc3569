"""What is said of an MLflow server holds no password: `http://alice:s3cret@host` was printed as it was."""

import socket
import sys

import pytest
from mlflow.exceptions import MlflowException

from data.errors import InputError
from infra.tracking_check import brief, check_tracking, without_login
from pipelines.job import run_main


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("http://alice:s3cret@host:5000/x", "http://host:5000/x"),
        ("https://token@host", "https://host"),
        ("http://alice:s3@cret@host", "http://host"),
        ("http://alice:s3/cret@host", "http://host"),
        (
            "no answer from http://a:s3cret@h/api, nor from http://b:s3cret@h",
            "no answer from http://h/api, nor from http://h",
        ),
        ("postgresql://alice:s3cret@db/mlflow", "postgresql://db/mlflow"),
        ("http://host:5000 refuses a@b", "http://host:5000 refuses a@b"),
        ("s3://bucket/user@example/x.png", "s3://bucket/user@example/x.png"),
    ],
)
def test_only_the_login_is_left_out(text: str, expected: str) -> None:
    assert without_login(text) == expected


@pytest.mark.parametrize("scheme", ["http", "mysql"])
def test_a_refused_uri_is_named_without_its_password(scheme: str) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # bound but not listening: refused, and nobody else can take it
        address = f"127.0.0.1:{unused.getsockname()[1]}"
        with pytest.raises(InputError, match=f"{scheme}://{address}") as caught:
            check_tracking(f"{scheme}://alice:s3cret@{address}")
    assert "s3cret" not in str(caught.value)


def test_a_cut_error_does_not_lose_the_sign_that_ends_the_password() -> None:
    assert brief(ValueError("x" * 180 + " http://alice:s3cret@host")).endswith(" http://host")


def test_an_entry_point_prints_no_password_of_mlflows_own_errors(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(argv: list[str]) -> int:
        error = MlflowException("API request to http://alice:s3cret@host/api failed")
        error.add_note("In worker 1: http://alice:s3cret@host")
        raise error

    monkeypatch.setattr(sys, "argv", ["job"])
    monkeypatch.setattr("pipelines.job.interrupt_on_stop_signals", lambda: None)
    with pytest.raises(SystemExit, match="1"):
        run_main(fail)
    printed = capsys.readouterr().err
    assert "failed: API request to http://host/api failed; run the same command" in printed
    assert "In worker 1: http://host" in printed
    assert "s3cret" not in printed
