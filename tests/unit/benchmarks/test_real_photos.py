"""The photographs are the same in each run, or their lack is one line."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.benchmarks.real_photos import PhotoSet, photo_files
from tests.benchmarks.venvs import BenchmarkError

SMALL = PhotoSet(name="small", num_photos=5, min_size_px=(40, 30), max_size_px=(60, 50), max_zoom=2.0)


def unpacked(folder: Path) -> Path:
    """Lay out two photographs as if the packages had been downloaded."""
    files = folder / "packages" / "files"
    files.mkdir(parents=True)
    for number in range(2):
        pixels = np.random.default_rng(number).integers(0, 256, (1000, 1001 + number, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(files / f"{number}.jpg")
    Image.new("RGB", (20, 20)).save(files / "thumbnail.jpg")
    (folder / "packages" / "done").touch()
    return folder


def test_crops_are_the_same_each_time(tmp_path: Path) -> None:
    found = [photo_files(unpacked(tmp_path / name), SMALL) for name in ("a", "b")]
    assert [path.read_bytes() for path in found[0]] == [path.read_bytes() for path in found[1]]
    assert len({path.read_bytes() for path in found[0]}) == SMALL.num_photos
    for path in found[0]:
        with Image.open(path) as image:
            assert 40 <= image.width <= 60
            assert 30 <= image.height <= 50


def test_an_interrupted_set_is_made_again(tmp_path: Path) -> None:
    whole = photo_files(unpacked(tmp_path), SMALL)
    wanted = whole[0].read_bytes()
    whole[0].write_bytes(b"cut")
    (whole[0].parent / "done").unlink()
    assert photo_files(tmp_path, SMALL)[0].read_bytes() == wanted


def test_no_apt_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BenchmarkError, match=r"apt-get is not there: .*run it on Debian or Ubuntu"):
        photo_files(tmp_path, SMALL)
