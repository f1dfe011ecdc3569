from typing import Any

import pytest

from coatnet.schedule import learning_rate
from coatnet.train_config import RuntimeTrainConfig, TrainConfig
from data.errors import InputError


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"schedule": "step"}, "schedule is 'step'; allowed: cosine, linear, constant"),
        ({"loss": "hinge"}, "allowed: softmax, sigmoid"),
        ({"precision": "fp16"}, "allowed: float32, bf16"),
        ({"epochs": 0}, "epochs is 0; it must be at least 1"),
        ({"epochs": 5, "warmup_epochs": 5.0}, "warmup_epochs is 5.0; it must be from 0 to below epochs = 5"),
        ({"min_learning_rate": 1.0}, "min_learning_rate is 1.0"),
        ({"ema_decay": 1.0}, "ema_decay is 1.0"),
        ({"clip_norm": 0.0}, "clip_norm is 0.0; it must be above 0 or null"),
        ({"peak_learning_rate": float("nan")}, "peak_learning_rate is nan"),
        ({"betas": (0.9, 1.0)}, "betas is"),
    ],
)
def test_a_wrong_value_is_named_with_what_is_allowed(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as caught:
        TrainConfig(**options)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_constant_finetuning_recipe_needs_no_minimum() -> None:
    """A peak below the default minimum was refused, though a constant rate (Table 10) never decays to it."""
    config = TrainConfig(
        epochs=30, warmup_epochs=0, schedule="constant", peak_learning_rate=5e-6, min_learning_rate=1e-5
    )
    assert {learning_rate(config, step, 10) for step in range(300)} == {5e-6}


def test_runtime_values_are_checked() -> None:
    with pytest.raises(InputError, match="checkpoint_every_steps is 0"):
        RuntimeTrainConfig(checkpoint_every_steps=0)
