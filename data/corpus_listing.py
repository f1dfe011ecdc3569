"""What a corpus held when it was listed: totals in memory, rows sorted on disk once they are many."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from data.arrow import RecordBatch, Table, compute
from data.errors import InputError
from data.listing import LISTING_SCHEMA
from data.split import SPLITS
from data.spool import Spool
from data.stable_hash import digest_rows, stable_hash

LEFT_OUT = "left_out"
"""Stands for the split in rows whose label is not among the given classes."""

_ORDERED_SCHEMA: Any = LISTING_SCHEMA.append(pa.field("order", pa.uint64()))
_NO_HASHES = np.zeros(0, dtype=np.uint64)
_DIGESTED = ("key", "offset", "size_bytes", "etag", "labels", "split")


@dataclass(slots=True, kw_only=True)
class SplitTotals:
    """How much of a listing is in one split."""

    num_images: int = 0
    size_bytes: int = 0


class CorpusListing:
    """The images of a corpus, each with its split; `data.list_corpus` fills it."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self._spools = {name: Spool(_ORDERED_SCHEMA, ("order", "key")) for name in (*SPLITS, LEFT_OUT)}
        self._orders = Spool(pa.schema([("order", pa.uint64())]), ("order",))
        self._digests = np.zeros(2, dtype=np.uint64)
        self.totals = {name: SplitTotals() for name in self._spools}
        """By split."""
        self.counts: Counter[tuple[str, str]] = Counter()
        """Images by split and class name."""
        self.classes: tuple[str, ...] = ()
        """As asked for, else sorted by name."""
        self.labels_seen: set[str] = set()
        """Every label of the corpus, where only some classes were asked for."""

    @property
    def num_images(self) -> int:
        """Of both splits and left out."""
        return sum(total.num_images for total in self.totals.values())

    @property
    def size_bytes(self) -> int:
        """Of both splits and left out."""
        return sum(total.size_bytes for total in self.totals.values())

    @property
    def digest(self) -> str:
        """128 bits (hex) over each record's key, offset, size, etag, labels and split.

        It is the sum of the rows' digests, so that the order of listing does not matter: two listings share
        it only if they hold the same rows (keys come once) or by chance.
        """
        return f"{int(self._digests[0]):016x}{int(self._digests[1]):016x}"

    def sorted_rows(self, split: str) -> Iterator[Table]:
        """Yield a split's rows (`LISTING_SCHEMA`, and `order`), by a hash of key and seed."""
        return self._spools[split].parts()

    def find(self, keys: Sequence[str]) -> dict[str, dict[str, Any]]:
        """Return the rows with these keys, by key; it reads the listing once."""
        wanted = pa.array(keys, pa.string())
        found: dict[str, dict[str, Any]] = {}
        for spool in self._spools.values():
            for part in spool.parts() if keys else ():
                rows = part.filter(compute.is_in(part.column("key"), value_set=wanted))
                found.update({row["key"]: row for row in rows.to_pylist()})
        return found

    def add(self, batch: RecordBatch) -> None:
        """Take rows whose split is known."""
        order = stable_hash(batch.column("key"), seed=self.seed, purpose="order")
        digests = digest_rows(batch.column(name) for name in _DIGESTED)
        self._digests += np.array([digest.sum(dtype=np.uint64) for digest in digests], dtype=np.uint64)
        ordered = pa.RecordBatch.from_arrays([*batch.columns, pa.array(order)], schema=_ORDERED_SCHEMA)
        self._orders.add(ordered.select(["order"]))
        for name, spool in self._spools.items():
            rows = ordered.filter(compute.equal(ordered.column("split"), name))
            if not rows.num_rows:
                continue
            spool.add(rows)
            self.totals[name].num_images += rows.num_rows
            self.totals[name].size_bytes += compute.sum(rows.column("size_bytes")).as_py()
            for entry in compute.value_counts(rows.column("labels").flatten()).to_pylist():
                self.counts[name, entry["values"]] += entry["counts"]

    def check_keys(self) -> None:
        """Raise `InputError` where two images have one key, in whatever splits."""
        found = [_NO_HASHES]
        for part in self._orders.parts():  # equal keys have equal hashes, side by side once they are sorted
            hashes = part.column("order").to_numpy()
            found.append(hashes[1:][hashes[1:] == hashes[:-1]])
        repeated = np.concatenate(found)
        if not len(repeated):
            return
        wanted, seen = pa.array(repeated), dict[str, dict[str, Any]]()
        for spool in self._spools.values():
            for part in spool.parts():
                for row in part.filter(compute.is_in(part.column("order"), value_set=wanted)).to_pylist():
                    twin = seen.setdefault(row["key"], row)
                    if twin is not row:
                        raise InputError(
                            f"two images have the key {row['key']!r} ({_place(twin)} and {_place(row)}): "
                            "keys must differ; rename or remove one"
                        )


def _place(row: dict[str, Any]) -> str:
    return row["path"] if row["offset"] is None else f"{row['path']} at byte {row['offset']}"
