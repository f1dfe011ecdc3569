"""ImageNet's own files as a corpus: an image is a range of a tar, or of a tar in a tar.

Files: `ILSVRC2012_img_train.tar` and `*_whole.tar` (a tar of one tar a synset), `n01440764.tar` (one
synset, as ImageNet-21K comes), `ILSVRC2012_img_val.tar` with a list of its labels. Source: the
ILSVRC2012 development kit's readme (class numbers count from 1, in the order of its meta.mat).
"""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any, TypeAlias

import pyarrow as pa

from data.arrow import RecordBatch, Table
from data.corpora.class_folders import IMAGE_EXTENSIONS
from data.corpora.file_listings import FileListings
from data.corpora.tar_listing import list_tars, listing_of_tar
from data.corpora.tar_scan import TarMember, TarSpan, iter_members, open_span
from data.corpora.tasks import MapTasks
from data.errors import InputError
from data.listing import BATCH_ROWS, LISTING_SCHEMA
from data.store import ObjectInfo, Store

GROUND_TRUTH_NAME = "ILSVRC2012_validation_ground_truth.txt"

_VALIDATION_NAME = "ILSVRC2012_img_val.tar"
_TAR_OF_TARS = re.compile(r"ILSVRC2012_img_train\.tar|\w+_whole\.tar")
_SYNSET = re.compile(r"n\d{8}")
_SYNSET_TAR = re.compile(r"(n\d{8})\.tar")
_BATCH_MEMBERS = 8192

_Scan: TypeAlias = Callable[..., Iterator[RecordBatch]]
"""Lists a tar of `store`."""


def is_imagenet_file(path: str) -> bool:
    """Say whether a tar's name is one of ImageNet's."""
    name = path.rpartition("/")[2]
    patterns = (_TAR_OF_TARS, _SYNSET_TAR)
    return name == _VALIDATION_NAME or any(pattern.fullmatch(name) for pattern in patterns)


def parse_ground_truth(text: str, name: str, synsets: Sequence[str]) -> tuple[str, ...]:
    """Return the synset of each validation image, in the order of their names.

    A line is a synset id, or a class number that counts from 1 in the order of `synsets`. Raises
    `InputError` for anything else, and for a list in alphabetical order, which is not ILSVRC's.
    """
    lines = [line.strip() for line in text.strip().splitlines()]
    if all(_SYNSET.fullmatch(line) for line in lines):
        return tuple(lines)
    if not synsets:
        raise InputError(
            f"{name} has class numbers ({lines[0]!r}): put the development kit's meta.mat beside it, or give "
            "classes_file, that file or one with a synset id a line in its order"
        )
    if len(synsets) > 2 and list(synsets) == sorted(synsets):
        raise InputError(
            f"classes_file is in alphabetical order, but the class numbers of {name} count in the order of "
            "the development kit's meta.mat (n02119789 first): every label would be wrong; give that order"
        )
    found: list[str] = []
    for number, line in enumerate(lines, start=1):
        if not line.isdecimal() or not 1 <= int(line) <= len(synsets):
            raise InputError(
                f"line {number} of {name} is {line[:40]!r}: a synset id, or a class number of 1 to "
                f"{len(synsets)}, is allowed"
            )
        found.append(synsets[int(line) - 1])
    return tuple(found)


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageNetReader:
    """Lists ImageNet's tars; a key is SYNSET/NAME.JPEG, or val/NAME.JPEG."""

    store: Store
    tars: tuple[ObjectInfo, ...]
    """Those of the corpus for which `is_imagenet_file` holds."""
    run: MapTasks
    listings: FileListings
    ground_truth: tuple[str, ...] | None
    """The synset of each image of the validation tar, in the order of their names."""

    @property
    def uri(self) -> str:
        """The corpus's."""
        return self.store.uri

    def record_batches(self) -> Iterator[RecordBatch]:
        """Yield the images of all synsets, then those for validation.

        With a validation tar all others are for training; else the splits are not known. Raises
        `InputError` for a tar that is damaged, and for labels that are missing or of another number.
        """
        spans = [TarSpan.of(info) for info in self.tars]
        validation = [span for span in spans if _file_name(span) == _VALIDATION_NAME]
        whole = [span for span in spans if _TAR_OF_TARS.fullmatch(_file_name(span))]
        synset_spans = [span for span in spans if span not in validation and span not in whole]
        synset_spans += self._synset_tars(whole)
        for batch in self._list(synset_spans, _list_images):
            yield _with_split(batch, "train") if validation else batch
        for span in validation:
            yield from self._list_validation(span).to_batches(max_chunksize=BATCH_ROWS)

    def _list(self, spans: Sequence[TarSpan], scan: _Scan) -> Iterator[RecordBatch]:
        return list_tars(
            spans,
            partial(scan, store=self.store),
            decided_by=("imagenet", self.store.uri),
            listings=self.listings,
            run=self.run,
        )

    def _synset_tars(self, whole: Sequence[TarSpan]) -> Iterator[TarSpan]:
        """Yield the tars that are members of others; these are kept as listings too."""
        by_path = {span.path: span for span in whole}
        for batch in self._list(whole, _list_synset_tars):
            for row in batch.to_pylist():
                yield by_path[row["path"]].inside(TarMember(row["key"], row["offset"], row["size_bytes"]))

    def _list_validation(self, span: TarSpan) -> Table:
        if self.ground_truth is None:
            raise InputError(
                f"{span.name} comes without labels: put {GROUND_TRUTH_NAME} beside it, or give "
                "ground_truth_file"
            )
        images = pa.Table.from_batches(self._list([span], _list_images), schema=LISTING_SCHEMA)
        if len(images) != len(self.ground_truth):
            raise InputError(
                f"{span.name} has {len(images)} images, its list of labels {len(self.ground_truth)} lines: "
                "give the list that belongs to it"
            )
        place = LISTING_SCHEMA.get_field_index("labels")
        labels = pa.array([[label] for label in self.ground_truth], LISTING_SCHEMA.field(place).type)
        images = images.sort_by("key").set_column(place, LISTING_SCHEMA.field(place), labels)
        return _with_split(images, "eval")


