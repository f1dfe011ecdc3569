"""What an evaluation measures, summed exactly over batches and ranks.

Shape letters: B batch, K classes.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, distributed
from torch.nn import functional as F

_TOP_K = 5


@dataclass(frozen=True, kw_only=True)
class EvalMetrics:
    """The result of an evaluation over every sample exactly once."""

    num_samples: int
    loss: float
    """Mean cross entropy against the labels, without smoothing."""
    top1: float
    """Fractions in [0, 1]."""
    top5: float
    """Equal to 1 for up to five classes."""
    confusion_KK: Tensor
    """int64 counts on the CPU; row = label, column = prediction."""

    def scalars(self) -> dict[str, float]:
        """Return the numbers of a curve, under names for a tracking server."""
        return {"eval/loss": self.loss, "eval/top1": self.top1, "eval/top5": self.top5}

    def per_class_accuracy(self) -> Tensor:
        """Return recalls, float64 [K]; NaN for a class without samples."""
        return self.confusion_KK.diagonal().double() / self.confusion_KK.sum(1).double()


class EvalSums:
    """Running sums on the device; reading them is the only synchronisation."""

    def __init__(self, num_classes: int, device: torch.device) -> None:
        self._num_classes = num_classes
        self._sums = torch.zeros(3, dtype=torch.float64, device=device)
        self._confusion_KK = torch.zeros(num_classes * num_classes, dtype=torch.int64, device=device)

    def add(self, logits_BK: Tensor, labels_B: Tensor, weights_B: Tensor) -> None:
        """Count a batch; samples of weight 0 are padding and count nowhere."""
        counted_B = weights_B > 0
        logits_BK = logits_BK.float()
        losses_B = F.cross_entropy(logits_BK, labels_B, reduction="none").double()
        top_B5 = logits_BK.topk(min(_TOP_K, self._num_classes), dim=1).indices
        in_top_B = (top_B5 == labels_B[:, None]).any(1)
        zeros_B = torch.zeros_like(losses_B)
        self._sums += torch.stack(
            [torch.where(counted_B, losses_B, zeros_B).sum(), (in_top_B & counted_B).sum(), counted_B.sum()]
        )
        cells_B = labels_B * self._num_classes + logits_BK.argmax(1)
        self._confusion_KK.index_add_(0, cells_B, counted_B.long())

    def compute(self) -> EvalMetrics:
        """Sum over the ranks of the process group, if there is one; every rank gets the same result."""
        if distributed.is_initialized():
            distributed.all_reduce(self._sums)
            distributed.all_reduce(self._confusion_KK)
        loss_sum, in_top, count = self._sums.tolist()
        confusion_KK = self._confusion_KK.view(self._num_classes, self._num_classes).cpu()
        divisor = max(count, 1.0)
        return EvalMetrics(
            num_samples=int(count),
            loss=loss_sum / divisor,
            top1=int(confusion_KK.diagonal().sum()) / divisor,
            top5=in_top / divisor,
            confusion_KK=confusion_KK,
        )
