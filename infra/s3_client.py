"""The boto3 client of a process, and how patient it is."""

import os
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import boto3.session
import botocore.session
from botocore.config import Config

from data.errors import InputError

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client


@dataclass(frozen=True, slots=True, kw_only=True)
class S3Patience:
    """How long an operation tries. The default suits work, and outlives a store's restart.

    botocore sends a request `num_sends` times within seconds. Our own tries around that cover what
    it leaves out, answers cut off in the body and longer outages. After `num_tries` of them, which a
    large object may need however long each took, none starts later than `retry_s`.
    """

    num_sends: int = 3
    num_tries: int = 4
    retry_s: float = 60.0
    connect_timeout_s: float = 5.0
    read_timeout_s: float = 20.0


# An outage is mentioned once it lasts, and then again from time to time; by one thread for all.
_SAY_AFTER_S, _SAY_EVERY_S = 10.0, 30.0

# A check before work starts wants its answer in seconds.
HASTE = S3Patience(num_sends=1, num_tries=1, retry_s=3.0, connect_timeout_s=3.0, read_timeout_s=5.0)


def build_client(patience: S3Patience) -> "S3Client":
    """Return a client from the ordinary AWS environment and config files.

    A custom endpoint gets path-style addresses, since few of them resolve `bucket.host`; an
    `addressing_style` in the profile's `s3` section wins.
    Raises `InputError` for a malformed endpoint, `BotoCoreError` for a missing profile.
    """

    def build(addressing_style: str) -> "S3Client":
        config = Config(
            retries={"mode": "standard", "total_max_attempts": patience.num_sends},
            connect_timeout=patience.connect_timeout_s,
            read_timeout=patience.read_timeout_s,
            max_pool_connections=64,
            s3={"addressing_style": addressing_style},  # pyright: ignore[reportArgumentType]
        )
        region = session.region_name or "us-east-1"
        return session.client("s3", region_name=region, config=config)

    core = botocore.session.get_session()
    session = boto3.session.Session(botocore_session=core)
    profile: dict[str, Any] = core.get_scoped_config()
    style = profile.get("s3", {}).get("addressing_style")
    try:
        client = build(style or "auto")
    except ValueError as error:  # botocore's answer to a malformed URL
        raise InputError(f"AWS endpoint URL: {error}; write it as http://host:port") from error
    host = client.meta.endpoint_url.split("://", 1)[1].split("/", 1)[0]
    return client if style or ".amazonaws.com" in host else build("path")


_shared: dict[tuple[object, ...], "S3Client"] = {}
_shared_lock = threading.Lock()


def shared_client(patience: S3Patience) -> "S3Client":
    """Return this process's client: making one takes 0.1 s, and each task brings a store of its own.

    Another process, another AWS environment or changed AWS files have another one. Raises as `build_client`.
    """
    aws = sorted((name, value) for name, value in os.environ.items() if name.startswith("AWS_"))
    key = (os.getpid(), patience, *_aws_files(), *aws)
    with _shared_lock:
        if key not in _shared:
            _shared[key] = build_client(patience)
        return _shared[key]


def _aws_files() -> list[tuple[str, int]]:
    """Return the AWS files and when each was last written, in ns; 0 where there is none."""
    found: list[tuple[str, int]] = []
    for name, usual in (("AWS_CONFIG_FILE", "config"), ("AWS_SHARED_CREDENTIALS_FILE", "credentials")):
        path = Path(os.environ.get(name) or f"~/.aws/{usual}").expanduser()
        try:
            found.append((str(path), path.stat().st_mtime_ns))
        except OSError:
            found.append((str(path), 0))
    return found


class LazyClient:
    """The client of a process, taken on first use; a pickled or forked copy takes its own process's."""

    def __init__(self, patience: S3Patience) -> None:
        self.patience = patience
        self._lock = threading.Lock()
        self._client: S3Client | None = None
        self._pid = 0
        self._said_s = 0.0

    def __reduce__(self) -> tuple[type["LazyClient"], tuple[S3Patience]]:
        return (LazyClient, (self.patience,))

    def get(self) -> "S3Client":
        """Return this process's client."""
        with self._lock:
            if self._client is None or self._pid != os.getpid():
                self._client, self._pid = shared_client(self.patience), os.getpid()
            return self._client

    def is_time_to_say(self, waited_s: float) -> bool:
        """Say whether a caller that has waited so long should tell; only one caller at a time hears yes."""
        with self._lock:
            now_s = time.monotonic()
            if waited_s < _SAY_AFTER_S or now_s - self._said_s < _SAY_EVERY_S:
                return False
            self._said_s = now_s
            return True