def _list_synset_tars(span: TarSpan, *, store: Store) -> Iterator[RecordBatch]:
    """Yield the members of a tar of tars as rows whose key is the member's name, without labels."""
    members = iter_members(open_span(store, span), span)
    while some := list(islice(members, _BATCH_MEMBERS)):
        for member in some:
            if not _SYNSET_TAR.fullmatch(member.name.rpartition("/")[2]):
                raise InputError(
                    f"tar {span.name!r} has a member {member.name[:200]!r}; one tar a synset (n01440764.tar) "
                    "is allowed: give format webdataset for other tars"
                )
        yield _rows(span, some, [member.name for member in some], [])


def _list_images(span: TarSpan, *, store: Store) -> Iterator[RecordBatch]:
    """Yield the images of a tar as what it says by itself: no split, and for validation no labels.

    Both are given to the rows as they are used, so that a list of labels or a validation tar that comes
    later makes nothing be read again.
    """
    name = span.name.rpartition("/")[2]
    is_validation = name == _VALIDATION_NAME
    folder = "val" if is_validation else name.removesuffix(".tar")
    images = _images(store, span)
    while some := list(islice(images, _BATCH_MEMBERS)):
        keys = [f"{folder}/{image.name.rpartition('/')[2]}" for image in some]
        yield _rows(span, some, keys, [] if is_validation else [folder])


def _images(store: Store, span: TarSpan) -> Iterator[TarMember]:
    for member in iter_members(open_span(store, span), span):
        name = member.name.rpartition("/")[2]
        if not name.startswith(".") and name.rpartition(".")[2].lower() in IMAGE_EXTENSIONS:
            yield member


def _rows(span: TarSpan, members: Sequence[TarMember], keys: list[str], labels: list[str]) -> RecordBatch:
    return listing_of_tar(
        span,
        keys=keys,
        offsets=[member.offset for member in members],
        sizes_bytes=[member.size_bytes for member in members],
        labels=[labels] * len(members),
        split=None,
    )


def _with_split(rows: Any, split: str) -> Any:
    """Return a batch or a table with every row in one split."""
    place = LISTING_SCHEMA.get_field_index("split")
    return rows.set_column(place, LISTING_SCHEMA.field(place), pa.repeat(split, rows.num_rows))


def _file_name(span: TarSpan) -> str:
    return span.path.rpartition("/")[2]
