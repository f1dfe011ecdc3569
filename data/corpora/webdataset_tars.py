"""Existing WebDataset tars as a corpus: their images are ranges of the tars, nothing is copied."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

from data.arrow import RecordBatch
from data.corpora.file_listings import FileListings
from data.corpora.labels import class_name, split_of_path
from data.corpora.tar_listing import list_tars, listing_of_tar
from data.corpora.tar_samples import scan_samples
from data.corpora.tar_scan import TarSpan
from data.corpora.tasks import MapTasks
from data.errors import InputError
from data.store import ObjectInfo, Store

_JSON_PREFIX = "json:"


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleLabels:
    """Where a sample's label is."""

    source: str = "cls"
    """`cls`: the member beside the image; `json:FIELD`: a field of the JSON beside it (`a.b`: b inside a)."""
    class_names: tuple[str, ...] = ()
    """What class indices stand for; without it an index is the class's name."""

    def __post_init__(self) -> None:
        if self.source != "cls" and not self.source.removeprefix(_JSON_PREFIX):
            raise InputError("label is 'json:' without a field: give json:FIELD or cls")
        if self.source != "cls" and not self.source.startswith(_JSON_PREFIX):
            raise InputError(f"label is {self.source!r}: give cls or json:FIELD")

    def of(self, sample: Mapping[str, Any], where: str) -> list[str]:
        """Return the class names of a row of `SAMPLE_SCHEMA`; `where` opens the messages."""
        if self.source == "cls":
            if sample["cls"] is None:
                raise InputError(f"{where} has no .cls beside its image: add it, or give label json:FIELD")
            return [class_name(sample["cls"], self.class_names, where)]
        value = self._field(sample["json"], where)
        values: list[Any] = value if isinstance(value, list) else [value]
        for item in values:
            if isinstance(item, bool) or not isinstance(item, str | int):
                raise InputError(
                    f"{where} has the label {item!r} in its JSON: names and whole numbers are allowed"
                )
        if not values:
            raise InputError(f"{where} has an empty list of labels: give at least one")
        return [class_name(item, self.class_names, where) for item in values]

    def _field(self, text: str | None, where: str) -> Any:
        if text is None:
            raise InputError(f"{where} has no .json beside its image: add it, or give label cls")
        try:
            value: Any = json.loads(text)
        except (ValueError, RecursionError) as error:  # or a number of thousands of digits, or deeply nested
            raise InputError(f"{where} has a .json that is not JSON: {error}") from None
        field = self.source.removeprefix(_JSON_PREFIX)
        for part in field.split("."):
            if not isinstance(value, dict) or part not in value:
                fields = ", ".join(sorted(map(str, value))[:20]) if isinstance(value, dict) else "none"
                raise InputError(f"{where} has no field {part!r} in its JSON; there are: {fields}")
            value = value[part]
        return value


@dataclass(frozen=True, slots=True, kw_only=True)
class WebDatasetReader:
    """Lists WebDataset tars to be sharded again; a key is TAR/SAMPLE.EXTENSION."""

    store: Store
    tars: tuple[ObjectInfo, ...]
    run: MapTasks
    listings: FileListings
    labels: SampleLabels = field(default_factory=SampleLabels)
    image_extension: str = ""
    """Which member is the image, where samples have several."""

    @property
    def uri(self) -> str:
        """The corpus's."""
        return self.store.uri

    def record_batches(self) -> Iterator[RecordBatch]:
        """Yield the images of all tars; the split is what a tar's path says, see `split_of_path`."""
        scan = partial(
            list_samples, store=self.store, labels=self.labels, image_extension=self.image_extension
        )
        yield from list_tars(
            [TarSpan.of(info) for info in self.tars],
            scan,
            decided_by=("webdataset", self.store.uri, asdict(self.labels), self.image_extension),
            listings=self.listings,
            run=self.run,
        )


def list_samples(
    span: TarSpan, *, store: Store, labels: SampleLabels, image_extension: str
) -> Iterator[RecordBatch]:
    """Yield the listing of one tar (`LISTING_SCHEMA`). Raises as `scan_samples`, and for missing labels."""
    split = split_of_path(span.name)
    for batch in scan_samples(span, store=store, image_extension=image_extension):
        samples = batch.to_pylist()
        yield listing_of_tar(
            span,
            keys=[f"{span.name}/{sample['key']}.{sample['extension']}" for sample in samples],
            offsets=batch.column("offset"),
            sizes_bytes=batch.column("size_bytes"),
            labels=[labels.of(s, f"sample {s['key'][:200]!r} of tar {span.name!r}") for s in samples],
            split=split,
        )
