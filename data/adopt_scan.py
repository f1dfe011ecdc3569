"""Look at one WebDataset tar of somebody else's where it lies: every image, once, copying none.

What is found goes into a table in `scans/`; `data.adopt` makes the index of it, once the classes of all
tars are known.
"""

import hashlib
import io
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import google_crc32c
import PIL
import pyarrow as pa
from PIL import Image

from data.corpora.tar_samples import scan_samples
from data.corpora.tar_scan import TarSpan
from data.corpora.webdataset_tars import SampleLabels
from data.errors import InputError
from data.image_check import BadImageError, ImageLimits, check_image, quiet_pillow
from data.jpeg_header import JPEG_SIGNATURE, read_jpeg_header
from data.shard_index import INDEX_SCHEMA, put_parquet
from data.store import ObjectNotFoundError, Store, StoreError
from data.temporary_folder import temporary_folder
from data.types import Reject

_SCAN_VERSION = 3
_CHUNK_BYTES = 1 << 20
_SCAN_SCHEMA: Any = INDEX_SCHEMA.set(
    INDEX_SCHEMA.get_field_index("labels"), pa.field("labels", pa.list_(pa.string()))
)
"""The index, with the labels as they are written in the tar."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TarPlan:
    """One tar to look at."""

    path: str
    """In the dataset store."""
    size_bytes: int
    etag: str
    split: str
    labels: SampleLabels
    image_extension: str
    """Which member is the image, where samples have several; "" where they have one."""
    limits: ImageLimits


@dataclass(frozen=True, slots=True, kw_only=True)
class ScannedTar:
    """What a tar holds."""

    path: str
    split: str
    size_bytes: int
    etag: str
    crc32c: int
    sha256: str
    table_path: str
    """Parquet of the usable samples, as an index with the labels as text."""
    num_samples: int
    rejects: tuple[Reject, ...]


def scan_tar(plan: TarPlan, *, dataset: Store) -> ScannedTar:
    """Read a tar once, whole, and check every image in it as a build would.

    An image that a build would have to encode anew is taken if the loader shows it as that would look
    (rotated by EXIF, CMYK, palette, WebP, first frame of an animation, ...) and is a reject `needs_change`
    if not: 16 bits a channel, transparency, rotated by XMP alone. A tar seen before is not read again.
    Raises `InputError` for a tar that cannot be adopted, `StoreError` where the store fails or the tar has
    changed, `TemporaryFolderFullError`.
    """
    receipt = _receipt_path(plan)
    if (known := _read_receipt(dataset, receipt)) is not None:
        return known
    with temporary_folder("adopt-") as scratch, quiet_pillow():
        local = scratch / "shard.tar"
        dataset.download(plan.path, local)
        size_bytes = local.stat().st_size
        if size_bytes != plan.size_bytes:
            raise StoreError(
                f"{dataset.uri}/{plan.path}: {size_bytes} bytes read, {plan.size_bytes} listed; it changed "
                "since, or the read was cut short: run again"
            )
        crc32c, sha256 = _hashes(local)
        rows: list[dict[str, Any]] = []
        rejects: list[Reject] = []
        for found in _samples(plan, local):
            rejects.append(found) if isinstance(found, Reject) else rows.append(found)
    result = ScannedTar(
        path=plan.path, split=plan.split, size_bytes=size_bytes, etag=plan.etag, crc32c=crc32c, sha256=sha256,
        table_path=put_parquet(dataset, "scans", rows, _SCAN_SCHEMA), num_samples=len(rows),
        rejects=tuple(rejects),
    )  # fmt: skip
    dataset.put(receipt, json.dumps(asdict(result)).encode())
    return result


class _LocalFile:
    """The downloaded tar as what `scan_samples` reads."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("rb")

    def get_range(self, path: str, start: int, size_bytes: int) -> bytes:
        self._file.seek(start)
        return self._file.read(size_bytes)

    def close(self) -> None:
        self._file.close()


