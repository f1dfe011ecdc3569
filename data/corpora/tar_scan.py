"""Find the members of a tar on a store by its headers alone: an image in it is a range of the object.

Reads GNU, POSIX (pax) and old tars that are not compressed. What a range cannot stand for, or what
would leave the folder the tar is unpacked in, is refused.
"""

import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple, NoReturn

from data.corpora.range_reader import RangeReader
from data.errors import InputError
from data.store import ObjectInfo, RangeSource

_BLOCK_BYTES = 512
_OCTAL = b"01234567"
_MAX_SIZE_DIGITS = 20  # `int` refuses thousands of digits
_MAX_EXTENDED_HEADER_BYTES = 1 << 20
# How far behind a tar's end to look for another one; the usual padding is at most this long.
_LOOK_BEHIND_BYTES = 64 << 10

_FILE_TYPES = frozenset({tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE})
_EXTENDED_TYPES = frozenset(
    {tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.XHDTYPE, tarfile.XGLTYPE}
)
_OTHER_TYPES = {
    tarfile.LNKTYPE: "a hard link", tarfile.SYMTYPE: "a symbolic link", tarfile.CHRTYPE: "a device",
    tarfile.BLKTYPE: "a device", tarfile.FIFOTYPE: "a pipe", tarfile.GNUTYPE_SPARSE: "a sparse file",
}  # fmt: skip
_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}


@dataclass(frozen=True, slots=True, kw_only=True)
class TarSpan:
    """A tar: an object of the corpus, or a part of one (a tar in a tar)."""

    path: str
    """The object."""
    object_size_bytes: int
    etag: str
    """Of the object."""
    name: str
    """What messages and keys call it: the path, or OUTER.tar/INNER.tar."""
    offset: int = 0
    """Where the tar begins in the object."""
    size_bytes: int
    """Of the tar."""

    @staticmethod
    def of(info: ObjectInfo) -> "TarSpan":
        """Return an object that is a tar."""
        return TarSpan(
            path=info.path, object_size_bytes=info.size_bytes, etag=info.etag,
            name=info.path, size_bytes=info.size_bytes,
        )  # fmt: skip

    def inside(self, member: "TarMember") -> "TarSpan":
        """Return a member of this tar that is a tar."""
        name = f"{self.name}/{member.name}"
        return replace(self, name=name, offset=member.offset, size_bytes=member.size_bytes)


class TarMember(NamedTuple):
    """One regular file of a tar."""

    name: str
    """Without a leading `./`."""
    offset: int
    """Of its bytes, in the object."""
    size_bytes: int


def open_span(store: RangeSource, span: TarSpan) -> RangeReader:
    """Return what reads the span's headers, and its members on the way, in one pass."""
    return RangeReader(store, span.path, span.object_size_bytes)


