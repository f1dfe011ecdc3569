"""A whole create over a corpus of odd images: each becomes what it must, and nothing is lost."""

import io

import numpy as np
import pytest
from PIL import Image

from data.build import build_snapshot
from data.card import Provenance, make_card, write_card
from data.image_check import ImageLimits
from data.quarantine import quarantine_page_path, read_quarantine
from data.shard_index import read_index
from data.shard_write import write_shards_here
from data.sharding_config import ShardingConfig
from data.snapshot import Snapshot
from infra.folder_store import FolderStore
from tests.odd_images import ACCEPTED, REENCODED, odd_corpus, odd_images

CONFIG = ShardingConfig(max_reject_fraction=1.0, limits=ImageLimits(min_side_px=8))


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[FolderStore, Snapshot]:
    folder = tmp_path_factory.mktemp("odd")
    corpus, dataset = odd_corpus(folder / "corpus"), FolderStore(root=folder / "dataset")
    snapshot = build_snapshot(corpus, dataset, CONFIG, write_shards_here(corpus, dataset, CONFIG.limits))
    source = Provenance(corpus=corpus.uri, config={}, versions={})
    write_card(dataset, snapshot, source, corpus=corpus, limits=CONFIG.limits)
    return dataset, snapshot


def test_each_image_becomes_what_it_must(built: tuple[FolderStore, Snapshot]) -> None:
    dataset, snapshot = built
    rows = [row for shard in snapshot.splits["train"] for row in read_index(dataset, shard).to_pylist()]
    found = {row["name"]: REENCODED if row["reencoded"] else ACCEPTED for row in rows}
    assert snapshot.quarantine_path is not None
    found |= {
        row["key"]: row["reason"]
        for row in read_quarantine(dataset, snapshot.quarantine_path, max_rows=10_000)
    }
    expected = {f"train/odd/{name}": outcome for name, (_, outcome) in odd_images().items()}
    assert {name: outcome for name, outcome in found.items() if "/odd/" in name} == expected


def test_the_shards_hold_upright_8_bit_images_that_any_decoder_reads(
    built: tuple[FolderStore, Snapshot],
) -> None:
    dataset, snapshot = built
    for shard in snapshot.splits["train"]:
        tar = dataset.get(shard.path)
        for row in read_index(dataset, shard).to_pylist():
            image = Image.open(io.BytesIO(tar[row["offset"] : row["offset"] + row["size"]]))
            assert image.mode in ("L", "RGB")
            assert image.size == (row["width"], row["height"])
            assert np.asarray(image).dtype == np.uint8
            assert image.getexif().get(0x0112, 1) == 1
            if row["name"].startswith("train/odd/turned"):
                turned = int(row["name"][-5])
                assert (row["exif_orientation"], image.size) == (turned, (60, 40) if turned < 5 else (40, 60))


def test_broken_ones_are_pictured_and_bombs_are_not(built: tuple[FolderStore, Snapshot]) -> None:
    dataset, snapshot = built
    path = snapshot.quarantine_path
    assert path is not None
    pictured = {
        row["key"].removeprefix("train/odd/"): row["picture"] is not None
        for row in read_quarantine(dataset, path, max_rows=10_000)
    }
    shown = ("cut.jpg", "cut but ended.jpg", "last byte gone.jpg", "flipped bit.png", "thin.png")
    hidden = ("bomb.png", "middling bomb.png", "bomb.gif", "zero.jpg", "text.jpg", "page.png", "script.jpg")
    assert {name: pictured[name] for name in (*shown, *hidden)} == {
        **dict.fromkeys(shown, True),
        **dict.fromkeys(hidden, False),
    }
    page = dataset.get(quarantine_page_path(path)).decode()
    assert page.count("<img") == sum(pictured.values())
    assert "cut but ended.jpg" in make_card(dataset, snapshot)
