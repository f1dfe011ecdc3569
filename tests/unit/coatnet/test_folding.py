"""Folding changes how the logits are computed, not what they are."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from coatnet import CoAtNet
from coatnet.folding import fold_batch_norm
from tests.known_weights import known_state
from tests.tiny_coatnet import TINY


def make_model(**overrides: Any) -> CoAtNet:
    model = CoAtNet(replace(TINY, **overrides))
    model.load_state_dict(known_state({name: tensor.shape for name, tensor in model.state_dict().items()}))
    return model


def num_norms(model: nn.Module) -> int:
    return sum(isinstance(module, nn.BatchNorm2d) for module in model.modules())


@pytest.mark.parametrize(
    ("overrides", "left"),
    [
        ({}, 0),
        ({"downsample_on": "depthwise", "stem_bias": False}, 0),
        ({"downsample_on": "pool"}, 0),
        ({"pre_norm_activation": True, "conv_activation": "silu"}, 4),
        ({"se_place": "before_norm"}, 4),
        ({"norm": "layer"}, 0),
    ],
)
def test_logits_stay_and_norms_go(overrides: dict[str, Any], left: int) -> None:
    model = make_model(**overrides).eval()
    folded = fold_batch_norm(model)
    assert num_norms(folded) == left
    for size in ((32, 32), (33, 47)):
        images = torch.randn(3, 3, *size)
        with torch.no_grad():
            torch.testing.assert_close(folded(images), model(images), atol=1e-4, rtol=1e-4)


def test_the_model_itself_is_left_alone() -> None:
    model = make_model()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    folded = fold_batch_norm(model)
    assert model.training
    assert not folded.training
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert all(weight.requires_grad for weight in model.parameters())
