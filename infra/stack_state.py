"""What the local stack keeps in its folder: secrets, ports, processes, and the lock around them.

secrets.json      generated once; the source of every credential (0600)
credentials.env   derived from it and the ports; for `source` and `read_environment` (0600)
state.json        ports, and the pid and start time of each service
lock              held by `up` and `down`
logs/ s3/ mlflow/ ray/
"""

import contextlib
import fcntl
import hashlib
import json
import os
import secrets
import shlex
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from data.errors import InputError


@dataclass(frozen=True, slots=True, kw_only=True)
class StackHome:
    """The folder of one local stack, and the places in it."""

    root: Path

    @property
    def credentials_path(self) -> Path:
        """Shell-sourceable environment for clients."""
        return self.root / "credentials.env"

    @property
    def ray_token_path(self) -> Path:
        """The file that `RAY_AUTH_TOKEN_PATH` names."""
        return self.root / "ray" / "token"

    @property
    def ray_temp_dir(self) -> Path:
        """Ray's folder, outside of home: its socket paths hold at most 107 bytes and no space.

        Ray opens it to every user of the machine, so it lies in a folder that is ours alone.
        """
        digest = hashlib.sha256(os.fsencode(self.root.resolve())).hexdigest()
        return Path("/tmp") / f"ray-{digest[:8]}" / "r"

    def log_path(self, service: str) -> Path:
        """Where the service's output goes."""
        return self.root / "logs" / f"{service}.log"

    def make(self) -> None:
        """Create the folder, closed to other users."""
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            self.root.chmod(0o700)
            for name in ("logs", "s3", "mlflow", "ray"):
                (self.root / name).mkdir(exist_ok=True)
        except OSError as error:
            raise InputError(
                f"stack folder {self.root} cannot be made ({error.strerror}): choose another with --home"
            ) from error

    @contextmanager
    def locked(self, tell: Callable[[str], None]) -> Generator[None]:
        """Keep a second `up` or `down` waiting; `tell` is given a line when we wait."""
        with (self.root / "lock").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                tell(f"waiting for another up or down of {self.root}")
                fcntl.flock(file, fcntl.LOCK_EX)
            yield


@dataclass(frozen=True, slots=True, kw_only=True)
class StackSecrets:
    """The generated credentials; they stay the same for the life of the folder."""

    s3_access_key: str = field(default_factory=lambda: "COATNET" + secrets.token_hex(8).upper())
    s3_secret_key: str = field(default_factory=lambda: secrets.token_hex(24))
    mlflow_user: str = "admin"
    mlflow_password: str = field(default_factory=lambda: secrets.token_hex(12))
    mlflow_session_key: str = field(default_factory=lambda: secrets.token_hex(32))
    ray_token: str = field(default_factory=lambda: secrets.token_hex(32))


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceState:
    """One started process."""

    pid: int
    started_at: float
    """Seconds since the epoch, as the system reports it; tells a recycled pid apart."""
    context: Mapping[str, str]
    """What the process was told about the rest of the stack, e.g. the store's URL."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StackState:
    """Everything about the running stack that is no secret."""

    stack_id: str = field(default_factory=lambda: secrets.token_hex(16))
    """Marks each process of this stack, in its environment."""
    ports: Mapping[str, int] = field(default_factory=dict[str, int])
    services: Mapping[str, ServiceState] = field(default_factory=dict[str, ServiceState])

    def with_service(self, name: str, service: ServiceState | None) -> "StackState":
        """Return the state with one service replaced, or removed by None."""
        kept = {other: state for other, state in self.services.items() if other != name}
        return replace(self, services=kept if service is None else {**kept, name: service})


def load_secrets(home: StackHome) -> StackSecrets:
    """Read the secrets, or generate them for a new folder."""
    path = home.root / "secrets.json"
    if path.exists():
        return StackSecrets(**_read_json(path))
    if (home.root / "mlflow" / "auth.db").exists():
        raise InputError(
            f"{path} is gone, but MLflow's users were made with it: restore it, or delete "
            f"{home.root / 'mlflow' / 'auth.db'} for a new password"
        )
    generated = StackSecrets()
    write_private(path, json.dumps(asdict(generated), indent=1))
    return generated


def load_state(home: StackHome) -> StackState:
    """Read the state, or return a fresh one."""
    path = home.root / "state.json"
    if not path.exists():
        return StackState()
    found = _read_json(path)
    services = {name: ServiceState(**service) for name, service in found["services"].items()}
    return StackState(stack_id=found["stack_id"], ports=found["ports"], services=services)


def save_state(home: StackHome, state: StackState) -> None:
    """Write the state, whole or not at all."""
    write_private(home.root / "state.json", json.dumps(asdict(state), indent=1))


def write_environment(home: StackHome, environment: Mapping[str, str]) -> None:
    """Write `credentials.env`."""
    head = "# Generated by infra.local_stack. Use it with: set -a; . THIS_FILE; set +a\n"
    lines = [f"{name}={shlex.quote(value)}\n" for name, value in environment.items()]
    write_private(home.credentials_path, head + "".join(lines))


def read_environment(home: Path) -> dict[str, str]:
    """Return the environment that clients of the stack in `home` need.

    Raises `InputError` where no stack was ever started there.
    """
    path = StackHome(root=home).credentials_path
    try:
        text = path.read_text()
    except FileNotFoundError:
        raise InputError(
            f"{path} does not exist: start the local stack first, with python -m infra.local_stack up"
        ) from None
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}): it belongs to another user?") from error
    pairs = (assignment.partition("=") for assignment in shlex.split(text, comments=True))
    return {name: value for name, _, value in pairs}


def write_private(path: Path, text: str) -> None:
    """Write a file that only its owner can read, whole or not at all."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    with contextlib.suppress(FileNotFoundError):
        partial.unlink()
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(descriptor)
    partial.replace(path)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read ({error}): delete it and run up again") from error
