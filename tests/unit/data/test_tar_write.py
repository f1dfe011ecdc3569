import hashlib
import io
import tarfile
from pathlib import Path

import google_crc32c
from hypothesis import given, settings
from hypothesis import strategies as st

from data.tar_write import TarWriter, _head


def test_members_offsets_and_hashes_are_right(tmp_path: Path) -> None:
    members = {"a.png": b"", "b" * 150 + ".png": b"x" * 512, "c.cls": b"7" * 513}
    with TarWriter(tmp_path / "a.tar") as tar:
        first, *rest = members.items()
        offsets = [*tar.add([first]), *tar.add(rest)]
    content = (tmp_path / "a.tar").read_bytes()
    assert len(content) == tar.size_bytes
    assert len(content) % 10240 == 0
    assert hashlib.sha256(content).hexdigest() == tar.sha256
    assert google_crc32c.value(content) == tar.crc32c
    with tarfile.open(fileobj=io.BytesIO(content)) as opened:
        found = opened.getmembers()
        assert {m.name: opened.extractfile(m).read() for m in found} == members
        assert [m.offset_data for m in found] == offsets
        assert {(m.mtime, m.uid, m.gid, m.uname, m.gname, m.mode) for m in found} == {
            (0, 0, 0, "", "", 0o644)
        }


@settings(deadline=None)
@given(
    st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=120), st.integers(0, 9 * 10**9)
)
def test_heads_are_those_of_the_standard_library(name: str, size_bytes: int) -> None:
    info = tarfile.TarInfo(name)
    info.size, info.mode = size_bytes, 0o644
    assert _head(name, size_bytes) == info.tobuf(tarfile.GNU_FORMAT)
