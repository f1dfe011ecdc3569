"""Hashes that decide splits, orders and samples of a corpus: equal on every machine and run."""

import hashlib


def stable_hash(text: str, *, seed: int, purpose: str) -> int:
    """Return a 64-bit hash of `text`, keyed by the seed and by what it decides.

    `purpose` (at most 16 ASCII characters) keeps decisions independent: without it the images
    with the lowest hashes would be the eval split and the first shard at once.
    """
    digest = hashlib.blake2b(
        text.encode(), digest_size=8, key=str(seed).encode(), person=purpose.encode("ascii")
    ).digest()
    return int.from_bytes(digest, "big")
