"""The development kit's `meta.mat`: classes, and the synsets above them."""

import pytest

from data.corpora.imagenet_meta import parse_meta
from data.errors import InputError
from tests.imagenet_meta import Synset, meta

CLASSES: tuple[Synset, ...] = ((1, "n02119789", 0), (2, "n02100735", 0), (3, "n02110185", 0))


def test_classes_in_the_order_of_their_numbers() -> None:
    """Synsets above them are in the file too, with numbers from 1001 on."""
    content = meta((CLASSES[2], (1001, "n00001740", 2), *CLASSES[:2]))
    assert parse_meta(content, "meta.mat") == ("n02119789", "n02100735", "n02110185")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"no MATLAB file at all", "meta.mat is not ILSVRC2012's meta.mat"),
        (b"", "meta.mat is not ILSVRC2012's meta.mat"),
        (meta(CLASSES)[:150], "meta.mat is not ILSVRC2012's meta.mat"),
        (meta((CLASSES[0], CLASSES[2])), "does not number its 2 classes from 1 on"),
        (meta(((1, "n00001740", 2), (2, "n00001930", 1))), "does not number its 0 classes"),
    ],
)
def test_another_file_is_one_clear_line(content: bytes, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        parse_meta(content, "meta.mat")
    assert "\n" not in str(caught.value)
