"""Assign train or eval to an image of a corpus that has no split folders."""

from data.stable_hash import stable_hash

SPLITS = ("train", "eval")


def assign_split(key: str, eval_fraction: float, seed: int) -> str:
    """Return `train` or `eval`, by nothing but the key's hash and the seed.

    So an image keeps its split when others are added, and about `eval_fraction` (0 to 1) of many
    keys are eval.
    """
    return "eval" if stable_hash(key, seed=seed, purpose="split") < eval_fraction * 2**64 else "train"
