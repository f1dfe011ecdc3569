"""What an order will need soon, fetched ahead: shards into the cache, and images that no cache holds."""

from typing import Protocol

import numpy as np

from data.image_read_ahead import ImageReadAhead
from data.order import RankBatch
from data.shard_prefetch import ShardOpener, ShardPrefetch
from data.tar_reader import StoredImage


class SampleReader(ShardOpener, Protocol):
    """`data.tar_reader.ShardReader`, or `data.sources.MixedReader` over several of them."""

    def read(self, shard: int, row: int) -> StoredImage:
        """Return one sample; for several threads at once."""
        ...

    def start_epoch(self) -> None:
        """Say that an epoch begins."""
        ...

    def is_streamed(self, shard: int) -> bool:
        """Say whether a shard's images are known to come from the store, one by one."""
        ...


class Prefetch:
    """Fetches what batches to come consist of. Close it after the threads that read."""

    def __init__(self, reader: SampleReader) -> None:
        self._reader = reader
        self._shards = ShardPrefetch(reader)
        self._images = ImageReadAhead(reader.read)
        self.read = self._images.read
        """Returns one sample, as the reader's does."""

    def want(self, rows: RankBatch) -> None:
        """Ask for a batch; returns at once. For one thread, which asks in the order of use."""
        is_real_B = rows.weights_B > 0
        shards: list[int] = np.unique(rows.shard_B[is_real_B]).tolist()
        self._shards.want(shards)
        streamed = {shard for shard in shards if self._reader.is_streamed(shard)}
        if streamed:
            places = zip(rows.shard_B[is_real_B].tolist(), rows.row_B[is_real_B].tolist(), strict=True)
            self._images.want(place for place in places if place[0] in streamed)

    def close(self) -> None:
        """Wait for what is on its way; forget the rest."""
        self._images.close()
        self._shards.close()