def _samples(plan: TarPlan, local: Path) -> Iterator[dict[str, Any] | Reject]:
    file = _LocalFile(local)
    try:
        span = TarSpan(
            path=plan.path, object_size_bytes=plan.size_bytes, etag=plan.etag, name=plan.path,
            size_bytes=plan.size_bytes,
        )  # fmt: skip
        batches = scan_samples(span, store=file, image_extension=plan.image_extension)
        for row in (row for batch in batches for row in batch.to_pylist()):
            try:
                if row["size_bytes"] > plan.limits.max_bytes:  # before it fills the memory
                    detail = f"{row['size_bytes']} bytes, allowed {plan.limits.max_bytes}"
                    raise BadImageError("too_large", detail)
                content = file.get_range(plan.path, row["offset"], row["size_bytes"])
                yield _index_row(plan, row, content)
            except BadImageError as error:
                yield Reject(
                    key=_name(plan, row),
                    path=plan.path,
                    reason=error.reason,
                    detail=error.detail,
                    etag=plan.etag,
                )
    finally:
        file.close()


def _index_row(plan: TarPlan, row: Mapping[str, Any], content: bytes) -> dict[str, Any]:
    try:
        labels = plan.labels.of(row, f"sample {row['key'][:200]!r}")
    except InputError as error:
        raise BadImageError("no_label", str(error)) from error
    image = check_image(content, plan.limits)
    if image.reencoded and (why := _shown_otherwise(content, image.original.exif_orientation)):
        raise BadImageError("needs_change", f"{why}: create a dataset from these tars instead")
    return {
        "key": row["key"], "name": _name(plan, row), "path": plan.path, "offset": row["offset"],
        "size": row["size_bytes"], "extension": row["name"].removeprefix(f"{row['key']}."),
        "labels": labels, "width": image.width, "height": image.height,
        "crc32c": google_crc32c.value(content), "sha256": hashlib.sha256(content).hexdigest(),
        "reencoded": False, "original_width": image.original.width,
        "original_height": image.original.height, "original_mode": image.original.mode,
        "exif_orientation": image.original.exif_orientation, "perceptual_hash": image.perceptual_hash,
    }  # fmt: skip


def _shown_otherwise(content: bytes, orientation: int) -> str:
    """Say why the loader would show an image other than a build would have written it; "" if it would not.

    `orientation` is the one that a build has turned upright.
    """
    with Image.open(io.BytesIO(content)) as image:
        if image.mode.startswith("I"):
            return f"mode {image.mode}: 16 bits a channel are clipped, not scaled, where it lies"
        if "transparency" in image.info or image.mode in ("RGBA", "LA", "PA", "RGBa", "La"):
            return f"mode {image.mode} with transparency, which nothing lays over white where it lies"
        if orientation != 1 and _is_turned_by_xmp(image, content, orientation):
            return f"orientation {orientation} told by XMP alone, which is not read where it lies"
    return ""


def _is_turned_by_xmp(image: Image.Image, content: bytes, orientation: int) -> bool:
    """Return whether the loader, which turns by EXIF, leaves an image as it is stored."""
    header = read_jpeg_header(content) if content.startswith(JPEG_SIGNATURE) else None
    if header is not None:
        return header.orientation != orientation
    # Of a PNG a build reads XMP no more than the loader; a TIFF comes upright from Pillow for both.
    return image.format not in ("PNG", "TIFF") and "exif" not in image.info


def _name(plan: TarPlan, row: Mapping[str, Any]) -> str:
    """Name a sample over all tars."""
    return f"{plan.path}/{row['name']}"


def _hashes(path: Path) -> tuple[int, str]:
    crc32c, sha256 = 0, hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            crc32c = google_crc32c.extend(crc32c, chunk)
            sha256.update(chunk)
    return crc32c, sha256.hexdigest()


def _receipt_path(plan: TarPlan) -> str:
    """Name all that the result depends on; Pillow, because it judges the images."""
    identity = [_SCAN_VERSION, PIL.__version__, asdict(plan)]
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
    return f"receipts/{digest[:32]}.json"


def _read_receipt(dataset: Store, path: str) -> ScannedTar | None:
    """Return what an earlier run noted; None where it did not, or the note is damaged or of no use."""
    try:
        found: dict[str, Any] = json.loads(dataset.get(path))
        rejects = tuple(Reject(**reject) for reject in found.pop("rejects"))
        scanned = ScannedTar(**found, rejects=rejects)
    except (ObjectNotFoundError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return scanned if dataset.exists(scanned.table_path) else None
