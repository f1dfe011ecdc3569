"""Small images and corpora for the writer's tests."""

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from data.store import Store
from infra.store import open_store


def pixels(seed: int, height: int = 8, width: int = 8, channels: int = 3) -> np.ndarray[Any, Any]:
    shape = (height, width, channels) if channels > 1 else (height, width)
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def encode(image: Image.Image, image_format: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, image_format, **options)
    return buffer.getvalue()


def png(seed: int = 0, **size: int) -> bytes:
    return encode(Image.fromarray(pixels(seed, **size)), "PNG")


def jpeg(seed: int = 0, **options: Any) -> bytes:
    return encode(Image.fromarray(pixels(seed)), "JPEG", **options)


def fill(folder: Path, files: Mapping[str, bytes]) -> Store:
    """Write the files below `folder` and return the store over it."""
    # Not through the store, which flushes every file to the disk.
    for path, content in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)
    return open_store(str(folder))


def photos(prefix: str, count: int, first_seed: int) -> dict[str, bytes]:
    return {f"{prefix}/{index:03d}.png": png(first_seed + index) for index in range(count)}
