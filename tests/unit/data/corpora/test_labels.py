import pytest

from data.corpora.labels import parse_class_list, split_of_path
from data.errors import InputError


@pytest.mark.parametrize(
    ("path", "split"),
    [
        ("data/train-00000-of-00004.parquet", "train"),
        ("data/validation-00000-of-00001.parquet", "eval"),
        ("default/test/0000.parquet", "eval"),
        ("imagenet1k-val-0.tar", "eval"),
        ("bird_test_set/train_000.tar", "train"),
        ("0000.tar", None),
        ("constraints/trainer-evaluation-0.tar", None),
    ],
)
def test_split_of_path(path: str, split: str | None) -> None:
    assert split_of_path(path) == split


def test_class_list() -> None:
    assert parse_class_list(" cat\ndog \n\n", "c.txt") == ("cat", "dog")
    for text, message in (
        (" \n", "'c.txt' is empty"),
        ("a\n\nb", "empty line 2"),
        ("a\nb\na", "names 'a' again in line 3"),
    ):
        with pytest.raises(InputError, match=message):
            parse_class_list(text, "c.txt")
