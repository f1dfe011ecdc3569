"""The card tells the snapshot's numbers, shows its pictures, is one file, and reads a bounded part."""

import base64
import io
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from PIL import Image

from data.card import card_path, make_card, write_card
from data.card_charts import by_power_of_two, by_shape
from data.card_sections import size_text
from data.html_page import Figure, escape, figures, page
from data.image_check import ImageLimits
from data.snapshot import Snapshot, load_snapshot
from infra.folder_store import FolderStore
from tests.card_dataset import HOSTILE, SOURCE, card_dataset

Built = tuple[FolderStore, Snapshot, Snapshot]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    return card_dataset(tmp_path_factory.mktemp("card"))


class Reader(HTMLParser):
    """Collects the text and the tags as a browser would see them."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.text = ""
        self.tags: list[str] = []
        self.sources: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.sources += [value or "" for name, value in attrs if name in ("src", "href")]

    def handle_data(self, data: str) -> None:
        self.text += data + "\n"


def test_the_numbers_and_the_names_are_there(built: Built) -> None:
    dataset, first, _ = built
    found = Reader(make_card(dataset, first))
    lines = [line.strip() for line in found.text.splitlines()]
    assert HOSTILE in lines
    # 24 train images and three more are kept; the one with the same bytes, the cut one and the text are not.
    numbers = {"train images": "26", "eval images": "3", "classes": "3", "left out": "3"}
    numbers |= {"near-duplicate pairs": "2", "near leaks, train and eval": "1"}
    assert {name: lines[lines.index(name) - 1] for name in numbers} == numbers
    assert "2 of 64 bits differ" in found.text or "0 of 64 bits differ" in found.text
    assert "same bytes as train image 'train/birds/3.jpg'" in found.text
    assert "train/birds/half <b>size</b>.png" in found.text
    assert "Premature end of JPEG file" in found.text


def test_it_is_one_file_without_scripts(built: Built) -> None:
    dataset, first, _ = built
    found = Reader(make_card(dataset, first))
    assert not {"script", "b>size", "link", "iframe"} & set(found.tags)
    assert all(source.startswith(("data:image/jpeg;base64,", "#")) for source in found.sources)
    pictures = [source for source in found.sources if source.startswith("data:")]
    assert len(pictures) > 25
    for picture in pictures:
        with Image.open(io.BytesIO(base64.b64decode(picture.partition(",")[2]))) as image:
            image.load()


def test_an_appended_one_tells_what_it_added(built: Built) -> None:
    dataset, first, appended = built
    text = Reader(make_card(dataset, appended)).text
    assert f"Parent {first.id}" in text
    assert re.search(r"fish\s+new\s+\+1\s+\+0", text)
    assert re.search(r"birds\s+\+1\s+\+0", text)


def test_a_snapshot_that_was_read_has_the_same_card(built: Built) -> None:
    """Its mappings come in another order from the file; the card once had eval before train then."""
    dataset, first, appended = built
    for snapshot in (first, appended):
        assert make_card(dataset, load_snapshot(dataset, snapshot.id)) == make_card(dataset, snapshot)


def test_it_is_kept_beside_the_snapshot_with_where_it_comes_from(built: Built) -> None:
    dataset, first, _ = built
    text = dataset.get(card_path(first)).decode()
    assert text == make_card(dataset, first)
    assert "s3://bucket/<images>" in Reader(text).text
    other = replace(SOURCE, corpus="elsewhere")
    assert write_card(dataset, first, other, corpus=dataset, limits=ImageLimits()) == text


class Counting(FolderStore):
    """Counts what is read."""

    def get(self, path: str) -> bytes:
        _READ.append(path)
        return super().get(path)

    def get_range(self, path: str, start: int, size_bytes: int) -> bytes:
        _READ.append(path)
        return super().get_range(path, start, size_bytes)


_READ: list[str] = []


def test_a_large_dataset_is_read_in_part(built: Built) -> None:
    """Ten thousand shards must not cost ten thousand reads, nor a thousand classes their pictures."""
    dataset, first, _ = built
    names = tuple(f"class {number}" for number in range(1000))
    counts = {split: dict.fromkeys(names, 5) for split in ("train", "eval")}
    large = replace(
        first,
        classes=names,
        splits={split: shards * 4000 for split, shards in first.splits.items()},
        stats={**first.stats, **counts},
    )
    _READ.clear()
    text = make_card(Counting(root=dataset.root), large)
    assert len(_READ) < 600
    assert "largest and smallest of 1,000 classes" in text
    assert len(text) < 8_000_000


def test_escaping() -> None:
    assert escape("<&\"'\ud800") == "&lt;&amp;&quot;&#x27;?"
    text = page("</title><script>", [figures([Figure(picture=b"", title='"><img onerror=x>')])])
    assert Reader(text).tags.count("script") == 0
    assert Reader(text).tags.count("img") == 1


@pytest.mark.parametrize(
    ("value", "unit", "name"),
    [
        *((0, "", "0"), (1, "", "1"), (2, "", "2"), (3, "", "3 to 4"), (4, "", "3 to 4"), (5, "", "5 to 8")),
        *((1000, "", "513 to 1,024"), (1, "B", "up to 1 B"), (1025, "B", "up to 2 kiB")),
        *((2**20, "B", "up to 1 MiB"), (2**45, "B", "up to 32768 GiB")),
    ],
)
def test_bins(value: int, unit: str, name: str) -> None:
    assert by_power_of_two(value, unit)[1] == name


def test_shapes_and_sizes() -> None:
    assert [by_shape(ratio)[1] for ratio in (0.3, 0.75, 1.0, 1.5, 9.0)] == [
        *("taller than 1:2", "upright", "about square", "wide", "wider than 2:1")
    ]
    assert [size_text(size) for size in (0, 999, 1000, 42_800_000, 7e12)] == [
        *("0 B", "999 B", "1.0 kB", "42.8 MB", "7.0 TB")
    ]
