"""The samples of a WebDataset tar, as columns: which range is the image, and what stands beside it."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import pyarrow as pa

from data.arrow import RecordBatch
from data.corpora.class_folders import IMAGE_EXTENSIONS
from data.corpora.range_reader import RangeReader
from data.corpora.tar_scan import TarMember, TarSpan, iter_members, open_span
from data.errors import InputError
from data.store import RangeSource

SAMPLE_SCHEMA: Any = pa.schema(
    [
        ("key", pa.string()),  # what webdataset calls __key__
        ("name", pa.string()),  # of the image's member
        ("extension", pa.string()),  # of the image's member, as webdataset cuts it, in small letters
        ("offset", pa.int64()),  # of the image's bytes, in the object
        ("size_bytes", pa.int64()),  # of the image
        ("cls", pa.string()),  # content of the member beside it; null if there is none
        ("json", pa.string()),
    ]
)

_BATCH_ROWS = 4096
_MAX_SIDECAR_BYTES = 1 << 20
_SIDECARS = ("cls", "json")
# As webdataset cuts a name: at the first dot behind the last slash. No match: a hidden file.
_KEY_AND_EXTENSION = re.compile(r"((?:.*/)?[^./]+)\.([^/]*)", re.DOTALL)
_META_MEMBER = re.compile(r"__[^/]*__(/|$)")


@dataclass(slots=True)
class _Group:
    """The members of one key so far."""

    key: str
    images: dict[str, TarMember] = field(default_factory=dict[str, TarMember])
    """By extension."""
    sidecars: dict[str, str] = field(default_factory=dict[str, str])
    extensions: set[str] = field(default_factory=set[str])


def scan_samples(span: TarSpan, *, store: RangeSource, image_extension: str = "") -> Iterator[RecordBatch]:
    """Yield the samples of a tar: neighbours with one key, as webdataset groups them (`SAMPLE_SCHEMA`).

    Reads the tar once from front to back, and past members of more than 1 MiB. `image_extension` says
    which member is the image where a sample has several. Hidden files and members like `__meta__` are
    skipped, as webdataset does. Raises `InputError` for a sample without an image or with several, two
    neighbours of one name, a `cls` or `json` that is over 1 MiB or not UTF-8, and for what
    `iter_members` refuses; `StoreError` where the store fails.
    """
    reader = open_span(store, span)
    rows = (_sample(span, group, image_extension) for group in _groups(reader, span))
    while chunk := list(islice(rows, _BATCH_ROWS)):
        yield pa.RecordBatch.from_pylist(chunk, schema=SAMPLE_SCHEMA)


def _groups(reader: RangeReader, span: TarSpan) -> Iterator[_Group]:
    group: _Group | None = None
    for member in iter_members(reader, span):
        match = _KEY_AND_EXTENSION.fullmatch(member.name)
        if match is None or _META_MEMBER.match(member.name):
            continue
        key, extension = match[1], match[2].lower()
        if group is None or group.key != key:
            if group is not None:
                yield group
            group = _Group(key=key)
        if extension in group.extensions:
            raise InputError(f"tar {span.name!r} has the member {member.name!r} twice: leave one of them out")
        group.extensions.add(extension)
        kind = extension.rpartition(".")[2]
        if kind in IMAGE_EXTENSIONS:
            group.images[extension] = member
        elif kind in _SIDECARS:
            # Now, while the reader holds these bytes.
            group.sidecars[kind] = _text(reader, span, member)
    if group is not None:
        yield group


def _text(reader: RangeReader, span: TarSpan, member: TarMember) -> str:
    if member.size_bytes > _MAX_SIDECAR_BYTES:
        raise InputError(
            f"member {member.name!r} of tar {span.name!r} has {member.size_bytes} bytes; a label beside an "
            f"image may have {_MAX_SIDECAR_BYTES}: shorten it"
        )
    try:
        return reader.read(member.offset, member.size_bytes).decode()
    except UnicodeDecodeError as error:
        raise InputError(f"member {member.name!r} of tar {span.name!r} is not UTF-8 text: {error}") from None


def _sample(span: TarSpan, group: _Group, image_extension: str) -> dict[str, Any]:
    wanted = image_extension.lower().lstrip(".")
    found = [name for name in group.images if wanted in ("", name)]
    if len(found) != 1:
        there = ", ".join(sorted(group.extensions))
        what = f"{len(found)} images" if found else f"no image{f' {wanted!r}' if wanted else ''}"
        advice = "say which one with image_extension" if found else "leave it out, or correct image_extension"
        raise InputError(
            f"sample {group.key[:200]!r} of tar {span.name!r} has {what} among {there}: {advice}"
        )
    image = group.images[found[0]]
    return {
        "key": group.key, "name": image.name, "extension": found[0], "offset": image.offset,
        "size_bytes": image.size_bytes, "cls": group.sidecars.get("cls"), "json": group.sidecars.get("json"),
    }  # fmt: skip
