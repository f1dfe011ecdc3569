"""Natural photographs as JPEGs, thousands of them: crops of the wallpapers in Debian's packages.

Downloaded once with `apt-get download`, which needs no root, and unpacked with `dpkg -x`; nothing is
installed. The crops are drawn with a fixed seed and kept, so that each run sees the same bytes.
"""

import random
import shutil
import subprocess
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from tests.benchmarks.photos import png_files
from tests.benchmarks.venvs import BenchmarkError

_PACKAGES = (
    "lomiri-wallpapers-16.04",
    "lomiri-wallpapers-20.04",
    "mate-backgrounds",
    "opencv-doc",
    "plasma-workspace-wallpapers",
)
_MIN_SOURCE_SIDE_PX = 1000
_QUALITIES = (75, 85, 90, 95)
_DOWNLOAD_TIMEOUT_S = 900
_DONE = "done"
"""Written last into a folder that is whole."""


@dataclass(frozen=True, kw_only=True)
class PhotoSet:
    """Photographs of one kind."""

    name: str
    num_photos: int
    min_size_px: tuple[int, int]
    """Width, height; both are drawn between these and the largest."""
    max_size_px: tuple[int, int]
    max_zoom: float
    """A crop covers up to so many times its own width and height, where the photograph has them."""


WEB_PHOTOS = PhotoSet(
    name="web", num_photos=512, min_size_px=(500, 375), max_size_px=(500, 375), max_zoom=4.0
)
"""ImageNet's usual size."""
LARGE_PHOTOS = PhotoSet(
    name="large", num_photos=128, min_size_px=(2000, 1500), max_size_px=(2000, 1500), max_zoom=1.3
)
MIXED_PHOTOS = PhotoSet(
    name="mixed", num_photos=6000, min_size_px=(256, 256), max_size_px=(1024, 1024), max_zoom=2.0
)


def photo_files(folder: Path, photos: PhotoSet) -> list[Path]:
    """Return the files of a set, made below `folder` where they are not there yet.

    Raises `BenchmarkError` where Debian's packages cannot be had.
    """
    target = folder / f"{photos.name}-{photos.num_photos}"
    if not (target / _DONE).exists():
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir(parents=True)
        for number, image, quality in _crops(_sources(folder / "packages"), photos):
            image.save(target / f"{number:05d}.jpg", "JPEG", quality=quality)
        (target / _DONE).touch()
    return sorted(target.glob("*.jpg"))


def small_files(folder: Path, num_photos: int) -> list[Path]:
    """Return images of CIFAR-10 as JPEGs."""
    target = folder / f"cifar10-{num_photos}"
    if not (target / _DONE).exists():
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir(parents=True)
        for number, path in enumerate(png_files(num_photos)):
            with Image.open(path) as image:
                image.convert("RGB").save(target / f"{number:05d}.jpg", "JPEG", quality=95)
        (target / _DONE).touch()
    return sorted(target.glob("*.jpg"))


def _sources(folder: Path) -> list[Path]:
    """Return the packages' JPEGs of some size, downloading and unpacking what is missing."""
    if not (folder / _DONE).exists():
        _download(folder)
    found: list[Path] = []
    for path in sorted((folder / "files").rglob("*.jp*g")):
        if path.is_file() and not path.is_symlink():
            with Image.open(path) as image:
                if image.format == "JPEG" and min(image.size) >= _MIN_SOURCE_SIDE_PX:
                    found.append(path)
    if not found:
        raise BenchmarkError(f"no photographs in {folder}: remove it, and it is downloaded anew")
    return found


def _download(folder: Path) -> None:
    for program in ("apt-get", "dpkg"):
        if shutil.which(program) is None:
            raise BenchmarkError(
                f"{program} is not there: the photographs are those of Debian's packages "
                f"{', '.join(_PACKAGES)}; run it on Debian or Ubuntu"
            )
    folder.mkdir(parents=True, exist_ok=True)
    _run(["apt-get", "download", *_PACKAGES], folder)
    for package in sorted(folder.glob("*.deb")):
        _run(["dpkg", "-x", str(package), "files"], folder)
        package.unlink()
    (folder / _DONE).touch()


def _run(command: list[str], folder: Path) -> None:
    done = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, timeout=_DOWNLOAD_TIMEOUT_S, check=False
    )
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines() or ["no output"]
        raise BenchmarkError(
            f"{' '.join(command[:2])} failed ({lines[-1]}): the photographs come from Debian's "
            "packages; is there a network, and does `apt-get update` help?"
        )


def _crops(sources: list[Path], photos: PhotoSet) -> Iterator[tuple[int, Image.Image, int]]:
    """Yield number, pixels and JPEG quality; each photograph is decoded once."""
    draw = random.Random(photos.name)
    wanted: dict[int, list[tuple[int, int, int]]] = defaultdict(list)
    fitting = [path for path in sources if _fits(path, photos)]
    for number in range(photos.num_photos):
        width = draw.randint(photos.min_size_px[0], photos.max_size_px[0])
        height = draw.randint(photos.min_size_px[1], photos.max_size_px[1])
        wanted[number % len(fitting)].append((number, width, height))
    for source, crops in sorted(wanted.items()):
        with Image.open(fitting[source]) as opened:
            image = opened.convert("RGB")
        for number, width, height in crops:
            zoom = draw.uniform(1.0, min(photos.max_zoom, image.width / width, image.height / height))
            left = draw.randint(0, image.width - int(width * zoom))
            top = draw.randint(0, image.height - int(height * zoom))
            box = (left, top, left + int(width * zoom), top + int(height * zoom))
            crop = image.resize((width, height), Image.Resampling.LANCZOS, box=box)
            yield number, crop, draw.choice(_QUALITIES)


def _fits(path: Path, photos: PhotoSet) -> bool:
    with Image.open(path) as image:
        return image.width >= photos.max_size_px[0] and image.height >= photos.max_size_px[1]
