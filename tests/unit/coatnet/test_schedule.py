from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coatnet.schedule import batch_norm_momentum, learning_rate
from coatnet.train_config import TrainConfig

STEPS = 100


def make_config(schedule: str, warmup_epochs: float = 0.5) -> TrainConfig:
    return TrainConfig(epochs=4, warmup_epochs=warmup_epochs, schedule=schedule)  # type: ignore[arg-type]


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_warmup_ends_at_the_peak_and_decay_at_the_minimum(schedule: str) -> None:
    config = make_config(schedule)
    rates = [learning_rate(config, step, STEPS) for step in range(4 * STEPS)]
    assert rates[0] == pytest.approx(config.peak_learning_rate / 50)
    assert rates[49] == rates[50] == config.peak_learning_rate
    assert rates[-1] == pytest.approx(config.min_learning_rate)
    assert all(early >= late for early, late in pairwise(rates[50:]))


def test_halfway_values() -> None:
    config = TrainConfig(epochs=1, warmup_epochs=0, schedule="linear", min_learning_rate=0)
    assert learning_rate(config, 50, 101) == pytest.approx(0.5e-3)
    config = TrainConfig(epochs=1, warmup_epochs=0, schedule="cosine", min_learning_rate=0)
    assert learning_rate(config, 25, 101) == pytest.approx(0.8535534e-3)


def test_constant_stays_at_the_peak() -> None:
    config = make_config("constant", warmup_epochs=0)
    assert {learning_rate(config, step, STEPS) for step in range(4 * STEPS)} == {config.peak_learning_rate}


@settings(deadline=None)
@given(
    schedule=st.sampled_from(["cosine", "linear", "constant"]),
    warmup_epochs=st.floats(0, 3.9),
    steps_per_epoch=st.integers(1, 50),
)
def test_a_rate_is_always_above_zero_and_at_most_the_peak(
    schedule: str, warmup_epochs: float, steps_per_epoch: int
) -> None:
    config = make_config(schedule, warmup_epochs)
    for step in range(4 * steps_per_epoch):
        assert 0 < learning_rate(config, step, steps_per_epoch) <= config.peak_learning_rate


@given(st.integers(1, 10**6))
def test_batch_norm_forgets_its_initial_statistics_in_any_training(num_steps: int) -> None:
    """A first training of 186 steps on one's own images was evaluated at chance: 16% were still initial."""
    momentum = batch_norm_momentum(num_steps)
    assert 0 < momentum <= 0.1
    if num_steps >= 50:
        assert (1 - momentum) ** num_steps < 0.01
