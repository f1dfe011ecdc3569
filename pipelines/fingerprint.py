"""Identity of results: what was computed, apart from where and by whom."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, is_dataclass
from typing import Any


def fingerprint(**identity: Any) -> str:
    """Return 16 hex digits of the sha256 over plain values and dataclasses.

    Never pass a path, a bucket, a worker count or a git SHA: those do not change the result.
    """
    text = json.dumps(plain(identity), sort_keys=True, allow_nan=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def plain(value: Any) -> Any:
    """Return a value as JSON types; TypeError for anything that is not data."""
    if is_dataclass(value) and not isinstance(value, type):
        return plain(asdict(value))
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if value is None or isinstance(value, (str, int, float, bool)):
        return value
    raise TypeError(f"{type(value).__name__} cannot be part of a fingerprint")
