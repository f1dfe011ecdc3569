"""How a corpus becomes shards."""

from dataclasses import dataclass, field
from typing import Literal, get_args

from data.errors import InputError
from data.image_check import ImageLimits

LeakPolicy = Literal["error", "drop_train", "drop_eval"]
NearPolicy = Literal["report", "drop", "off"]
UnknownLabels = Literal["skip", "reject", "error"]


@dataclass(frozen=True, slots=True, kw_only=True)
class DuplicatePolicy:
    """What to do with images that are the same, or look alike."""

    leak_policy: LeakPolicy = "error"
    """What to do with the same new image in train and eval: stop, or drop the one or the other. `append`
    never stops for it: there, `error` means `drop_train`."""
    near_duplicates: NearPolicy = "report"
    """What to do with images that look alike: list the pairs, drop all but the first, or not look for them.
    Of an image in train and one in eval the train one goes, unless `leak_policy` is `drop_eval`."""
    near_duplicate_distance: int = 4
    """Images look alike whose perceptual hashes differ in at most so many of 64 bits, 0 to 8."""

    def __post_init__(self) -> None:
        _check_choice("leak_policy", self.leak_policy, get_args(LeakPolicy))
        _check_choice("near_duplicates", self.near_duplicates, get_args(NearPolicy))
        if not 0 <= self.near_duplicate_distance <= 8:
            raise InputError(f"near_duplicate_distance is {self.near_duplicate_distance}: give 0 to 8")


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardingConfig(DuplicatePolicy):
    """How a corpus becomes shards; all of it changes the result."""

    classes: tuple[str, ...] | None = None
    """Take only these, in this order; None takes all, sorted."""
    unknown_labels: UnknownLabels = "skip"
    """What to do with an image of another class than `classes`: pass over it, put it into the quarantine,
    or stop."""
    max_train_per_class: int | None = None
    """Take at most so many training images of each class, chosen by a hash; None takes all."""
    eval_fraction: float = 0.1
    """Share of the images put into eval by their key; unused where the corpus has split folders."""
    shard_size_bytes: int = 64 * 2**20
    """Size of a tar, about."""
    seed: int = 0
    """Decides the split of an image and its place in the shards."""
    limits: ImageLimits = field(default_factory=ImageLimits)
    max_reject_fraction: float = 0.05
    """A build with a larger share of unusable images than this stops; an append never does."""

    def __post_init__(self) -> None:
        DuplicatePolicy.__post_init__(self)
        if self.classes is not None and (not self.classes or len(set(self.classes)) < len(self.classes)):
            raise InputError(f"classes is {self.classes}: give different names, or null for all")
        if self.max_train_per_class is not None and self.max_train_per_class < 1:
            raise InputError(f"max_train_per_class is {self.max_train_per_class}: give at least 1, or null")
        if not 0 <= self.eval_fraction < 1:
            raise InputError(f"eval_fraction is {self.eval_fraction}: give 0 or more, below 1")
        if self.shard_size_bytes < 1:
            raise InputError(f"shard_size_bytes is {self.shard_size_bytes}: give at least 1")
        if not 0 <= self.max_reject_fraction <= 1:
            raise InputError(f"max_reject_fraction is {self.max_reject_fraction}: give 0 to 1")
        _check_choice("unknown_labels", self.unknown_labels, get_args(UnknownLabels))


def _check_choice(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise InputError(f"{name} is {value!r}: give one of {', '.join(allowed)}")
