"""Ask an MLflow server a small question at once; its own client would retry for minutes before it says no."""

import re

import requests
from mlflow.utils.credentials import get_default_host_creds
from mlflow.utils.rest_utils import http_request

from data.errors import InputError

# An http(s) URL may hold no slash before its @, but a password that someone forgot to encode may.
_LOGIN = re.compile(r"(https?://)\S*@|(://)[^\s/]*@")


def check_tracking(tracking_uri: str, *, timeout_s: int = 5) -> None:
    """Prove within seconds that the server answers and that we are allowed in.

    Credentials are MLflow's own (`MLFLOW_TRACKING_USERNAME` and `_PASSWORD`, or a token).

    Raises:
        InputError: one line: which server, what it said, what to do.
    """
    shown_uri = without_login(tracking_uri)
    if not tracking_uri.startswith(("http://", "https://")):
        raise InputError(
            f"MLflow tracking URI {shown_uri!r} is no http(s) URL: start a server and give its URL"
        )
    try:
        response = ask_server(tracking_uri, timeout_s=timeout_s)
    except Exception as error:  # requests, urllib3 and MLflow each raise their own
        raise InputError(
            f"MLflow at {shown_uri} does not answer ({brief(error)}): start it or correct the URL"
        ) from error
    if response.status_code in (401, 403):
        username = get_default_host_creds(tracking_uri).username
        user = f"user {username!r}" if username else "a request without a user"
        raise InputError(
            f"MLflow at {shown_uri} refuses {user} ({response.status_code}): "
            "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
        )
    if response.status_code != 200 or "json" not in response.headers.get("content-type", ""):
        raise InputError(
            f"{shown_uri} answered {response.status_code}, not as an MLflow server does: correct the URL"
        )


def ask_server(tracking_uri: str, *, timeout_s: int = 5) -> requests.Response:
    """Return the server's answer to a search for one experiment, asked once. Raises if there is no answer."""
    response = http_request(
        get_default_host_creds(tracking_uri),
        "/api/2.0/mlflow/experiments/search",
        "GET",
        max_retries=0,
        timeout=timeout_s,
        raise_on_status=False,
        params={"max_results": 1},
    )
    assert response is not None
    return response


def brief(error: Exception) -> str:
    """Return the cause in a line: the outer errors repeat it with their pools and retries."""
    text = without_login(str(error))
    causes = ("Connection refused", "Name or service not known", "timed out", "CERTIFICATE_VERIFY_FAILED")
    return next((cause for cause in causes if cause in text), " ".join(text.split())[:200])


def without_login(text: str) -> str:
    """Return a URI, or a text that quotes some, without the user and password in it."""
    return _LOGIN.sub(r"\1\2", text)
