"""Configs as plain values: JSON and YAML have lists where frozen dataclasses have tuples."""

from collections.abc import Mapping
from typing import Any


def with_tuples(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return a flat mapping with its lists as tuples, ready for a dataclass."""
    return {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
