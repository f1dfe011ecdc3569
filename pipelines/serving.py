"""Save a trained CoAtNet as an MLflow pyfunc that loads in any process, without this repository or pickle."""

import base64
import io
import json
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

import mlflow.pyfunc
from mlflow.models import ModelSignature
from mlflow.types.schema import AnyType, ColSpec, DataType, Map, Schema
from PIL import Image

import coatnet
import data
from coatnet.interop import load_config
from data.decode import DecodeConfig
from data.errors import InputError
from data.image_check import ImageLimits

_WEIGHTS_PATH = Path("artifacts") / "model"
# What serving_model.py and the packages beside it import, at the versions the model was evaluated with.
_REQUIREMENTS = ("mlflow", "numpy", "pandas", "pillow", "safetensors", "simplejpeg", "torch")
_SIGNATURE = ModelSignature(
    # Bytes, a path or a data: URI. Without a name, so that a plain list will do as well as a data frame.
    inputs=Schema([ColSpec(AnyType())]),
    outputs=Schema(
        [
            ColSpec(DataType.string, "label"),
            ColSpec(DataType.double, "score"),
            ColSpec(Map(DataType.double), "probabilities"),
        ]
    ),
)


def save_pyfunc(
    *,
    target_dir: Path,
    weights_dir: Path,
    decode: DecodeConfig,
    mean: Sequence[float],
    std: Sequence[float],
    classes: Sequence[str],
    limits: ImageLimits | None = None,
) -> Path:
    """Save an MLflow model to `target_dir`, which must not exist, and return it.

    Args:
        target_dir: the model's folder; it appears whole or not at all.
        weights_dir: `model.safetensors` and `config.json`, as `coatnet.interop.save_model` writes them.
        decode: its evaluation part is the preprocessing.
        mean: of inputs in [0, 1], per channel.
        std: the same.
        classes: a name for each output, in order.
        limits: what an input image may be; the corpus's limits by default.

    Raises:
        InputError: the weights expect another number of classes or another normalisation.
    """
    _check(target_dir, weights_dir, mean, std, classes)
    serving = {
        "classes": list(classes),
        "decode": asdict(decode),
        "mean": list(mean),
        "std": list(std),
        "limits": asdict(limits or ImageLimits()),
    }
    target_dir.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{target_dir.name}-", dir=target_dir.parent) as scratch:
        model_dir = Path(scratch) / "model"
        shutil.copytree(weights_dir, model_dir)
        (model_dir / "serving.json").write_text(json.dumps(serving, indent=1))
        saved = Path(scratch) / "pyfunc"
        _save(saved, model_dir, decode.image_size_px)
        saved.rename(target_dir)
    return target_dir


def weights_in(version_dir: Path) -> Path:
    """Return the folder of weights and config inside a downloaded model version, for a warm start."""
    return version_dir / _WEIGHTS_PATH


def _save(path: Path, model_dir: Path, image_size_px: int) -> None:
    mlflow.pyfunc.save_model(
        path=str(path),
        python_model=str(Path(__file__).with_name("serving_model.py")),
        artifacts={"model": str(model_dir)},
        code_paths=[str(Path(package.__path__[0])) for package in (coatnet, data)],
        signature=_SIGNATURE,
        input_example=[_example_uri(image_size_px)],
        # "+cpu" and the like name a build that a package index does not have.
        pip_requirements=[f"{name}=={version(name).partition('+')[0]}" for name in _REQUIREMENTS],
    )


def _example_uri(image_size_px: int) -> str:
    """Return a grey image the way JSON clients send one; it is shown on the model's page."""
    sink = io.BytesIO()
    Image.new("RGB", (image_size_px, image_size_px), (128, 128, 128)).save(sink, format="PNG")
    return f"data:image/png;base64,{base64.b64encode(sink.getvalue()).decode()}"


def _check(
    target_dir: Path, weights_dir: Path, mean: Sequence[float], std: Sequence[float], classes: Sequence[str]
) -> None:
    if target_dir.exists():
        raise InputError(f"{target_dir} exists already: name a folder that does not")
    config = load_config(weights_dir)
    if len(classes) != config.num_classes:
        raise InputError(
            f"{weights_dir} has {config.num_classes} outputs, but {len(classes)} class names were given"
        )
    if tuple(mean) != config.mean or tuple(std) != config.std:
        raise InputError(
            f"{weights_dir} expects mean {config.mean} and std {config.std}, but serving was given "
            f"{tuple(mean)} and {tuple(std)}: save the model with the normalisation it was trained with"
        )
