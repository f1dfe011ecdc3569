"""Where training stands in the order of its samples: what a checkpoint keeps and a resume checks."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from data.errors import InputError
from data.mixture import WeightsFrom, weights_at
from data.order import FORMAT_VERSION, OrderConfig

_Listed = (list, tuple)
"""JSON knows no tuples."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OrderIdentity:
    """All that decides the order. Kept in every cursor; nothing about ranks or threads is in it."""

    format_version: int
    snapshot_id: str
    """Holds the hash of the snapshot's content."""
    split: str
    global_batch_size: int
    num_lanes: int
    shuffle_window: int
    seed: int
    mixture: tuple[str, ...] = ()
    """The ids of the snapshots mixed in, in their order; empty: there is no mixture."""
    weights: tuple[WeightsFrom, ...] = ()
    """Of the mixture, by epoch, `snapshot_id` first; empty without one."""

    @classmethod
    def of(
        cls,
        config: OrderConfig,
        *,
        snapshot_id: str,
        split: str,
        mixture: tuple[str, ...] = (),
        weights: tuple[WeightsFrom, ...] = (),
    ) -> "OrderIdentity":
        """Name the order of a configuration over a snapshot's split, others mixed in or not."""
        return cls(
            format_version=FORMAT_VERSION,
            snapshot_id=snapshot_id,
            split=split,
            mixture=mixture,
            weights=weights,
            **asdict(config),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Cursor:
    """Where training stands: `step` is the next one to run in `epoch`. Part of every checkpoint."""

    identity: OrderIdentity
    epoch: int
    step: int

    def check(self, identity: OrderIdentity) -> None:
        """Raise `InputError` naming each field in which the running order differs from the cursor's.

        Of a mixture's weights, those of epochs that have begun must be the same; later ones may differ.
        """
        pairs = [
            (field.name, getattr(self.identity, field.name), getattr(identity, field.name))
            for field in fields(OrderIdentity)
            if field.name != "weights"
        ]
        differing = [f"{name} ({kept!r} kept, {now!r} now)" for name, kept, now in pairs if kept != now]
        if not differing:
            differing = self._differing_weights(identity.weights)
        if differing:
            raise InputError(
                f"the checkpoint's data cursor belongs to another order: {', '.join(differing)}; "
                "resume with the same values, or start a new run."
            )

    def _differing_weights(self, now: tuple[WeightsFrom, ...]) -> list[str]:
        """Name the first epoch that has begun and in which the weights are not those it began with."""
        kept = self.identity.weights
        num_begun = self.epoch + (self.step > 0)
        for epoch in sorted({entry.from_epoch for entry in (*kept, *now)}):
            if epoch < num_begun and weights_at(kept, epoch) != weights_at(now, epoch):
                return [
                    f"weights of epoch {epoch} ({list(weights_at(kept, epoch))} kept, "
                    f"{list(weights_at(now, epoch))} now; new ones can begin with epoch {num_begun})"
                ]
        return []

    def after_step(self, steps_in_epoch: int) -> "Cursor":
        """Return the cursor once the step it names has been done."""
        if self.step + 1 < steps_in_epoch:
            return replace(self, step=self.step + 1)
        return replace(self, epoch=self.epoch + 1, step=0)

    def to_dict(self) -> dict[str, object]:
        """Return plain JSON values; `from_dict` reads them back."""
        return asdict(self)

    @classmethod
    def from_dict(cls, stored: Mapping[str, object]) -> "Cursor":
        """Read a cursor; raises `InputError` naming what is missing, unknown or of the wrong type."""
        identity = stored.get("identity")
        if not isinstance(identity, Mapping):
            raise InputError(f"the data cursor has no identity; found the keys {sorted(stored)}.")
        _check_fields("cursor", stored, {"identity": Mapping, "epoch": int, "step": int})
        types = {field.name: field.type for field in fields(OrderIdentity)}
        _check_fields("cursor's identity", identity, {**types, "mixture": _Listed, "weights": _Listed})
        epoch, step = stored["epoch"], stored["step"]
        assert isinstance(epoch, int)
        assert isinstance(step, int)
        values: dict[str, Any] = {**identity}
        values["mixture"] = tuple(values["mixture"])
        values["weights"] = tuple(map(_read_weights, values["weights"]))
        return cls(identity=OrderIdentity(**values), epoch=epoch, step=step)


def _read_weights(stored: object) -> WeightsFrom:
    if not isinstance(stored, Mapping):
        raise InputError(f"the data cursor has weights {stored!r}; expected an object.")
    _check_fields("cursor's weights", stored, {"from_epoch": int, "weights": _Listed})
    return WeightsFrom(from_epoch=stored["from_epoch"], weights=tuple(stored["weights"]))


def _check_fields(what: str, found: Mapping[str, object], expected: Mapping[str, object]) -> None:
    if set(found) != set(expected):
        raise InputError(
            f"the data {what} has the fields {sorted(found)}; this version reads {sorted(expected)}."
        )
    for name, kind in expected.items():
        if isinstance(kind, (type, tuple)) and not isinstance(found[name], kind):
            kinds = kind if isinstance(kind, tuple) else (kind,)
            raise InputError(f"the data {what} has {name}={found[name]!r}; expected {kinds[0].__name__}.")
