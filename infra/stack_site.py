"""One stack's addresses and credentials, and the environments made of them."""

import os
import sysconfig
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass

from infra.stack_state import StackHome, StackSecrets

LOOPBACK = "127.0.0.1"
REGION = "us-east-1"
PROBE_TIMEOUT_S = 5.0
_PROXY_NAMES = ("NO_PROXY", "no_proxy")


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """Where one stack lives: its folder, credentials and ports."""

    home: StackHome
    secrets: StackSecrets
    ports: Mapping[str, int]

    def url(self, port_name: str) -> str:
        """Return the HTTP address of a port."""
        return f"http://{LOOPBACK}:{self.ports[port_name]}"


def client_environment(site: Site) -> dict[str, str]:
    """Return the environment of every client of the stack, and of every job."""
    # Loopback must not go through a company's proxy.
    direct = ",".join(dict.fromkeys([LOOPBACK, "localhost", *os.environ.get("NO_PROXY", "").split(",")]))
    return {
        **store_environment(site),
        "MLFLOW_TRACKING_URI": site.url("mlflow"),
        "MLFLOW_TRACKING_USERNAME": site.secrets.mlflow_user,
        "MLFLOW_TRACKING_PASSWORD": site.secrets.mlflow_password,
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(site.home.ray_token_path),
        # The switch's name aside: it makes Ray take 127.0.0.1 as it stands, instead of looking up
        # an address of the machine and listening there.
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        **{name: direct.strip(",") for name in _PROXY_NAMES},
    }


def driver_environment(site: Site) -> dict[str, str]:
    """Return what a client outside Ray needs besides, to find the cluster."""
    return {
        "RAY_ADDRESS": f"{LOOPBACK}:{site.ports['ray_gcs']}",
        "RAY_API_SERVER_ADDRESS": site.url("ray_dashboard"),
    }


def store_environment(site: Site) -> dict[str, str]:
    """Return the object store's part of the clients' environment."""
    return {
        "AWS_ACCESS_KEY_ID": site.secrets.s3_access_key,
        "AWS_SECRET_ACCESS_KEY": site.secrets.s3_secret_key,
        "AWS_SESSION_TOKEN": "",
        "AWS_ENDPOINT_URL_S3": site.url("s3"),
        "AWS_REGION": REGION,
        "AWS_DEFAULT_REGION": REGION,
    }


def clean_environment() -> dict[str, str]:
    """Return this process's environment without what would lead a service elsewhere."""
    foreign = ("AWS_", "MLFLOW_", "RAY_", "S3_", "WEED_", "PYTHONWARNINGS", "PYTEST_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
    # `python` in a job's entrypoint is then the one that runs this.
    kept["PATH"] = os.pathsep.join([scripts_dir(), os.environ.get("PATH", os.defpath)])
    return kept


def scripts_dir() -> str:
    """Return the folder of this Python environment's programs."""
    return sysconfig.get_path("scripts")


def get_body(url: str, headers: Mapping[str, str]) -> bytes | None:
    """Return the body of a good answer, or None. No proxy is asked."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(
            urllib.request.Request(url, headers=dict(headers)), timeout=PROBE_TIMEOUT_S
        ) as answer:
            return answer.read()
    except OSError:
        return None
