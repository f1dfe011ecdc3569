"""CIFAR-10's published Python batches, as folders of PNG files.

Source: A. Krizhevsky, "Learning Multiple Layers of Features from Tiny Images" (2009);
60,000 photographs of 32x32 pixels in 10 classes. There is no formal licence: fetch it, do not
publish it again.
"""

import hashlib
import io
import os
import pickle
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from data.errors import InputError

# As torchvision publishes them for cifar-10-batches-py.
BATCH_MD5 = {
    "data_batch_1": "c99cafc152244af753f735de768cd75f",
    "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
    "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
    "data_batch_4": "634d18415352ddfa80567beed471001a",
    "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
    "test_batch": "40351d587109b95175f43aff81a1287e",
}
META_MD5 = {"batches.meta": "5ff9c542aee3614f3951f8cda6e48888"}

IMAGE_SIZE_PX = 32

# A folder store lists the modification time as etag: with a fixed one (when the batches were
# published) the listing has the same digest on every machine.
_MTIME_S = 1_238_454_000

_MARKER = ".cifar10-complete"


class _BatchUnpickler(pickle.Unpickler):
    """Unpickles what a batch holds, dicts of lists, bytes and one uint8 array, and nothing else."""

    def find_class(self, module_name: str, global_name: str, /) -> Any:
        """Return one of the three globals of a batch; any other is refused."""
        if (module_name, global_name) == ("numpy.core.multiarray", "_reconstruct"):
            return _empty_array
        if (module_name, global_name) == ("numpy", "ndarray"):
            return np.ndarray
        if (module_name, global_name) == ("numpy", "dtype"):
            return _uint8_dtype
        raise pickle.UnpicklingError(f"{module_name}.{global_name} has no place in a CIFAR-10 batch")


def _empty_array(kind: Any, shape: Any, typecode: Any) -> np.ndarray[Any, Any]:
    if kind is not np.ndarray or shape != (0,):
        raise pickle.UnpicklingError(f"an array of {kind} and shape {shape} has no place in a batch")
    return np.empty(0, np.uint8)


def _uint8_dtype(name: Any, *_: Any) -> np.dtype[np.uint8]:
    # Above all no object arrays, whose elements would be taken from the pickle.
    if name != b"u1":
        raise pickle.UnpicklingError(f"dtype {name!r} has no place in a CIFAR-10 batch")
    return np.dtype(np.uint8)


def read_batch(content: bytes) -> dict[bytes, Any]:
    """Unpickle one batch of Python 2; strings come as bytes. Anything unexpected is an `InputError`."""
    try:
        batch: Any = _BatchUnpickler(io.BytesIO(content), encoding="bytes").load()
    except Exception as error:  # A pickle's opcodes can fail in any way; there is no I/O in it.
        raise InputError(f"this is not a CIFAR-10 batch: {error}; fetch it again") from error
    if not isinstance(batch, dict):
        raise InputError(f"this is not a CIFAR-10 batch but a {type(batch).__name__}; fetch it again")
    return batch


def check_batches(batches_dir: Path) -> None:
    """Raise `InputError` unless the folder has all seven files with their published MD5 sums."""
    for name, expected in {**BATCH_MD5, **META_MD5}.items():
        path = batches_dir / name
        if not path.is_file():
            raise InputError(f"{path} is not there: fetch CIFAR-10's Python batches into {batches_dir}")
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "md5").hexdigest()
        if found != expected:
            raise InputError(f"{path} has MD5 {found}, published is {expected}: fetch it again")


def write_png_folders(batches_dir: Path, target: Path) -> Path:
    """Write `train/CLASS/NAME.png` and `test/CLASS/NAME.png` below `target` and return it.

    All or nothing: the folder appears when it is complete, and is left alone if it is there. The
    names are the published ones; equal Pillow versions write equal bytes and times everywhere.
    """
    if (target / _MARKER).is_file():
        return target
    if target.exists():
        raise InputError(f"{target} exists and was not written by this: move it or name another folder")
    check_batches(batches_dir)
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        partial.chmod(0o755)
        meta = read_batch((batches_dir / "batches.meta").read_bytes())
        classes = [name.decode("ascii") for name in meta[b"label_names"]]
        for name in BATCH_MD5:
            split = "test" if name == "test_batch" else "train"
            _write_batch(read_batch((batches_dir / name).read_bytes()), classes, partial / split)
        (partial / _MARKER).touch()
        _rename(partial, target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return target


def _write_batch(batch: dict[bytes, Any], classes: list[str], folder: Path) -> None:
    for name in classes:
        (folder / name).mkdir(parents=True, exist_ok=True)
    flat_BCHW = batch[b"data"].reshape(-1, 3, IMAGE_SIZE_PX, IMAGE_SIZE_PX)
    images_BHWC = np.ascontiguousarray(flat_BCHW.transpose(0, 2, 3, 1))
    for image_HWC, label, filename in zip(images_BHWC, batch[b"labels"], batch[b"filenames"], strict=True):
        path = folder / classes[label] / Path(filename.decode("ascii")).name
        # Level 6 was both the smallest and the fastest of 1 to 9 on these images.
        Image.fromarray(image_HWC).save(path, "PNG", compress_level=6)
        os.utime(path, (_MTIME_S, _MTIME_S))


def _rename(partial: Path, target: Path) -> None:
    try:
        partial.rename(target)
    except OSError:
        # Another process was faster.
        if not (target / _MARKER).is_file():
            raise
