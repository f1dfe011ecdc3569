"""Where a loader's time goes: each thread counts for itself, and the consumer adds up once a batch."""

from dataclasses import dataclass, fields


@dataclass(slots=True)
class LoaderStats:
    """Counters over some batches of one rank. Seconds are summed over the threads that decode."""

    num_batches: int = 0
    num_images: int = 0
    fetch_s: float = 0.0
    """Reading from cache or store, checksums included."""
    decode_s: float = 0.0
    read_bytes: int = 0
    """Of the images, wherever they came from."""
    num_cached: int = 0
    """Images that came from the node's cache."""
    num_fetched_again: int = 0
    """Images whose checksum was wrong at the first reading."""
    num_ready: int = 0
    """Batches that stood ready when one was asked for, the one taken included, summed over the requests."""

    def add(self, other: "LoaderStats") -> None:
        """Add another's counts."""
        for field in fields(self):
            setattr(self, field.name, getattr(self, field.name) + getattr(other, field.name))

    def metrics(self) -> dict[str, float]:
        """Return what MLflow shows: means over a step of this rank; empty before the first batch."""
        if self.num_batches == 0:
            return {}
        return {
            "data/fetch_s": self.fetch_s / self.num_batches,
            "data/decode_s": self.decode_s / self.num_batches,
            "data/read_bytes": self.read_bytes / self.num_batches,
            "data/queue_depth": self.num_ready / self.num_batches,
            "data/cache_hit_share": self.num_cached / max(1, self.num_images),
            "data/fetched_again": float(self.num_fetched_again),
        }
