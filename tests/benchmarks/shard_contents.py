"""What the writers of `bench_shard` wrote, read back by each one's own library: the same images or not."""

import hashlib
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any


def read_tars(out: str) -> Iterator[bytes]:
    for path in sorted(Path(out).rglob("*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                if member.name.endswith(".jpg"):
                    content = tar.extractfile(member)
                    assert content is not None
                    yield content.read()


def read_mds(out: str) -> Iterator[bytes]:
    from streaming import StreamingDataset
    from streaming.base.util import clean_stale_shared_memory

    clean_stale_shared_memory()
    return (sample["image"] for sample in StreamingDataset(local=out, batch_size=1))


def read_litdata(out: str) -> Iterator[bytes]:
    from litdata import StreamingDataset

    return (sample["image"] for sample in StreamingDataset(out))


def digest(images: Iterable[bytes]) -> dict[str, Any]:
    """Return the number of images and one hash over their set, whatever their order."""
    hashes = sorted(hashlib.sha256(image).digest() for image in images)
    return {"num_images": len(hashes), "digest": hashlib.sha256(b"".join(hashes)).hexdigest()}
