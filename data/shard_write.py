"""Write one shard: fetch, validate, hash, tar, index, upload."""

import hashlib
import json
import tarfile
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import google_crc32c
import PIL
import simplejpeg

from data.errors import InputError
from data.image_check import BadImageError, CheckedImage, ImageLimits, check_image, quiet_pillow
from data.record_fetch import fetch_in_order
from data.shard_index import put_index, read_index
from data.shard_plan import ShardPlan
from data.stable_hash import digest_rows
from data.store import ImageSource, ObjectNotFoundError, Store, StoreError
from data.tar_write import TarWriter
from data.temporary_folder import temporary_folder
from data.types import Record, Reject, ShardInfo
from data.webdataset_key import escape_key

# Raise it when the bytes written for the same input change.
SHARD_FORMAT_VERSION = 5

CODECS = (PIL.__version__, simplejpeg.__version__)
"""They make the bytes of re-encoded images, and the pixels that perceptual hashes are of."""

_JSON = json.JSONEncoder(separators=(",", ":"))  # `json.dumps` would make one for each image


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardResult:
    """What became of one plan."""

    info: ShardInfo | None
    """None where no image was usable."""
    split: str
    rejects: tuple[Reject, ...]
    num_images: int
    """Listed, not kept."""
    listed_bytes: int


def write_shard(plan: ShardPlan, *, corpus: ImageSource, dataset: Store, limits: ImageLimits) -> ShardResult:
    """Write the plan's usable images as `shards/SPLIT-HASH.tar`, and its index beside it.

    A sample's members: KEY.png or KEY.jpg; KEY.cls, the class index (samples with one label);
    KEY.json with the original name. A plan finished before, by whichever process, is not read
    again. Raises `StoreError` where a store fails or an image changes size while it is read.
    """
    receipt_path = _receipt_path(plan, corpus, limits)
    finished = _read_receipt(dataset, receipt_path)
    if finished is not None:
        return finished
    records = plan.records
    class_index = {name: index for index, name in enumerate(plan.classes)}
    rows: list[dict[str, Any]] = []
    rejects: list[Reject] = []
    with temporary_folder("shard-") as scratch, quiet_pillow():
        tar_path = scratch / "shard.tar"
        with TarWriter(tar_path) as tar:
            for record, outcome in _check_records(records, corpus, limits):
                if isinstance(outcome, Reject):
                    rejects.append(outcome)
                else:
                    rows.append(_add_sample(tar, record, outcome, class_index))
        info = _publish(tar, tar_path, rows, plan.split, dataset) if rows else None
    result = ShardResult(
        info=info,
        split=plan.split,
        rejects=tuple(rejects),
        num_images=len(records),
        listed_bytes=sum(record.size_bytes for record in records),
    )
    if not any(reject.reason == "missing" for reject in rejects):  # those files may come back
        dataset.put(receipt_path, json.dumps(asdict(result)).encode())
    return result


def write_shards_here(
    corpus: ImageSource, dataset: Store, limits: ImageLimits
) -> Callable[[Iterable[ShardPlan]], Iterator[ShardResult]]:
    """Return a function that writes plans one after another in this process."""

    def run_all(plans: Iterable[ShardPlan]) -> Iterator[ShardResult]:
        for plan in plans:
            yield write_shard(plan, corpus=corpus, dataset=dataset, limits=limits)

    return run_all


def rewrite_shard(dataset: Store, shard: ShardInfo, split: str, drop: Collection[str]) -> ShardInfo | None:
    """Write a shard again, from itself, without the samples named in `drop`; None if none is left.

    Of an adopted shard only the index is: its tar stays as it is, and nothing reads those samples.
    The old objects stay: another snapshot or a receipt may name them.
    """
    dropped = set(drop)
    kept = [row for row in read_index(dataset, shard).to_pylist() if row["name"] not in dropped]
    if not kept:
        return None
    if shard.is_adopted:
        return put_index(
            dataset, f"indexes/{split}", kept, path=shard.path, size_bytes=shard.size_bytes,
            crc32c=shard.crc32c, sha256=shard.sha256,
        )  # fmt: skip
    rows = {row["key"]: row for row in kept}
    with temporary_folder("shard-") as scratch:
        old_path, new_path = scratch / "old.tar", scratch / "new.tar"
        dataset.download(shard.path, old_path)
        with tarfile.open(old_path) as old, TarWriter(new_path) as new:
            for member in old:
                key, _, extension = member.name.partition(".")
                if key not in rows:
                    continue
                file = old.extractfile(member)
                assert file is not None
                (offset,) = new.add([(member.name, file.read())])
                if extension == rows[key]["extension"]:
                    rows[key]["offset"] = offset
        return _publish(new, new_path, kept, split, dataset)


def _check_records(
    records: Iterable[Record], corpus: ImageSource, limits: ImageLimits
) -> Iterator[tuple[Record, CheckedImage | Reject]]:
    def fetch(record: Record) -> bytes | Reject:
        return _fetch(record, corpus, limits)

    for record, content in fetch_in_order(records, fetch):
        yield record, _check(record, content, limits)


