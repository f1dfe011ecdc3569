"""The walk over a JPEG's markers finds what Pillow finds."""

import io
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from data.jpeg_header import read_jpeg_header
from tests.small_dataset import encode, picture


@pytest.mark.parametrize(("subsampling", "block_height"), [(0, 8), (1, 8), (2, 16)])
@pytest.mark.parametrize("progressive", [False, True])
def test_sizes_and_kind(subsampling: int, block_height: int, progressive: bool) -> None:
    content = encode(picture(37, 90, 1), "jpg", subsampling=subsampling, progressive=progressive)
    header = read_jpeg_header(content)
    assert header is not None
    assert (header.height, header.width, header.orientation) == (37, 90, 1)
    assert header.block_height == block_height
    assert header.is_top_down is not progressive
    assert content[header.height_offset : header.height_offset + 2] == (37).to_bytes(2, "big")


@settings(deadline=None, max_examples=60)
@given(
    orientation=st.integers(0, 10),
    big_endian=st.booleans(),
    others=st.lists(st.sampled_from([0x010E, 0x010F, 0x0131, 0x8298]), unique=True),
    comment=st.binary(max_size=300),
)
def test_orientation_is_pillows(
    orientation: int, big_endian: bool, others: list[int], comment: bytes
) -> None:
    exif = Image.Exif()
    exif.endian = ">" if big_endian else "<"
    for tag in others:
        exif[tag] = "text of more than four bytes"
    exif[0x0112] = orientation
    content = encode(picture(16, 16, 1), "jpg", exif=exif, comment=comment)
    with Image.open(io.BytesIO(content)) as image:
        found = image.getexif().get(0x0112, 1)
    header = read_jpeg_header(content)
    assert header is not None
    assert header.orientation == (found if 1 <= found <= 8 else 1)


def test_odd_files_have_no_header_or_no_orientation() -> None:
    whole = encode(picture(20, 20, 1), "jpg")
    for content in (
        whole[:3],
        whole[:40],
        b"\xff\xd8\xff\xda\x00\x08" + bytes(20),
        b"\xff\xd8\xff\xe0no marker",
    ):
        assert read_jpeg_header(content) is None
    # A directory that points out of the file, and one of an unknown byte order.
    for tiff in (b"MM\0*" + struct.pack(">I", 2**31), b"XX\0*" + bytes(60)):
        segment = b"\xff\xe1" + struct.pack(">H", 8 + len(tiff)) + b"Exif\0\0" + tiff
        header = read_jpeg_header(whole[:2] + segment + whole[2:])
        assert header is not None
        assert header.orientation == 1


def test_fill_bytes_before_a_marker() -> None:
    whole = encode(picture(20, 24, 1), "jpg")
    header = read_jpeg_header(whole[:2] + b"\xff\xff" + whole[2:])
    assert header is not None
    assert (header.height, header.width) == (20, 24)


@settings(deadline=None, max_examples=200)
@given(data=st.data())
def test_damaged_bytes_never_raise(data: st.DataObject) -> None:
    content = bytearray(encode(picture(16, 16, 1), "jpg", exif=Image.Exif()))
    for _ in range(data.draw(st.integers(1, 6))):
        content[data.draw(st.integers(2, 400))] = data.draw(st.integers(0, 255))
    header = read_jpeg_header(bytes(content[: data.draw(st.integers(0, len(content)))]))
    assert header is None or header.height >= 0
