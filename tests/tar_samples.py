"""Tars for the tests of their readers: made by the standard library, by webdataset and by hand."""

import io
import tarfile
from collections.abc import Mapping
from typing import Any

from data.corpora.tar_scan import TarSpan
from data.store import Store


def tar_bytes(members: Mapping[str, bytes], tar_format: int = tarfile.GNU_FORMAT) -> bytes:
    """Return a tar of plain files."""
    return tar_of([(tarfile.TarInfo(name), content) for name, content in members.items()], tar_format)


def tar_of(members: list[tuple[tarfile.TarInfo, bytes]], tar_format: int = tarfile.GNU_FORMAT) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tar_format) as tar:
        for info, content in members:
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def entry(name: str, kind: bytes, **values: Any) -> tuple[tarfile.TarInfo, bytes]:
    """Return a member of another kind: a link, a device, a folder."""
    info = tarfile.TarInfo(name)
    info.type = kind
    for field, value in values.items():
        setattr(info, field, value)
    return info, b""


def span_of(store: Store, path: str) -> TarSpan:
    (info,) = [info for info in store.list() if info.path == path]
    return TarSpan.of(info)
