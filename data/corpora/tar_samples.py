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
    sidecars: dict[str, tuple[TarMember, bytes | None]] = field(
        default_factory=dict[str, tuple[TarMember, bytes | None]]
    )
    """By extension, with the content, or None where that is too large for a label."""
    extensions: set[str] = field(default_factory=set[str])


def scan_samples(span: TarSpan, *, store: RangeSource, image_extension: str = "") -> Iterator[RecordBatch]:
    """Yield the samples of a tar: neighbours with one key, as webdataset groups them (`SAMPLE_SCHEMA`).

    Reads the tar once from front to back, and past members of more than 1 MiB. `image_extension` says
    which member is the image where a sample has several. What stands beside `seg.png` is `seg.cls`, else
    `cls`; beside `png` it is `cls` alone. Hidden files and members like `__meta__` are skipped, as
    webdataset does. Raises `InputError` for a sample without an image or with several, two
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
            fits = member.size_bytes <= _MAX_SIDECAR_BYTES
            # Now, while the reader holds these bytes.
            content = reader.read(member.offset, member.size_bytes) if fits else None
            group.sidecars[extension] = (member, content)
    if group is not None:
        yield group


def _sidecar(span: TarSpan, group: _Group, kind: str, image_extension: str) -> str | None:
    """Return the text of the image's own `cls` or `json`: `x.meta.json` is not that of `x.png`."""
    stem = image_extension.rpartition(".")[0]
    found = group.sidecars.get(f"{stem}.{kind}", group.sidecars.get(kind))
    if found is None:
        return None
    member, content = found
    if content is None:
        raise InputError(
            f"member {member.name!r} of tar {span.name!r} has {member.size_bytes} bytes; a label beside an "
            f"image may have {_MAX_SIDECAR_BYTES}: shorten it"
        )
    try:
        return content.decode()
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
        "size_bytes": image.size_bytes, "cls": _sidecar(span, group, "cls", found[0]),
        "json": _sidecar(span, group, "json", found[0]),
    }  # fmt: skip
