"""The records that flow from a corpus to a training step.

Shape letters: B batch, H height, W width, C channels.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch  # takes seconds to import, and the processes that write shards need none of it


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One image of a corpus listing, not read yet."""

    key: str
    """Unique name in the dataset; it decides the split and the order. Extension included."""
    path: str
    """Where the bytes are, relative to the corpus store."""
    labels: tuple[str, ...]
    """Class names."""
    split: str | None
    """`train` or `eval` where the corpus says so, else None: assigned by the key's hash."""
    size_bytes: int
    """Of the image."""
    etag: str
    offset: int | None = None
    """Of the image's bytes in the object at `path`, of Parquet's in the copies; None: the object is it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reject:
    """One record that was left out, and why."""

    key: str
    path: str
    reason: str
    """A short machine-readable reason, e.g. `unreadable`, `too_large`, `duplicate`."""
    detail: str
    etag: str
    size_bytes: int | None = None
    """Of the image in the corpus, and where it begins, as in its record; None: not read, or whole."""
    offset: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardInfo:
    """One finished tar and its Parquet index; paths are relative to the dataset store."""

    path: str
    index_path: str
    num_samples: int
    size_bytes: int
    crc32c: int
    sha256: str
    index_sha256: str

    @property
    def is_adopted(self) -> bool:
        """Return whether the tar is somebody else's, indexed where it lies: we never delete it."""
        return self.index_path.startswith("indexes/")


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """One rank's part of a global batch, before augmentation."""

    images_BHWC: "torch.Tensor"
    """uint8, in [0, 255], RGB; in pinned memory where CUDA is available."""
    labels_B: "torch.Tensor"
    """int64 class indices."""
    weights_B: "torch.Tensor"
    """float32; 0 marks padding or a sample that could not be decoded, else 1."""
    positions_B: "torch.Tensor"
    """int64 positions in the epoch's global order; they key the augmentation's randomness."""
    keys: tuple[str, ...]
    """Record keys, in the same order; "" for padding."""
    epoch: int
    step: int