def _fetch(record: Record, corpus: ImageSource, limits: ImageLimits) -> bytes | Reject:
    if record.size_bytes > limits.max_bytes:
        detail = f"{record.size_bytes} bytes, allowed {limits.max_bytes}"
        return _reject(record, "too_large", detail)
    try:
        content = _read(record, corpus)
    except ObjectNotFoundError:
        if record.offset is not None:  # what holds many images is gone: a fault, not so many bad samples
            raise
        return _reject(record, "missing", "listed, but gone when it was read")
    except InputError as error:  # S3 lists keys like `cat//x.png`, which no store here reads
        return _reject(record, "bad_path", str(error))
    if len(content) != record.size_bytes:
        # Not a reject: a read cut short looks the same, and a fault is never a bad sample.
        raise StoreError(
            f"{corpus.uri}/{record.path}: {len(content)} bytes read, {record.size_bytes} listed; "
            "it changed since, or the read was cut short: run again"
        )
    return content


def _read(record: Record, corpus: ImageSource) -> bytes:
    if record.offset is None:
        return corpus.get(record.path)
    return corpus.get_range(record.path, record.offset, record.size_bytes)


def _check(record: Record, content: bytes | Reject, limits: ImageLimits) -> CheckedImage | Reject:
    if isinstance(content, Reject):
        return content
    try:
        return check_image(content, limits)
    except BadImageError as error:
        return _reject(record, error.reason, error.detail)


def _reject(record: Record, reason: str, detail: str) -> Reject:
    return Reject(
        key=record.key, path=record.path, reason=reason, detail=detail, etag=record.etag,
        size_bytes=record.size_bytes, offset=record.offset,
    )  # fmt: skip


def _add_sample(
    tar: TarWriter, record: Record, image: CheckedImage, class_index: Mapping[str, int]
) -> dict[str, Any]:
    """Append the sample's members and return its index row."""
    content, extension = image.image_bytes, image.extension
    labels = [class_index[label] for label in record.labels]
    key = escape_key(record.key)
    # All of the index that the members do not say otherwise: equal tars have equal indexes.
    about = {
        "name": record.key, "path": record.path, "labels": record.labels, "reencoded": image.reencoded,
        "width": image.original.width, "height": image.original.height, "mode": image.original.mode,
        "exif_orientation": image.original.exif_orientation, "perceptual_hash": image.perceptual_hash,
    }  # fmt: skip
    members = [(f"{key}.{extension}", content)]
    if len(labels) == 1:
        members.append((f"{key}.cls", str(labels[0]).encode()))
    members.append((f"{key}.json", _JSON.encode(about).encode()))
    offset = tar.add(members)[0]
    return {
        "key": key, "name": record.key, "path": record.path, "offset": offset, "size": len(content),
        "extension": extension, "labels": labels, "width": image.width, "height": image.height,
        "crc32c": google_crc32c.value(content), "sha256": hashlib.sha256(content).hexdigest(),
        "reencoded": image.reencoded, "original_width": image.original.width,
        "original_height": image.original.height, "original_mode": image.original.mode,
        "exif_orientation": image.original.exif_orientation, "perceptual_hash": image.perceptual_hash,
    }  # fmt: skip


def _publish(
    tar: TarWriter, tar_path: Path, rows: list[dict[str, Any]], split: str, dataset: Store
) -> ShardInfo:
    """Upload under names made of the content: a rerun or a rival writes the same bytes again."""
    path = f"shards/{split}-{tar.sha256[:16]}.tar"
    dataset.upload(tar_path, path, keep_source=False)
    return put_index(
        dataset, f"shards/{split}", rows, path=path, size_bytes=tar.size_bytes, crc32c=tar.crc32c,
        sha256=tar.sha256,
    )  # fmt: skip


def _receipt_path(plan: ShardPlan, corpus: ImageSource, limits: ImageLimits) -> str:
    """Name all that the result depends on."""
    rows = b"".join(digests.astype("<u8").tobytes() for digests in digest_rows(plan.rows.columns))
    identity = [
        SHARD_FORMAT_VERSION, CODECS, corpus.uri, asdict(limits), plan.split, plan.classes,
        hashlib.sha256(rows).hexdigest(),
    ]  # fmt: skip
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
    return f"receipts/{digest[:32]}.json"


def _read_receipt(dataset: Store, path: str) -> ShardResult | None:
    """Return what an earlier run noted; None where it did not, or the note is damaged or of no use."""
    try:
        found = json.loads(dataset.get(path))
        info = ShardInfo(**found["info"]) if found["info"] else None
        result = ShardResult(
            info=info,
            split=found["split"],
            rejects=tuple(Reject(**reject) for reject in found["rejects"]),
            num_images=found["num_images"],
            listed_bytes=found["listed_bytes"],
        )
    except (ObjectNotFoundError, ValueError, KeyError, TypeError):
        return None
    if info and not (dataset.exists(info.path) and dataset.exists(info.index_path)):
        return None
    return result
