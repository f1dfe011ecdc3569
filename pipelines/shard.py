"""Datasets by hand: a corpus becomes snapshots of WebDataset tars, and one can look into them.

    python pipelines/shard.py create --corpus /path/to/folder --dataset s3://bucket/birds
    python pipelines/shard.py append --corpus s3://bucket/new-images --dataset s3://bucket/birds
    python pipelines/shard.py show --dataset s3://bucket/birds
    python pipelines/shard.py card --dataset s3://bucket/birds --out card.html
    python pipelines/shard.py COMMAND --help

With `--json` the last line on stdout is one JSON object.
"""

import json
import sys
import time
from collections.abc import Sequence

from data.errors import InputError
from pipelines import (
    shard_adopt_command,
    shard_card_command,
    shard_life_commands,
    shard_order_command,
    shard_read_commands,
    shard_show_command,
    shard_write_commands,
)
from pipelines.job import announce, run_main
from pipelines.parse_config import parse_config, with_flags

COMMANDS = {
    **shard_write_commands.COMMANDS,
    **shard_adopt_command.COMMANDS,
    **shard_show_command.COMMANDS,
    **shard_read_commands.COMMANDS,
    **shard_order_command.COMMANDS,
    **shard_life_commands.COMMANDS,
    **shard_card_command.COMMANDS,
}


def main(argv: Sequence[str]) -> int:
    """Run one command; returns its exit code."""
    if not argv or argv[0] in ("-h", "--help"):
        announce(_usage())
        return 0 if argv else 2
    name = argv[0]
    if name not in COMMANDS:
        raise InputError(f"unknown command {name!r}; commands: {', '.join(COMMANDS)}")
    command = COMMANDS[name]
    sys.argv[0] = f"shard.py {name}"  # what --help calls it
    options = [
        option.replace("--dry-run", "--dry_run") if option.startswith("--dry-run") else option
        for option in argv[1:]
    ]
    config = parse_config(
        command.config_type,
        with_flags(options, "--json", "--dry_run", "--undo", "--urls"),
        command.description,
    )
    started_s = time.monotonic()
    outcome = command.run(config)
    if config.json:
        seconds = round(time.monotonic() - started_s, 3)
        announce(json.dumps({"command": name, **outcome.values, "seconds": seconds}))
    return outcome.exit_code


def _usage() -> str:
    lines = [f"  {name:8}{command.description}" for name, command in COMMANDS.items()]
    head = "usage: python pipelines/shard.py COMMAND --dataset URI [options]"
    return "\n".join([head, *lines, "COMMAND --help lists a command's options."])


if __name__ == "__main__":
    run_main(main)
