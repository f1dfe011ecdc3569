import torch

from tests.benchmarks.device import peak_memory_mb

CPU = torch.device("cpu")


def test_peak_counts_what_is_alive_at_once() -> None:
    """Not what was ever taken, and not what remains at the end."""

    def call() -> None:
        a = torch.zeros(1_000_000)
        b = a + 1
        del a
        torch.add(b, 1)

    assert abs(peak_memory_mb(call, CPU) - 8.0) < 0.1