def iter_members(reader: RangeReader, span: TarSpan) -> Iterator[TarMember]:
    """Yield the regular files of a tar in their order; folders are skipped.

    Raises `InputError`, naming the tar and the member, for a tar that is damaged, cut short,
    compressed or joined from several; for links, sparse files and devices; for a name that is
    absolute, has `..` in it or is not UTF-8. Raises `StoreError` where the store fails.
    """
    position, end = span.offset, span.offset + span.size_bytes
    _check_magic(reader.read(position, 8), span)
    about: dict[str, str] = {}  # what extended headers say of the next member, in pax's words
    while True:
        block = reader.read(position, _BLOCK_BYTES) if position + _BLOCK_BYTES <= end else b""
        if len(block) < _BLOCK_BYTES:
            _refuse(span, "has no end mark: it was cut short", "copy it again")
        if not any(block):
            _check_tail(reader, span, position)
            return
        header = _parse(block, span, position)
        data = position + _BLOCK_BYTES
        size_bytes = int(about.get("size", header.size)) if header.type in _FILE_TYPES else header.size
        position = data + -(-size_bytes // _BLOCK_BYTES) * _BLOCK_BYTES
        if size_bytes < 0 or position > end:
            what = f"ends within its member {header.name[:200]!r} of {size_bytes} bytes: it was cut short"
            _refuse(span, what, "copy it again")
        if header.type in _EXTENDED_TYPES:
            about |= _extended(reader, span, header.type, data, size_bytes)
            continue
        if header.type != tarfile.DIRTYPE:
            name = _checked_name(about.get("path", header.name), span)
            _check_type(header, about, name, span)
            yield TarMember(name, data, size_bytes)
        about = {}


def _check_magic(beginning: bytes, span: TarSpan) -> None:
    for magic, name in _COMPRESSED.items():
        if beginning.startswith(magic):
            _refuse(span, f"is compressed with {name}, so no range of it is an image", "unpack it")


class _Header(NamedTuple):
    """What `tarfile.TarInfo` calls these."""

    name: str
    size: int
    type: bytes


def _parse(block: bytes, span: TarSpan, position: int) -> _Header | tarfile.TarInfo:
    return _parse_plain(block) or _parse_any(block, span, position)


def _parse_plain(block: bytes) -> _Header | None:
    """Parse the header of a regular file with a short name, as nearly all are: in a third of the time.

    None for any other header, and for a damaged one. POSIX.1-1988: 100 bytes of name, octal digits for the
    size at 124 and the checksum at 148, the type at 156, the name's prefix at 345.
    """
    size, checksum = block[124:135], block[148:154]
    if block[156:157] != tarfile.REGTYPE or block[345] or size.strip(_OCTAL) or checksum.strip(_OCTAL):
        return None
    # The sum of all bytes, with the checksum's own eight as spaces.
    if block[135:136].strip(b"\0 ") or int(checksum, 8) != sum(block) - sum(block[148:156]) + 8 * 32:
        return None
    name, _, _ = block[:100].partition(b"\0")
    return _Header(name.decode(errors="surrogateescape"), int(size, 8), tarfile.REGTYPE)


def _parse_any(block: bytes, span: TarSpan, position: int) -> tarfile.TarInfo:
    try:
        return tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except tarfile.HeaderError as error:
        what = "is not a tar" if position == span.offset else "is damaged"
        _refuse(span, f"{what}: {error} at byte {position - span.offset}", "copy it again")


def _extended(reader: RangeReader, span: TarSpan, kind: bytes, start: int, size_bytes: int) -> dict[str, str]:
    """Read a header that describes the next member."""
    if size_bytes > _MAX_EXTENDED_HEADER_BYTES:
        what = f"has a header of {size_bytes} bytes, allowed are {_MAX_EXTENDED_HEADER_BYTES}"
        _refuse(span, what, "pack it again")
    if kind == tarfile.GNUTYPE_LONGNAME:
        return {"path": reader.read(start, size_bytes).rstrip(b"\0").decode(errors="surrogateescape")}
    if kind == tarfile.XHDTYPE:
        return _pax_records(reader.read(start, size_bytes), span)
    # Global records hold comments (git archive); the name of a link's target is of no use.
    return {}


def _pax_records(content: bytes, span: TarSpan) -> dict[str, str]:
    """Parse `LENGTH KEY=VALUE\\n` records; the length counts the whole record."""
    records: dict[str, str] = {}
    while content:
        digits, _, _ = content.partition(b" ")
        length = int(digits) if digits.isdigit() and len(digits) < 8 else 0
        key, separator, value = content[len(digits) + 1 : length - 1].partition(b"=")
        if not separator or content[length - 1 : length] != b"\n":
            _refuse(span, "has a damaged pax header", "copy it again")
        records[key.decode(errors="replace")] = value.decode(errors="surrogateescape")
        content = content[length:]
    size = records.get("size", "0")
    if not (size.isascii() and size.isdigit() and len(size) < _MAX_SIZE_DIGITS):
        _refuse(span, f"has a pax header with the size {size[:40]!r}", "copy it again")
    return records


def _checked_name(name: str, span: TarSpan) -> str:
    while name.startswith("./"):
        name = name[2:].lstrip("/")
    try:
        name.encode()
    except UnicodeEncodeError:
        _refuse(span, f"has a member {name[:200]!r} whose name is not UTF-8", "rename it")
    if name.startswith("/") or ".." in name.split("/") or "\0" in name:
        _refuse(
            span,
            f"has a member {name[:200]!r}, which would leave the folder it is unpacked in",
            "rename it with a relative name without '..'",
        )
    return name


def _check_type(header: _Header | tarfile.TarInfo, pax: Mapping[str, str], name: str, span: TarSpan) -> None:
    is_sparse = any(key.startswith("GNU.sparse.") for key in pax)
    if header.type in _FILE_TYPES and not is_sparse:
        return
    kind = "a sparse file" if is_sparse else _OTHER_TYPES.get(header.type, f"of the type {header.type!r}")
    what = f"has a member {name[:200]!r} that is {kind}; only plain files can be read in place"
    _refuse(span, what, "pack the files themselves (tar --dereference --hard-dereference, without --sparse)")


def _check_tail(reader: RangeReader, span: TarSpan, position: int) -> None:
    """Every tar reader stops at the end mark: what stands behind it would go unseen."""
    behind = min(span.offset + span.size_bytes - position, _LOOK_BEHIND_BYTES)
    if any(reader.read(position, behind)):
        _refuse(span, "goes on after its end mark: several tars were joined", "give each its own file")


def _refuse(span: TarSpan, what: str, advice: str) -> NoReturn:
    raise InputError(f"tar {span.name!r} {what}: {advice}, or leave it out")
