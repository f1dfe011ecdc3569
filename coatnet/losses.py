"""Per-sample losses over soft targets.

Shape letters: B batch, K classes.
"""

from torch import Tensor
from torch.nn import functional as F

from coatnet.train_config import Loss


def sample_losses(logits_BK: Tensor, targets_BK: Tensor, *, loss: Loss, label_smoothing: float) -> Tensor:
    """Return float32 losses [B], not yet weighted or averaged.

    softmax: cross entropy with targets (1 - e) t + e / K. sigmoid: the sum over classes of binary
    cross entropies (as in Beyer et al., "Are we done with ImageNet?"), each smoothed towards 1/2.
    The paper gives a smoothing of 1e-4 for the sigmoid loss (Table 10) without saying which kind.
    """
    logits_BK = logits_BK.float()
    if loss == "softmax":
        return F.cross_entropy(logits_BK, targets_BK, reduction="none", label_smoothing=label_smoothing)
    smoothed_BK = targets_BK * (1.0 - label_smoothing) + 0.5 * label_smoothing
    return F.binary_cross_entropy_with_logits(logits_BK, smoothed_BK, reduction="none").sum(1)
