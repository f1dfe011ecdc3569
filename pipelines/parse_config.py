"""Command lines and YAML files to frozen dataclasses: defaults < files in order < dotted overrides."""

import difflib
import re
from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from typing import Any, TypeVar, get_args, get_type_hints

import jsonargparse

from data.errors import InputError

ConfigT = TypeVar("ConfigT")

_UNKNOWN_KEY_MESSAGES = (
    r"Group '([\w.]+)' does not accept option '([\w.]+)'",
    r"unrecognized arguments: --([\w.]+)",
    r"Key '([\w.]+)' is not expected",
    r"Parser key \"([\w.]+)\": .*Option '([\w.]+)' is not accepted",
    r"^Option '([\w.]+)' is not accepted",
)
"""jsonargparse's; the groups make up the key."""


def parse_config(config_type: type[ConfigT], argv: Sequence[str], description: str) -> ConfigT:
    """Build any frozen dataclass tree from YAML files and dotted overrides, which win wherever they stand.

    Raises InputError in one line; an unknown key names the valid ones. `--help` exits 0.
    """
    # The strings under the fields are what --help says of them.
    jsonargparse.set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = jsonargparse.ArgumentParser(description=description, exit_on_error=False, allow_abbrev=False)
    parser.add_argument("--config", action="config", help="A YAML file; may be given several times.")
    parser.add_class_arguments(config_type, None)
    try:
        values = parser.instantiate(parser.parse_args(_files_first(argv)))
    except jsonargparse.ArgumentError as error:
        raise InputError(_explain(config_type, str(error))) from None
    return config_type(**{name: values[name] for name in config_type.__dataclass_fields__})  # pyright: ignore


def with_flags(argv: Sequence[str], *flags: str) -> list[str]:
    """Let options that are true or false stand alone: `--once` is `--once=true`."""
    followers = [*argv[1:], ""]
    return [
        f"{argument}=true" if argument in flags and follower not in ("true", "false") else argument
        for argument, follower in zip(argv, followers, strict=False)
    ]


def _files_first(argv: Sequence[str]) -> list[str]:
    """Move `--config FILE` to the front: what is read later wins."""
    files: list[str] = []
    others: list[str] = []
    for index, argument in enumerate(argv):
        follows = index > 0 and argv[index - 1] == "--config"
        is_file = follows or argument == "--config" or argument.startswith("--config=")
        (files if is_file else others).append(argument)
    return [*files, *others]


def is_given(argv: Sequence[str], option: str) -> bool:
    """Say whether the command line has an option, alone or with `=`."""
    return any(argument == option or argument.startswith(option + "=") for argument in argv)


def _explain(config_type: type, message: str) -> str:
    """Turn jsonargparse's message into one line that names what is allowed."""
    line = " ".join(message.split())
    for pattern in _UNKNOWN_KEY_MESSAGES:
        if found := re.search(pattern, line):
            return _unknown_key(config_type, ".".join(part for part in found.groups() if part))
    return line


def _unknown_key(config_type: type, key: str) -> str:
    """Describe an unknown dotted key by the keys of the deepest group that exists."""
    group, unknown = "", key
    node: Any = config_type
    for part in key.split("."):
        hints = get_type_hints(node) if is_dataclass(node) else {}
        if part not in hints:
            unknown = part
            break
        node, group = _item_type(hints[part]), f"{group}{part}."
    names = [f.name for f in fields(node)]
    near = difflib.get_close_matches(unknown, names, n=1)
    hint = f"; did you mean {group}{near[0]}?" if near else ""
    return (
        f"unknown config key {key!r}; keys of {group.rstrip('.') or 'the config'}: {', '.join(names)}{hint}"
    )


def _item_type(hint: Any) -> Any:
    """Return the dataclass that a list or an optional value is made of, else the type itself."""
    return next((item for item in get_args(hint) if is_dataclass(item)), hint)
