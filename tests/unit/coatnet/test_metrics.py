import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from coatnet.metrics import EvalSums

CPU = torch.device("cpu")


@settings(deadline=None, max_examples=30)
@given(
    num_samples=st.integers(1, 40),
    num_classes=st.integers(1, 9),
    batch_size=st.integers(1, 17),
    seed=st.integers(0, 99),
)
def test_sums_over_padded_batches_equal_one_pass(
    num_samples: int, num_classes: int, batch_size: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(num_samples, num_classes, generator=generator)
    labels = torch.randint(num_classes, (num_samples,), generator=generator)
    sums = EvalSums(num_classes, CPU)
    for first in range(0, num_samples, batch_size):
        rows = logits[first : first + batch_size]
        padding = batch_size - len(rows)
        sums.add(
            torch.cat([rows, torch.full((padding, num_classes), torch.nan)]),
            torch.cat([labels[first : first + batch_size], torch.zeros(padding, dtype=torch.int64)]),
            torch.cat([torch.ones(len(rows)), torch.zeros(padding)]),
        )
    metrics = sums.compute()
    assert metrics.num_samples == num_samples
    assert abs(metrics.loss - F.cross_entropy(logits, labels).item()) < 1e-5
    assert metrics.top1 == (logits.argmax(1) == labels).double().mean().item()
    in_top5 = (logits.topk(min(5, num_classes), 1).indices == labels[:, None]).any(1)
    assert abs(metrics.top5 - in_top5.double().mean().item()) < 1e-12
    assert metrics.confusion_KK.sum() == num_samples
    for label, prediction in zip(labels, logits.argmax(1), strict=True):
        assert metrics.confusion_KK[label, prediction] > 0


def test_per_class_accuracy_is_nan_without_samples() -> None:
    sums = EvalSums(3, CPU)
    sums.add(torch.eye(3)[[0, 1, 1]], torch.tensor([0, 1, 0]), torch.ones(3))
    accuracy = sums.compute().per_class_accuracy()
    assert accuracy[:2].tolist() == [0.5, 1.0]
    assert accuracy[2].isnan()
