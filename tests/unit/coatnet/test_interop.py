import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from coatnet import CoAtNet, ModelConfig
from coatnet.interop import load_for_finetune, load_model, save_model
from data.errors import InputError

CONFIG = ModelConfig(
    layout="CT", stem_width=8, widths=(8, 8), depths=(1, 1), strides=(2, 2), head_size=4, num_classes=3
)


def test_round_trip_gives_equal_logits(tmp_path: Path) -> None:
    model = CoAtNet(CONFIG).eval()
    save_model(model, tmp_path)
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(load_model(tmp_path)(images), model(images))


def test_finetuning_with_other_classes_says_what_it_renews(tmp_path: Path) -> None:
    model = CoAtNet(CONFIG)
    save_model(model, tmp_path)
    tuned, renewed = load_for_finetune(tmp_path, num_classes=5, stochastic_depth_rate=0.1)
    assert sorted(renewed) == ["head.classifier.bias", "head.classifier.weight"]
    assert tuned.config.num_classes == 5
    assert torch.equal(tuned.stem[0].weight, model.stem[0].weight)  # pyright: ignore
    _, renewed = load_for_finetune(tmp_path, num_classes=3, stochastic_depth_rate=0.0)
    assert renewed == []


def test_weights_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    save_model(CoAtNet(CONFIG), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "layout": "CC", "norm": "layer"}))
    with pytest.raises(InputError, match=r"do not fit .* for 'stages.* where the model has nothing"):
        load_for_finetune(tmp_path, num_classes=3, stochastic_depth_rate=0.0)


@pytest.mark.parametrize(
    "load",
    [load_model, lambda folder: load_for_finetune(folder, num_classes=5, stochastic_depth_rate=0.0)],
    ids=["load_model", "load_for_finetune"],
)
def test_weights_of_another_width_are_one_line(tmp_path: Path, load: Callable[[Path], object]) -> None:
    """Torch's RuntimeError had a line for each of hundreds of tensors, and no name of a folder."""
    save_model(CoAtNet(CONFIG), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "stem_width": 16}))
    expected = r"have \(32, 8, 1, 1\) for 'stages.0.0.expand.weight' where the model has \(32, 16, 1, 1\)"
    with pytest.raises(InputError, match=expected) as caught:
        load(tmp_path)
    assert "\n" not in str(caught.value)


def test_an_empty_folder_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no config\.json in"):
        load_model(tmp_path)
