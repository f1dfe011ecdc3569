"""Leases: notes in the store that somebody is using a snapshot, building one, or collecting garbage.

`leases/WHAT/OWNER.json`, WHAT being a snapshot's id, `builds` or `gc`. A lease is written again while
it is held and removed at its end; one whose owner crashed expires. Its age is the difference of two
times of the store's own clock (the lease's last write, and a note written just now), so the machines'
clocks may differ by anything. Lifetimes are long on purpose: what is freed late costs little, what is
freed early costs a run.
"""

import contextlib
import json
import logging
import os
import re
import socket
import threading
import time
import uuid
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime

from data.retirement import check_live
from data.store import ObjectNotFoundError, Store, StoreError

_log = logging.getLogger(__name__)

FOLDER = "leases"
BUILDS, GC = "builds", "gc"
_PATH = re.compile(rf"{FOLDER}/([^/]+)/([^./][^/]*)\.json")

LIFETIME_S = 6 * 3600.0
"""Of a job's or a build's lease after its last renewal."""
GC_LIFETIME_S = 15 * 60.0
RENEWALS_PER_LIFETIME = 60
_POLL_S = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseInfo:
    """A lease somebody holds."""

    path: str
    what: str
    """A snapshot's id, `builds` or `gc`."""
    owner: str
    expires_in_s: float
    """Until it counts no more, unless it is renewed; not positive: expired."""


class Lease:
    """A lease that this process holds, renewed by a thread; use `hold`."""

    def __init__(self, dataset: Store, what: str, *, lifetime_s: float) -> None:
        self._dataset, self._lifetime_s = dataset, lifetime_s
        self.owner = _owner()
        self.path = f"{FOLDER}/{what}/{self.owner}.json"
        self._taken_at = datetime.now(UTC).isoformat(timespec="seconds")
        self._ended = threading.Event()
        self._renewed_s = _both_clocks_s()
        self._longest_gap_s = 0.0

    def write(self) -> None:
        """Write the lease, anew or again. Raises `StoreError`."""
        before_s = _both_clocks_s()
        content = {"owner": self.owner, "lifetime_s": self._lifetime_s, "taken_at": self._taken_at}
        self._dataset.put(self.path, json.dumps(content).encode())
        self._longest_gap_s = self._gap_s()
        self._renewed_s = before_s

    def check(self) -> None:
        """Raise `StoreError` if this lease may have expired at any time, so that gc may have run.

        To be asked right before what it guards takes effect.
        """
        gap_s = self._gap_s()
        if gap_s > self._lifetime_s / 2:
            raise StoreError(
                f"{self._dataset.uri}/{self.path} was not renewed for {gap_s / 60:.0f} minutes: "
                "gc may have freed what was written or found meanwhile"
            )

    def _gap_s(self) -> float:
        now_s = _both_clocks_s()
        since_s = max(now - then for now, then in zip(now_s, self._renewed_s, strict=True))
        return max(self._longest_gap_s, since_s)

    def renew_until_ended(self) -> None:
        """Write it again now and then; a store that is away is warned of, never more."""
        while not self._ended.wait(self._lifetime_s / RENEWALS_PER_LIFETIME):
            try:
                self.write()
            except StoreError as error:
                _log.warning("the lease %s was not renewed, going on: %s", self.path, error)

    def end(self) -> None:
        """Stop renewing."""
        self._ended.set()


@contextmanager
def hold(dataset: Store, what: str, *, lifetime_s: float = LIFETIME_S) -> Generator[Lease]:
    """Hold a lease for the block; `StoreError` only where it cannot be taken."""
    lease = Lease(dataset, what, lifetime_s=lifetime_s)
    lease.write()
    renewer = threading.Thread(target=lease.renew_until_ended, name=f"lease-{what}", daemon=True)
    renewer.start()
    try:
        yield lease
    finally:
        lease.end()
        renewer.join()  # else its last write could bring the removed lease back
        try:
            dataset.delete(lease.path)
        except StoreError as error:
            _log.warning("the lease %s stays until it expires: %s", lease.path, error)


@contextmanager
def pin(dataset: Store, snapshot_id: str) -> Generator[Lease]:
    """Hold a lease on a snapshot that a job reads. Raises `InputError` where it is retired.

    First the lease, then the look: a gc that frees the snapshot read its retirement before the leases,
    and the retirement was not there yet when we looked.
    """
    with hold(dataset, snapshot_id) as lease:
        check_live(dataset, snapshot_id)
        yield lease


@contextmanager
def building(dataset: Store, announce: Callable[[str], None] = _log.info) -> Generator[Lease]:
    """Keep gc away while objects are written, or found to be there already, and not committed yet.

    Any number of builds go on at once; a gc that runs is waited for. Each side writes its lease before
    it looks for the other's, so at least one of the two sees the other.
    """
    with hold(dataset, BUILDS) as lease:
        said = False
        while collecting := active_leases(dataset, GC):
            if not said:
                announce(f"waiting for the gc of {collecting[0].owner} to end")
                said = True
            time.sleep(_POLL_S)
        yield lease


def active_leases(dataset: Store, what: str = "") -> list[LeaseInfo]:
    """Return the leases that have not expired, on `what` or on anything."""
    leases = list_leases(dataset, what)
    return [lease for lease in leases if lease.expires_in_s > 0]


def list_leases(dataset: Store, what: str = "") -> list[LeaseInfo]:
    """Return all leases, expired ones too."""
    listed = dataset.list(f"{FOLDER}/{what}" if what else FOLDER)
    # What a file browser leaves beside them is none.
    named = [(info, match) for info in listed if (match := _PATH.fullmatch(info.path))]
    if not named:
        return []
    now_s = store_time_s(dataset)
    found: list[LeaseInfo] = []
    for info, match in named:
        with contextlib.suppress(ObjectNotFoundError):  # given back since it was listed
            lifetime_s = _lifetime_s(dataset, info.path)
            found.append(
                LeaseInfo(
                    path=info.path,
                    what=match[1],
                    owner=match[2],
                    expires_in_s=info.modified_s + lifetime_s - now_s,
                )
            )
    return found


def store_time_s(dataset: Store) -> float:
    """Return the store's own time, seconds since 1970: that of a note written now."""
    path = f"clock/{uuid.uuid4().hex}"
    dataset.put(path, b"")
    try:
        (info,) = (info for info in dataset.list("clock") if info.path == path)
        return info.modified_s
    finally:
        dataset.delete(path)


def _lifetime_s(dataset: Store, path: str) -> float:
    try:
        return float(json.loads(dataset.get(path))["lifetime_s"])
    except (ValueError, KeyError, TypeError) as error:
        raise StoreError(
            f"{dataset.uri}/{path} is not a lease: {error!r}; delete it if nothing runs"
        ) from error


def _both_clocks_s() -> tuple[float, float]:
    """The steady clock stands still while a machine sleeps, the other may be set: the longer time counts."""
    return time.monotonic(), time.time()


def _owner() -> str:
    host = re.sub(r"[^A-Za-z0-9.-]", "-", socket.gethostname()).strip(".") or "host"
    return f"{host}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
