"""The model as MLflow loads it. This file is copied into the model and run there ("models from code").

It may import `coatnet` and `data`, which travel with it, and nothing else of this repository.
Shape letters: B batch, H height, W width, C channels, K classes.
"""

import base64
import binascii
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from mlflow.models import set_model
from mlflow.pyfunc.model import PythonModel, PythonModelContext
from numpy.typing import NDArray

from coatnet.interop import load_model
from data.decode import BadSampleError, DecodeConfig, decode_eval
from data.errors import InputError
from data.image_check import BadImageError, ImageLimits, check_image, quiet_pillow
from data.normalize import normalize

_BATCH_SIZE = 64


class ImageClassifier(PythonModel):
    """Images in, label, score and probabilities out: exactly evaluation's preprocessing, on the CPU."""

    def load_context(self, context: PythonModelContext) -> None:
        """Read the weights and `serving.json` from the model's own folder."""
        folder = Path(context.artifacts["model"])
        config = json.loads((folder / "serving.json").read_text())
        self._classes: list[str] = config["classes"]
        self._decode = DecodeConfig(**config["decode"])
        self._limits = ImageLimits(**config["limits"])
        self._mean: tuple[float, float, float] = tuple(config["mean"])
        self._std: tuple[float, float, float] = tuple(config["std"])
        self._model = load_model(folder)

    def predict(  # pyright: ignore[reportIncompatibleMethodOverride]  # the base has no annotation
        self, context: PythonModelContext, model_input: pd.DataFrame, params: Any = None
    ) -> pd.DataFrame:
        """Classify the first column: bytes, a path, or a `data:` URI (for JSON).

        Raises:
            InputError: an image that is not there, too large or broken, by its row.
        """
        images: list[object] = list(model_input.iloc[:, 0])
        chunks = [images[start : start + _BATCH_SIZE] for start in range(0, len(images), _BATCH_SIZE)]
        rows = [
            probabilities_K
            for number, chunk in enumerate(chunks)
            for probabilities_K in self._classify(chunk, number * _BATCH_SIZE)
        ]
        best = [int(probabilities_K.argmax()) for probabilities_K in rows]
        return pd.DataFrame(
            {
                "label": [self._classes[index] for index in best],
                "score": [float(row[index]) for row, index in zip(rows, best, strict=True)],
                "probabilities": [dict(zip(self._classes, row.tolist(), strict=True)) for row in rows],
            }
        )

    def _classify(self, images: Sequence[object], first_row: int) -> NDArray[np.float64]:
        """Return probabilities [B, K]."""
        size = self._decode.image_size_px
        images_BHWC = np.empty((len(images), size, size, 3), dtype=np.uint8)
        with quiet_pillow():
            for index, image in enumerate(images):
                try:
                    checked = check_image(_read(image, self._limits), self._limits)
                    decode_eval(checked.image_bytes, self._decode, images_BHWC[index])
                except (BadImageError, BadSampleError, OSError, InputError) as error:
                    raise InputError(
                        f"image in row {first_row + index} ({_name(image)}): {_reason(error)}"
                    ) from error
        with torch.inference_mode():
            inputs_BCHW = normalize(torch.from_numpy(images_BHWC), self._mean, self._std)
            return self._model(inputs_BCHW).double().softmax(dim=1).numpy()


def _read(image: object, limits: ImageLimits) -> bytes:
    if isinstance(image, bytes | bytearray | memoryview):
        return bytes(image)
    if not isinstance(image, str):
        raise InputError(f"its type is {type(image).__name__}: give bytes, a path or a data: URI")
    if image.startswith("data:"):
        _, separator, encoded = image.partition(";base64,")
        try:
            return base64.b64decode(encoded, validate=True) if separator else b""
        except binascii.Error as error:
            raise InputError("it is no valid base64: write data:image/png;base64,...") from error
    path = Path(image)
    if not path.is_file():
        raise InputError("there is no such file")
    with path.open("rb") as file:
        # One byte more than is allowed is enough to refuse it.
        return file.read(limits.max_bytes + 1)


def _reason(error: Exception) -> str:
    return f"{error.reason}, {error.detail}" if isinstance(error, BadImageError) else str(error)


def _name(image: object) -> str:
    if isinstance(image, str):
        return repr(image if len(image) <= 80 else image[:77] + "...")
    return f"{len(image)} bytes" if isinstance(image, bytes | bytearray) else type(image).__name__


set_model(ImageClassifier())
