import hashlib
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data import cifar10
from data.cifar10 import check_batches, read_batch, write_png_folders
from data.errors import InputError
from data.list_corpus import list_for_build
from data.sharding_config import ShardingConfig
from infra.store import open_store

CLASSES = [b"plane", b"car"]


def python2_pickle(batch: dict[bytes, object]) -> bytes:
    """Pickle as Python 2's numpy did in 2009: protocol 2, old module name, byte strings.

    Assembled from opcodes, since Python 3 writes neither byte strings nor `numpy.core`.
    """

    def text(value: bytes) -> bytes:
        return b"T" + len(value).to_bytes(4, "little") + value

    def items(value: object) -> bytes:
        if isinstance(value, np.ndarray):
            made = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85" + text(b"b") + b"\x87R"
            shape = b"".join(b"J" + size.to_bytes(4, "little") for size in value.shape)
            dtype = b"cnumpy\ndtype\n" + text(b"u1") + b"K\x00K\x01\x87R("
            dtype += b"K\x03" + text(b"|") + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
            return made + b"(K\x01(" + shape + b"t" + dtype + b"\x89" + text(value.tobytes()) + b"tb"
        if isinstance(value, list):
            return b"](" + b"".join(items(part) for part in value) + b"e"
        if isinstance(value, int):
            return b"J" + value.to_bytes(4, "little")
        assert isinstance(value, bytes)
        return text(value)

    body = b"".join(text(key) + items(value) for key, value in batch.items())
    return b"\x80\x02}(" + body + b"u."


@pytest.fixture
def batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Seven small files in the published format, with their own sums in place of the published ones."""
    folder = tmp_path / "batches"
    folder.mkdir()
    sums = {}
    for number, name in enumerate([*cifar10.BATCH_MD5, "batches.meta"]):
        if name == "batches.meta":
            content = python2_pickle({b"label_names": CLASSES, b"num_vis": 3072})
        else:
            data = np.random.default_rng(number).integers(0, 256, (4, 3072), np.uint8)
            filenames = [b"b%d_%d.png" % (number, i) for i in range(4)]
            content = python2_pickle({b"data": data, b"labels": [0, 1, 1, 0], b"filenames": filenames})
        (folder / name).write_bytes(content)
        sums[name] = hashlib.md5(content).hexdigest()
    monkeypatch.setattr(cifar10, "META_MD5", {"batches.meta": sums.pop("batches.meta")})
    monkeypatch.setattr(cifar10, "BATCH_MD5", sums)
    return folder


def test_png_folders_hold_the_published_pixels(batches: Path, tmp_path: Path) -> None:
    target = write_png_folders(batches, tmp_path / "png")
    listing = list_for_build(open_store(str(target)), ShardingConfig())
    assert listing.classes == ("car", "plane")
    assert {split: listing.totals[split].num_images for split in ("train", "eval")} == {
        "train": 20, "eval": 4,
    }  # fmt: skip
    data = np.random.default_rng(5).integers(0, 256, (4, 3072), np.uint8)
    for index, name in enumerate(("plane", "car", "car", "plane")):
        image = np.asarray(Image.open(target / "test" / name / f"b5_{index}.png"))
        # The format: 1024 red bytes in rows of 32, then green, then blue.
        np.testing.assert_array_equal(image[3, 7], data[index, [3 * 32 + 7, 1131 - 4, 2151]])


def test_listing_is_the_same_on_every_machine(batches: Path, tmp_path: Path) -> None:
    digests = [
        list_for_build(open_store(str(write_png_folders(batches, tmp_path / name))), ShardingConfig()).digest
        for name in ("a", "b")
    ]
    assert digests[0] == digests[1]


def test_written_once_whole_or_not_at_all(
    batches: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "png"

    def fail(*_: object) -> None:
        raise OSError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr(os, "utime", fail)
        with pytest.raises(OSError, match="no space"):
            write_png_folders(batches, target)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["batches"]
    write_png_folders(batches, target)
    (target / "train/car/b0_1.png").unlink()
    assert write_png_folders(batches, target) == target
    assert not (target / "train/car/b0_1.png").exists()


def test_foreign_folder_is_not_touched(batches: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    with pytest.raises(InputError, match="was not written by this"):
        write_png_folders(batches, tmp_path / "mine")


def test_wrong_and_missing_batches_are_named(batches: Path, tmp_path: Path) -> None:
    (batches / "data_batch_3").write_bytes(b"x")
    with pytest.raises(InputError, match=r"data_batch_3 has MD5 9dd4e4.*, published is"):
        write_png_folders(batches, tmp_path / "png")
    assert not (tmp_path / "png").exists()
    (batches / "data_batch_3").unlink()
    with pytest.raises(InputError, match="data_batch_3 is not there"):
        check_batches(batches)


class Hostile:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("touch /tmp/owned",)


@pytest.mark.parametrize(
    "content",
    [
        pickle.dumps(Hostile(), protocol=2),
        pickle.dumps(np.array([object()]), protocol=2),
        b"\x80\x02cnumpy\ndtype\nT\x01\x00\x00\x00OK\x00K\x01\x87R.",
        b"c__builtin__\neval\n.",
        b"cnumpy\nload\n.",
        b"\x80\x02](K\x01e.",
        b"",
    ],
    ids=["os.system", "object array", "object dtype", "eval", "numpy.load", "a list", "empty"],
)
def test_only_what_a_batch_needs_is_unpickled(content: bytes) -> None:
    with pytest.raises(InputError, match="not a CIFAR-10 batch"):
        read_batch(content)
