import pytest

from data.errors import InputError
from data.types import Record
from pipelines.preflight import check_images
from tests.listings import listing_of


def test_several_labels_an_image_are_refused_before_training() -> None:
    """The reader of shards refuses them too, but only once a job has sharded and trains."""
    records = [
        Record(key=f"{split}{i}", path="p", labels=labels, split=split, size_bytes=1, etag="e")
        for split in ("train", "eval")
        for i, labels in enumerate([("a",), ("b",), ("a",)])
    ]
    check_images("pretrain", listing_of(records), 2)
    several = Record(key="c", path="p", labels=("a", "b"), split="train", size_bytes=1, etag="e")
    with pytest.raises(InputError, match="pretrain has images with several labels, and training takes one"):
        check_images("pretrain", listing_of([*records, several]), 2)
