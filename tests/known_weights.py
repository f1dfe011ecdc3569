"""Weights and images by formula, the same wherever numpy runs: nothing to store beside their names.

Each tensor's values come from numpy's legacy generator, whose stream is frozen, seeded by the CRC-32 of
its name. No value is one that initialisation would give: norms scale and shift, running statistics are
not 0 and 1, biases and tables are large enough to show.
"""

import hashlib
import re
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

_NUM_BATCHES = 7
_ENDS_A_BRANCH = re.compile(r"\.\d+\.(attn\.proj|mlp\.fc2)\.weight$")


def known_state(shapes: Mapping[str, Sequence[int]]) -> dict[str, Tensor]:
    """Return a state dict of timm's names and shapes."""
    return {name: known_tensor(name, shape) for name, shape in shapes.items()}


def known_tensor(name: str, shape: Sequence[int]) -> Tensor:
    """Return the values of one entry of a timm state dict."""
    if name.endswith("num_batches_tracked"):
        return torch.tensor(_NUM_BATCHES)
    random = np.random.RandomState(zlib.crc32(name.encode()))
    if name.endswith("running_var") or (len(shape) == 1 and name.endswith(("weight", "gamma"))):
        values = random.uniform(0.5, 1.5, size=shape)
    elif len(shape) == 1:
        values = random.normal(scale=0.2, size=shape)
    elif name.endswith("relative_position_bias_table"):
        values = random.normal(size=shape)
    else:
        # Where fixed statistics normalise, branches of full size would double what they are added to, block
        # after block, until the softmax is a choice of one and multiplies float32's rounding.
        gain = 0.3 if _ENDS_A_BRANCH.search(name) else 1.0
        values = random.normal(scale=gain * float(np.prod(shape[1:])) ** -0.5, size=shape)
    return torch.from_numpy(values.astype(np.float32))


def known_images(num_images: int, size_px: int) -> Tensor:
    """Return normalised images [B, 3, H, W] of flat squares with noise, so that no two look alike.

    Of noise alone the pooled features of all images would be nearly the same.
    """
    random = np.random.RandomState(0)
    squares = np.kron(random.normal(size=(num_images, 3, 4, 4)), np.ones((size_px // 4, size_px // 4)))
    return torch.from_numpy((squares + random.normal(scale=0.3, size=squares.shape)).astype(np.float32))


def digest(shapes: Mapping[str, Sequence[int]]) -> str:
    """Return a digest of a state dict's names and shapes."""
    lines = sorted(f"{name} {list(shape)}" for name, shape in shapes.items())
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def count_eps(model: nn.Module) -> dict[str, int]:
    """Return how many norms have each epsilon: between 1e-5 and 1e-6, logits would not tell."""
    return dict(sorted(Counter(str(m.eps) for m in model.modules() if hasattr(m, "eps")).items()))
