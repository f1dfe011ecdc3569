"""Assign train or eval to the images of a corpus that does not say so."""

import numpy as np
from numpy.typing import NDArray

from data.arrow import Column
from data.stable_hash import stable_hash

SPLITS = ("train", "eval")


def is_eval(keys: Column, eval_fraction: float, seed: int) -> NDArray[np.bool_]:
    """Say of each key of an Arrow column whether its image is for eval: bool [N].

    Nothing but the key's hash and the seed decide. So an image keeps its split when others are added,
    and about `eval_fraction` (0 to 1, 1 left out) of many keys are eval.
    """
    return stable_hash(keys, seed=seed, purpose="split") < np.uint64(int(eval_fraction * 2**64))
