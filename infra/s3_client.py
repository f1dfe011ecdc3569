"""The boto3 client of a process, and how patient it is."""

import os
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING

import boto3.session
from botocore.config import Config

from data.errors import InputError

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client


@dataclass(frozen=True, slots=True, kw_only=True)
class S3Patience:
    """How long an operation tries. The default suits work, and outlives a store's restart.

    botocore sends a request `num_sends` times within seconds. Our own rounds around that cover
    what it leaves out, answers cut off in the body and longer outages; none starts after `retry_s`.
    """

    num_sends: int = 3
    retry_s: float = 60.0
    connect_timeout_s: float = 5.0
    read_timeout_s: float = 20.0


# A check before work starts wants its answer in seconds.
HASTE = S3Patience(num_sends=1, retry_s=3.0, connect_timeout_s=3.0, read_timeout_s=5.0)


def build_client(patience: S3Patience) -> "S3Client":
    """Return a client from the ordinary AWS environment and config files.

    A custom endpoint gets path-style addresses, since few of them resolve `bucket.host`.
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

    session = boto3.session.Session()
    try:
        client = build("auto")
    except ValueError as error:  # botocore's answer to a malformed URL
        raise InputError(f"AWS endpoint URL: {error}; write it as http://host:port") from error
    host = client.meta.endpoint_url.split("://", 1)[1].split("/", 1)[0]
    return client if ".amazonaws.com" in host else build("path")


class LazyClient:
    """One client for a process, made on first use; a pickled or forked copy makes its own."""

    def __init__(self, patience: S3Patience) -> None:
        self.patience = patience
        self._lock = threading.Lock()
        self._client: S3Client | None = None
        self._pid = 0

    def __reduce__(self) -> tuple[type["LazyClient"], tuple[S3Patience]]:
        return (LazyClient, (self.patience,))

    def get(self) -> "S3Client":
        """Return this process's client."""
        with self._lock:
            if self._client is None or self._pid != os.getpid():
                self._client, self._pid = build_client(self.patience), os.getpid()
            return self._client
