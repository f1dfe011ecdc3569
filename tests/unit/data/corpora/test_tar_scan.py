import gzip
import tarfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data.corpora.range_reader import RangeReader, open_file
from data.corpora.tar_scan import TarMember, iter_members, open_span
from data.errors import InputError
from data.store import Store
from infra.folder_store import FolderStore
from tests.image_samples import fill
from tests.tar_samples import entry, span_of, tar_bytes, tar_of

NAMES = {
    "plain.jpg": b"a",
    "in/a/folder/img.v2.jpg": b"b" * 512,
    "a space and ü.png": b"",
    "y" * 96 + ".jpg": b"fills its field of the header to the last byte",
    "x" * 1000 + ".jpg": b"c" * 513,
    "/".join(["deep" * 20] * 3) + ".jpg": b"d",
}


def members_of(store: Store, path: str) -> list[TarMember]:
    span = span_of(store, path)
    return list(iter_members(open_span(store, span), span))


def scan(folder: Path, content: bytes) -> list[TarMember]:
    return members_of(fill(folder, {"some.tar": content}), "some.tar")


@pytest.mark.parametrize("tar_format", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_members_are_ranges_of_the_object(tmp_path: Path, tar_format: int) -> None:
    content = tar_bytes({f"./{name}": body for name, body in NAMES.items()}, tar_format)
    found = scan(tmp_path, content)
    assert {m.name: content[m.offset : m.offset + m.size_bytes] for m in found} == NAMES


def test_old_tars_folders_and_comments(tmp_path: Path) -> None:
    """`git archive` begins with a global pax record; tars from 1979 have no magic."""
    with_folder = tar_of([entry("folder", tarfile.DIRTYPE), (tarfile.TarInfo("folder/a.jpg"), b"abc")])
    assert [m.name for m in scan(tmp_path / "folder", with_folder)] == ["folder/a.jpg"]

    long_folder = tar_of([entry("x" * 200, tarfile.DIRTYPE), (tarfile.TarInfo("a.jpg"), b"abc")])
    assert [m.name for m in scan(tmp_path / "long", long_folder)] == ["a.jpg"]

    head = tarfile.TarInfo.create_pax_global_header({"comment": "0a1b"})
    assert [m.name for m in scan(tmp_path / "git", head + with_folder)] == ["folder/a.jpg"]

    old = bytearray(tar_bytes({"a.jpg": b"abc"}))
    old[156:157], old[257:265] = b"\0", bytes(8)
    old[148:156] = b"%06o\0 " % (sum(old[:148]) + sum(old[156:512]) + 8 * 32)
    assert [m.name for m in scan(tmp_path / "old", bytes(old))] == ["a.jpg"]


def test_a_size_that_is_not_octal_is_refused(tmp_path: Path) -> None:
    content = bytearray(tar_bytes({"a.jpg": b"abc"}))
    content[124:136] = b"00000000009\0"
    content[148:156] = b"%06o\0 " % (sum(content[:148]) + sum(content[156:512]) + 8 * 32)
    with pytest.raises(InputError, match=r"'some\.tar' is not a tar"):
        scan(tmp_path, bytes(content))


def test_a_tar_in_a_tar(tmp_path: Path) -> None:
    inner = tar_bytes({"n1_1.JPEG": b"one", "n1_2.JPEG": b"two"})
    content = tar_bytes({"n0.tar": tar_bytes({}), "n1.tar": inner})
    store = fill(tmp_path, {"train.tar": content})
    outer = span_of(store, "train.tar")
    reader = open_span(store, outer)
    spans = [outer.inside(member) for member in iter_members(reader, outer)]
    assert [list(iter_members(reader, span)) for span in spans[:1]] == [[]]
    found = list(iter_members(open_span(store, spans[1]), spans[1]))
    assert [(m.name, content[m.offset : m.offset + m.size_bytes]) for m in found] == [
        ("n1_1.JPEG", b"one"), ("n1_2.JPEG", b"two"),
    ]  # fmt: skip


@given(
    names=st.lists(
        st.text(
            st.characters(exclude_categories=["Cs"], exclude_characters="/.\0"), min_size=1, max_size=200
        ),
        unique=True,
        max_size=8,
    ),
    sizes=st.lists(st.integers(0, 2000), min_size=8, max_size=8),
    tar_format=st.sampled_from([tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]),
)
@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_scan_agrees_with_the_standard_library(
    tmp_path: Path, names: list[str], sizes: list[int], tar_format: int
) -> None:
    members = {name: b"x" * size for name, size in zip(names, sizes, strict=False)}
    content = tar_bytes(members, tar_format)
    (tmp_path / "some.tar").write_bytes(content)
    with tarfile.open(tmp_path / "some.tar") as tar:
        expected = [TarMember(m.name, m.offset_data, m.size) for m in tar]
    assert members_of(FolderStore(root=tmp_path), "some.tar") == expected


def test_big_members_are_not_read(tmp_path: Path) -> None:
    big = 5 << 20
    store = CountingStore(root=tmp_path)
    (tmp_path / "some.tar").write_bytes(tar_bytes({f"{i}.jpg": bytes(big) for i in range(4)}))
    assert [m.size_bytes for m in members_of(store, "some.tar")] == [big] * 4
    assert sum(store.reads) < 5 << 20, "one piece and some headers"


def test_small_members_are_read_in_big_pieces(tmp_path: Path) -> None:
    store = CountingStore(root=tmp_path)
    (tmp_path / "some.tar").write_bytes(tar_bytes({f"{i}.jpg": bytes(100_000) for i in range(100)}))
    assert len(members_of(store, "some.tar")) == 100
    assert len(store.reads) <= 4
    assert max(store.reads) <= 4 << 20


class CountingStore(FolderStore):
    """A folder that knows how much was asked of it."""

    def __init__(self, *, root: Path) -> None:
        super().__init__(root=root)
        object.__setattr__(self, "reads", [])

    reads: list[int]

    def get_range(self, path: str, start: int, size_bytes: int) -> bytes:
        self.reads.append(size_bytes)
        return FolderStore.get_range(self, path, start, size_bytes)


def _pax(name: str, content: bytes, **records: str) -> bytes:
    info = tarfile.TarInfo(name)
    info.pax_headers = {key.replace("__", "."): value for key, value in records.items()}
    return tar_of([(info, content)], tarfile.PAX_FORMAT)


GOOD = tar_bytes({"a.jpg": b"a" * 600, "b.jpg": b"b"})
DAMAGED = GOOD[:1540] + b"\xff" + GOOD[1541:]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (tar_bytes({"../a.jpg": b"x"}), r"member '../a.jpg', which would leave the folder"),
        (tar_bytes({"a/../../b.jpg": b"x"}), r"would leave the folder"),
        (tar_bytes({"/etc/a.jpg": b"x"}), r"'/etc/a.jpg', which would leave"),
        (tar_of([entry("a.jpg", tarfile.SYMTYPE, linkname="b")]), "'a.jpg' that is a symbolic link"),
        (tar_of([entry("a.jpg", tarfile.LNKTYPE, linkname="b")]), "'a.jpg' that is a hard link"),
        (tar_of([entry("a.jpg", tarfile.CHRTYPE)]), "'a.jpg' that is a device"),
        (tar_of([entry("a.jpg", tarfile.GNUTYPE_SPARSE)]), "'a.jpg' that is a sparse file"),
        (tar_of([entry("a.jpg", b"V")]), "'a.jpg' that is of the type b'V'"),
        (_pax("a.jpg", b"x", GNU__sparse__major="1"), "'a.jpg' that is a sparse file"),
        (_pax("a.jpg", b"x", path="../../evil.jpg"), "would leave the folder"),
        (_pax("a.jpg", b"x", size="-1"), "pax header with the size '-1'"),
        # These two ended in a traceback.
        (_pax("a.jpg", b"x", size="²"), "pax header with the size '²'"),
        (_pax("a.jpg", b"x", size="9" * 5000), "pax header with the size '9999"),
        (_pax("a.jpg", b"x", size="99999999999"), "ends within its member 'a.jpg' of 99999999999 bytes"),
        (tar_bytes({"a\udcff.jpg": b"x"}), "whose name is not UTF-8"),
        (b"no tar at all" * 100, "is not a tar: invalid header at byte 0"),
        (b"", "has no end mark: it was cut short"),
        (GOOD[:100], "has no end mark"),
        (GOOD[:700], "ends within its member 'a.jpg' of 600 bytes"),
        (GOOD[:2560], "has no end mark"),
        (DAMAGED, "is damaged: bad checksum at byte 1536"),
        (GOOD + GOOD, "several tars were joined"),
        (gzip.compress(GOOD), "is compressed with gzip"),
    ],
)  # fmt: skip
def test_tricks_and_damages_are_one_clear_line(tmp_path: Path, content: bytes, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        scan(tmp_path, content)
    assert str(caught.value).startswith("tar 'some.tar' ")
    assert "\n" not in str(caught.value)


def test_a_header_cannot_fill_the_memory(tmp_path: Path) -> None:
    info = tarfile.TarInfo("././@LongLink")
    info.type = tarfile.GNUTYPE_LONGNAME
    with pytest.raises(InputError, match="has a header of 2000000 bytes, allowed are 1048576"):
        scan(tmp_path, tar_of([(info, b"x" * 2_000_000)]))


def test_ranges_in_any_order(tmp_path: Path) -> None:
    content = b"".join(number.to_bytes(4, "big") for number in range(2_000_000))
    reads = [
        (0, 10),
        (5, 4_500_000),
        (3, 7),
        (7_999_000, 5_000),
        (8_000_000, 5),
        (9_000_000, 0),
        (2_000_000, 6),
    ]
    store = FolderStore(root=tmp_path)
    (tmp_path / "numbers").write_bytes(content)
    reader = RangeReader(store, "numbers", len(content))
    for start, size in reads:
        assert reader.read(start, size) == content[start : start + size]
    (info,) = store.list()
    with open_file(store, info) as file:
        for start, size in reads:
            file.seek(start)
            assert file.read(size) == content[start : start + size]
        assert file.seek(-4, 2) == len(content) - 4
        assert file.read() == content[-4:]


def test_span_says_where(tmp_path: Path) -> None:
    store = fill(tmp_path, {"out.tar": tar_bytes({"in.tar": b"junk" * 300})})
    outer = span_of(store, "out.tar")
    (member,) = iter_members(open_span(store, outer), outer)
    span = outer.inside(member)
    with pytest.raises(InputError, match=r"tar 'out.tar/in.tar' is not a tar"):
        list(iter_members(open_span(store, span), span))
