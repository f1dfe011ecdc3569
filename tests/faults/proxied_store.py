"""A store of the real S3 server behind a fault proxy."""

import os
import re
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager

import pytest

from infra.s3_client import LazyClient, S3Patience
from infra.s3_store import S3Store
from tests.fault_proxy import Fault, FaultProxy, Request, fault_proxy

ENDPOINT = "AWS_ENDPOINT_URL_S3"


@contextmanager
def spoilt_store(
    store: S3Store,
    *,
    seed: int = 0,
    rates: Mapping[Fault, float] | None = None,
    script: list[Fault] | None = None,
    concerns: Callable[[Request], bool] = lambda request: True,
    patience: S3Patience | None = None,
    stall_s: float = 5.0,
) -> Generator[tuple[S3Store, FaultProxy]]:
    """Give the same objects through a proxy with these faults, with a client of its own."""
    proxy = FaultProxy(
        target=os.environ[ENDPOINT],
        seed=seed,
        rates=rates or {},
        script=script or [],
        concerns=concerns,
        stall_s=stall_s,
    )
    with fault_proxy(proxy), pytest.MonkeyPatch.context() as patch:
        client = LazyClient(patience or S3Patience())
        patch.setenv(ENDPOINT, proxy.url)
        client.get()
        patch.undo()
        yield S3Store(bucket=store.bucket, prefix=store.prefix, _client=client), proxy


def new_store(name: str) -> S3Store:
    """Return a place in the stack's bucket that is always the same: it is part of what a seed decides."""
    return S3Store(bucket="coatnet", prefix=f"faults/{re.sub(r'[^0-9A-Za-z]+', '-', name)}")
