"""ImageNet's own files as a corpus: an image is a range of a tar, or of a tar in a tar.

Files: `ILSVRC2012_img_train.tar` and `*_whole.tar` (a tar of one tar a synset), `n01440764.tar` (one
synset, as ImageNet-21K comes), `ILSVRC2012_img_val.tar` with a list of its labels. Source: the
ILSVRC2012 development kit's readme (class numbers count from 1, in the order of its meta.mat).
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from data.arrow import RecordBatch, Table
from data.corpora.class_folders import IMAGE_EXTENSIONS
from data.corpora.tar_listing import MAX_BATCH_ROWS, listing_of_tar
from data.corpora.tar_scan import TarMember, TarSpan, iter_members, open_span
from data.corpora.tasks import MapTasks
from data.errors import InputError
from data.store import ObjectInfo, Store

GROUND_TRUTH_NAME = "ILSVRC2012_validation_ground_truth.txt"

_VALIDATION_NAME = "ILSVRC2012_img_val.tar"
_TAR_OF_TARS = re.compile(r"ILSVRC2012_img_train\.tar|\w+_whole\.tar")
_SYNSET = re.compile(r"n\d{8}")
_SYNSET_TAR = re.compile(r"(n\d{8})\.tar")


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
        validation = [span for span in spans if span.path.rpartition("/")[2] == _VALIDATION_NAME]
        synset_spans = [
            span for other in spans if other not in validation for span in self._synset_tars(other)
        ]
        list_synset = partial(_list_synset, store=self.store, split="train" if validation else None)
        size_bytes = sum(span.size_bytes for span in synset_spans)
        for table in self.run(list_synset, synset_spans, size_bytes=size_bytes):
            yield from table.to_batches(max_chunksize=MAX_BATCH_ROWS)
        for span in validation:
            yield from self._list_validation(span).to_batches(max_chunksize=MAX_BATCH_ROWS)

    def _synset_tars(self, span: TarSpan) -> Iterator[TarSpan]:
        """Yield the tar itself if it is one synset's, else the tars in it."""
        if not _TAR_OF_TARS.fullmatch(span.path.rpartition("/")[2]):
            yield span
            return
        for member in iter_members(open_span(self.store, span), span):
            if not _SYNSET_TAR.fullmatch(member.name.rpartition("/")[2]):
                raise InputError(
                    f"tar {span.name!r} has a member {member.name[:200]!r}; one tar a synset (n01440764.tar) "
                    "is allowed: give format webdataset for other tars"
                )
            yield span.inside(member)

    def _list_validation(self, span: TarSpan) -> Table:
        if self.ground_truth is None:
            raise InputError(
                f"{span.name} comes without labels: put {GROUND_TRUTH_NAME} beside it, or give "
                "ground_truth_file"
            )
        images = sorted(_images(self.store, span))
        if len(images) != len(self.ground_truth):
            raise InputError(
                f"{span.name} has {len(images)} images, its list of labels {len(self.ground_truth)} lines: "
                "give the list that belongs to it"
            )
        return _listing(span, images, "val", [[label] for label in self.ground_truth], "eval")


def _list_synset(span: TarSpan, *, store: Store, split: str | None) -> Table:
    synset = span.name.rpartition("/")[2].removesuffix(".tar")
    images = list(_images(store, span))
    return _listing(span, images, synset, [[synset]] * len(images), split)


def _images(store: Store, span: TarSpan) -> Iterator[TarMember]:
    for member in iter_members(open_span(store, span), span):
        name = member.name.rpartition("/")[2]
        if not name.startswith(".") and name.rpartition(".")[2].lower() in IMAGE_EXTENSIONS:
            yield member


def _listing(
    span: TarSpan, images: Sequence[TarMember], folder: str, labels: list[list[str]], split: str | None
) -> Table:
    return listing_of_tar(
        span,
        keys=[f"{folder}/{image.name.rpartition('/')[2]}" for image in images],
        offsets=[image.offset for image in images],
        sizes_bytes=[image.size_bytes for image in images],
        labels=labels,
        split=split,
    )
