"""How a corpus is to be read, as a user says it."""

from dataclasses import dataclass, fields
from typing import Literal

from data.errors import InputError

CorpusFormat = Literal["auto", "class_folders", "manifest", "parquet", "imagenet", "webdataset"]

# The formats that an option means something to.
_USED_BY: dict[str, tuple[CorpusFormat, ...]] = {
    "files": ("parquet", "imagenet", "webdataset"),
    "root": ("manifest",),
    "uri_column": ("manifest",),
    "label_column": ("manifest", "parquet"),
    "split_column": ("manifest",),
    "image_column": ("parquet",),
    "label_separator": ("manifest",),
    "label": ("webdataset",),
    "image_extension": ("webdataset",),
    "classes_file": ("manifest", "parquet", "imagenet", "webdataset"),
    "ground_truth_file": ("imagenet",),
}


@dataclass(frozen=True, kw_only=True)
class CorpusOptions:
    """How `--corpus` is read; all of it changes the result. Class folders need none of it."""

    files: tuple[str, ...] = ()
    """parquet, imagenet, webdataset: take only these files below the corpus, e.g. [train/*.tar]."""
    root: str = ""
    """manifest: what uris are relative to, a path or s3://; by default the folder of the manifest."""
    uri_column: str = "uri"
    """manifest."""
    label_column: str = "label"
    """manifest, parquet."""
    split_column: str = "split"
    """manifest: train, eval (or test, val) or nothing in each row; need not be there."""
    image_column: str = ""
    """parquet: by default the one column with image bytes."""
    label_separator: str = ";"
    """manifest: stands between several labels of an image; "" where a label may hold it."""
    label: str = "cls"
    """webdataset: cls, the member beside the image, or json:FIELD, a field of the JSON beside it."""
    image_extension: str = ""
    """webdataset: which member is the image, where samples have several."""
    classes_file: str = ""
    """A text file with one class name a line, a path or s3://, for labels that are numbers from 0; for
    imagenet the development kit's meta.mat, by default beside the tars, or the synset ids in its order."""
    ground_truth_file: str = ""
    """imagenet: the labels of the validation images, one a line; by default beside their tar."""

    def check(self, corpus_format: CorpusFormat) -> None:
        """Raise `InputError` for an option that is given but means nothing to the format."""
        for field in fields(self):
            if getattr(self, field.name) != field.default and corpus_format not in _USED_BY[field.name]:
                raise InputError(
                    f"the option {field.name} is for the format {' or '.join(_USED_BY[field.name])}; the "
                    f"corpus is read as {corpus_format}: leave it out, or correct the format"
                )
