import pytest
import torch

from coatnet.ema import Ema, decay_at
from tests.tiny_training import TinyNet


def test_decay_warms_up() -> None:
    assert decay_at(0.9999, 0) == pytest.approx(0.1)
    assert decay_at(0.9999, 90) == pytest.approx(0.91)
    assert decay_at(0.9999, 10**7) == 0.9999


def test_the_average_follows_its_definition_for_weights_and_statistics() -> None:
    model = TinyNet()
    ema = Ema(model, 0.5)
    expected = {name: value.clone() for name, value in model.state_dict().items()}
    for num_updates in range(5):
        with torch.no_grad():
            for value in model.state_dict().values():
                value.add_(1)
        ema.update(num_updates)
        decay = decay_at(0.5, num_updates)
        for name, value in model.state_dict().items():
            if value.is_floating_point():
                expected[name] = decay * expected[name] + (1 - decay) * value
            else:
                expected[name] = value
    torch.testing.assert_close(ema.model.state_dict(), expected)


def test_the_average_is_apart_from_the_live_weights() -> None:
    model = TinyNet()
    ema = Ema(model, 0.9)
    assert not any(parameter.requires_grad for parameter in ema.model.parameters())
    assert not {p.data_ptr() for p in ema.model.parameters()} & {p.data_ptr() for p in model.parameters()}
