import numpy as np
import pyarrow as pa
import pytest

from data.split import is_eval


def chosen(keys: list[str], fraction: float, seed: int) -> list[bool]:
    return is_eval(pa.array(keys), fraction, seed).tolist()


def test_split_is_stable_across_versions_and_machines() -> None:
    # Written down once: a changed hash would move eval images into train at the next append.
    found = chosen([f"cat/{i}.png" for i in range(12)], 0.5, 7)
    assert "".join("te"[value] for value in found) == "eeeetttetete"


@pytest.mark.parametrize("fraction", [0.01, 0.1, 0.5])
def test_fraction_is_met_and_zero_is_exact(fraction: float) -> None:
    keys = [f"a/{i}.jpg" for i in range(40_000)]
    share = np.mean(chosen(keys, fraction, 0))
    assert abs(share - fraction) < 4 * np.sqrt(fraction * (1 - fraction) / len(keys))
    assert not any(chosen(keys, 0.0, 0))


def test_another_seed_gives_another_split() -> None:
    keys = [f"a/{i}.jpg" for i in range(64)]
    assert chosen(keys, 0.5, 0) != chosen(keys, 0.5, 1)
