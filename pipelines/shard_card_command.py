"""`card` of `pipelines/shard.py`."""

from dataclasses import dataclass
from pathlib import Path

from data.card import make_card
from data.errors import InputError
from data.snapshot import load_snapshot
from pipelines.job import announce
from pipelines.shard_command import Command, Outcome, open_to_read, require
from pipelines.shard_read_commands import ReadConfig


@dataclass(frozen=True, kw_only=True)
class CardConfig(ReadConfig):
    """Options of `card`."""

    out: str = ""
    """The file to write, HTML."""

    def __post_init__(self) -> None:
        ReadConfig.__post_init__(self)
        require(self, "out")


def card(config: CardConfig) -> Outcome:
    """Write a snapshot's card to a file."""
    dataset = open_to_read(config.dataset)
    snapshot = load_snapshot(dataset, config.snapshot)
    out = Path(config.out)
    content = make_card(dataset, snapshot).encode()
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_bytes(content)
    except OSError as error:
        raise InputError(f"{out} cannot be written ({error.strerror}): give --out another file") from None
    announce(f"card of snapshot {snapshot.id}: {out}")
    return Outcome(values={"snapshot": snapshot.id, "out": str(out), "size_bytes": len(content)})


COMMANDS = {
    "card": Command(
        config_type=CardConfig,
        run=card,
        description="Write a page that shows a snapshot: pictures, sizes, what was left out, duplicates.",
    )
}
