"""What the README tells people to type is understood by the programs it names."""

import re
import shlex
from pathlib import Path

import pytest

from pipelines.config import parse_run_config
from pipelines.parse_config import parse_config, with_flags
from pipelines.preview import PreviewConfig
from pipelines.retrain import RetrainConfig

_README = Path("README.md").read_text()
_CONFIGS = [*Path("pipelines/configs").glob("*.yaml")]


def _commands(text: str, program: str) -> list[list[str]]:
    """Return the arguments of each line of a text that runs the program."""
    joined = re.sub(r"\\\n\s*#?\s*", " ", text)
    commands = re.findall(rf"{re.escape(program)}( --[^`\n]+)", joined)
    return [shlex.split(command) for command in commands if "--help" not in command]


MAIN = [
    pytest.param(arguments, id=f"{place}-{number}")
    for place, text in {"README": _README, **{path.stem: path.read_text() for path in _CONFIGS}}.items()
    for number, arguments in enumerate(_commands(text, "pretrain_finetune.py"))
]


@pytest.mark.parametrize("arguments", MAIN)
def test_the_main_jobs_commands_are_understood(arguments: list[str]) -> None:
    """The cluster's command took a model that the file's overrides did not fit, and too many workers."""
    assert parse_run_config(arguments, "").recipe.model


def test_the_other_commands_are_understood() -> None:
    (retrain,) = _commands(_README, "retrain.py")
    assert parse_config(RetrainConfig, with_flags(retrain, "--once"), "").incoming
    (preview,) = _commands(_README, "preview.py")
    assert parse_config(PreviewConfig, preview, "").dataset.startswith("s3://")
