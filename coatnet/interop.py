"""Weights on disk, `model.safetensors` beside `config.json`, and weights of timm. Nothing is unpickled."""

import json
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor

from coatnet.config import ModelConfig
from coatnet.misfit import describe_misfit
from coatnet.model import CoAtNet
from coatnet.timm_variants import timm_config
from coatnet.timm_weights import from_timm, to_timm
from data.errors import InputError

__all__ = [
    "CONFIG_NAME",
    "WEIGHTS_NAME",
    "from_timm",
    "load_config",
    "load_for_finetune",
    "load_model",
    "load_weights",
    "save_model",
    "timm_config",
    "to_timm",
]

WEIGHTS_NAME = "model.safetensors"
CONFIG_NAME = "config.json"


def save_model(model: CoAtNet, directory: Path, weights: Mapping[str, Tensor] | None = None) -> None:
    """Write the config and the weights (the model's own, or e.g. its EMA's) to a directory."""
    directory.mkdir(parents=True, exist_ok=True)
    state = dict(weights if weights is not None else model.state_dict())
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    save_file(tensors, directory / WEIGHTS_NAME)
    (directory / CONFIG_NAME).write_text(json.dumps(model.config.to_dict(), indent=2, sort_keys=True) + "\n")


def load_config(directory: Path) -> ModelConfig:
    """Read a saved model's config."""
    path = directory / CONFIG_NAME
    if not path.is_file():
        raise InputError(f"no {CONFIG_NAME} in {directory}; expected a folder written by save_model")
    return ModelConfig.from_dict(json.loads(path.read_text()))


def load_model(directory: Path) -> CoAtNet:
    """Return the saved model in eval mode. Raises InputError for weights of another config."""
    model = CoAtNet(load_config(directory))
    weights = load_weights(directory)
    _check_fit(model, weights, directory)
    model.load_state_dict(weights)
    return model.eval()


def load_weights(directory: Path) -> dict[str, Tensor]:
    """Read the saved tensors."""
    path = directory / WEIGHTS_NAME
    if not path.is_file():
        raise InputError(f"no {WEIGHTS_NAME} in {directory}; expected a folder written by save_model")
    return load_file(path)


def load_for_finetune(
    directory: Path, num_classes: int, stochastic_depth_rate: float
) -> tuple[CoAtNet, list[str]]:
    """Return a model that starts from saved weights, and the names it initialised anew.

    Only the classifier may differ: with another class count it is drawn anew. Relative-bias
    tables keep their pretraining shape; another resolution resizes them on the fly.
    """
    saved = load_config(directory)
    weights = load_weights(directory)
    config = replace(saved, num_classes=num_classes, stochastic_depth_rate=stochastic_depth_rate)
    model = CoAtNet(config)
    renewed: list[str] = []
    if num_classes != saved.num_classes:
        renewed = [name for name in weights if name.startswith("head.classifier.")]
        for name in renewed:
            del weights[name]
    _check_fit(model, weights, directory, left_out=renewed)
    model.load_state_dict(weights, strict=False)
    return model, renewed


def _check_fit(
    model: CoAtNet, weights: Mapping[str, Tensor], directory: Path, left_out: Collection[str] = ()
) -> None:
    if misfit := describe_misfit(model, weights, left_out=left_out):
        raise InputError(f"the weights in {directory} do not fit their config: they have {misfit}")
