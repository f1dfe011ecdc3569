"""Stock webdataset reads our shards: from a folder, and from the object store through presigned URLs."""

import io
import json
import os
import uuid
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import webdataset as wds
from PIL import Image

from data.build import ShardingConfig, build_snapshot
from data.shard_write import write_shards_here
from data.webdataset_key import unescape_key
from infra.store import open_store
from pipelines.shard_show_command import ShowConfig, show
from tests.conftest import Stack
from tests.image_samples import fill, jpeg, png

pytestmark = pytest.mark.integration

NAMES = ("img.v2.png", "with space.png", "日本 é.png", "__x__.png", "a%20b.png", "photo.JPG")
FILES = {
    f"{split}/{label}/{name}": (jpeg if name.endswith("JPG") else png)(100 * number + place)
    for number, (split, label) in enumerate((("train", "c.at"), ("train", "d og"), ("test", "c.at")))
    for place, name in enumerate(NAMES)
}
CONFIG = ShardingConfig(shard_size_bytes=9000)


@pytest.fixture(autouse=True)
def _old_ways_of_webdataset() -> Iterator[None]:
    with warnings.catch_warnings():
        # It leaves the pipes and files of finished shards to the garbage collector.
        warnings.simplefilter("ignore", ResourceWarning)
        yield


def urls_of(uri: str, tmp_path: Path) -> dict[str, list[str]]:
    corpus, dataset = fill(tmp_path / "corpus", FILES), open_store(uri)
    build_snapshot(corpus, dataset, CONFIG, write_shards_here(corpus, dataset, CONFIG.limits))
    return show(ShowConfig(dataset=uri, urls=True)).values["urls"]


def check(samples: list[dict[str, Any]], split: str) -> None:
    expected = {path: content for path, content in FILES.items() if path.startswith(split)}
    found = {unescape_key(sample["__key__"]): sample for sample in samples}
    assert found.keys() == expected.keys()
    assert len(samples) == len(expected)
    for path, content in expected.items():
        sample = found[path]
        (extension,) = {"png", "jpg"} & sample.keys()
        assert sample[extension] == content
        assert sample["cls"] == (b"0" if "/c.at/" in path else b"1")
        assert json.loads(sample["json"])["name"] == path


def test_from_a_folder(tmp_path: Path) -> None:
    urls = urls_of(str(tmp_path / "my data"), tmp_path)
    assert len(urls["train"]) > 1
    for split, prefix in (("train", "train"), ("eval", "test")):
        check(list(wds.WebDataset(urls[split], shardshuffle=False)), prefix)


def test_through_presigned_urls(object_store: Stack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in object_store.environment.items():
        monkeypatch.setenv(name, value)
    urls = urls_of(f"s3://coatnet/plain-{uuid.uuid4().hex[:8]} a+b", tmp_path)["train"]
    assert all(url.startswith("http") for url in urls)
    # Nothing of ours, and no credentials, are needed to read them.
    for name in list(os.environ):
        if name.startswith("AWS_"):
            monkeypatch.delenv(name)
    check(list(wds.WebDataset(urls, shardshuffle=False)), "train")
    check(list(wds.WebDataset([f"pipe:curl -sf '{url}'" for url in urls], shardshuffle=False)), "train")


@pytest.mark.parametrize("num_workers", [0, 2])
def test_webloader_decodes_batches(tmp_path: Path, num_workers: int) -> None:
    urls = urls_of(str(tmp_path / "dataset"), tmp_path)["train"]
    decoded = (
        wds.WebDataset(urls, shardshuffle=False)
        .decode("pil")
        .to_tuple("png;jpg", "cls", "__key__")
        .map_tuple(lambda image: list(image.size), lambda label: label, unescape_key)
    )
    loader = wds.WebLoader(decoded, batch_size=None, num_workers=num_workers)
    found = {key: (size, label) for size, label, key in loader}
    assert found == {
        path: (list(Image.open(io.BytesIO(content)).size), 0 if "/c.at/" in path else 1)
        for path, content in FILES.items()
        if path.startswith("train")
    }
