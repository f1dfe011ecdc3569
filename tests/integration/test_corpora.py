"""Corpora in others' formats through `pipelines/shard.py`, on the real object store and the real Ray."""

import contextlib
import hashlib
import io
import json
import os
import subprocess
import sys
import uuid
from collections.abc import Mapping
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import webdataset

from data.shard_index import read_index
from data.snapshot import load_snapshot
from data.store import Store
from infra.store import open_store
from pipelines.shard import main
from tests.conftest import REPOSITORY, Stack
from tests.image_samples import png
from tests.tar_samples import tar_bytes

pytestmark = pytest.mark.integration


@pytest.fixture
def place(stack: Stack) -> Store:
    """An empty prefix of the object store."""
    return open_store(f"s3://coatnet/corpora-{uuid.uuid4().hex[:8]}")


def put(store: Store, files: Mapping[str, bytes]) -> None:
    for path, content in files.items():
        store.put(path, content)


def shard(stack: Stack, *arguments: str) -> dict[str, Any]:
    """Run a command that needs Ray as a process; return its object."""
    done = subprocess.run(
        [sys.executable, "pipelines/shard.py", *arguments, "--json"],
        cwd=REPOSITORY, env={**os.environ, **stack.environment}, capture_output=True, text=True, timeout=280,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def shard_here(*arguments: str) -> dict[str, Any]:
    """Run a command that must not need Ray in this process."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        assert main([*arguments, "--json"]) == 0
    return json.loads(printed.getvalue().splitlines()[-1])


def samples(dataset: Store) -> dict[str, tuple[str, list[str], str]]:
    """Return split, class names and the image's sha256 of each sample of HEAD, by its name."""
    snapshot = load_snapshot(dataset, "HEAD")
    return {
        row["name"]: (split, [snapshot.classes[label] for label in row["labels"]], row["sha256"])
        for split, shards in snapshot.splits.items()
        for info in shards
        for row in read_index(dataset, info).to_pylist()
    }


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def hugging_face(images: list[bytes], labels: list[int]) -> bytes:
    features = {"image": {"_type": "Image"}, "label": {"names": ["cat", "dog"], "_type": "ClassLabel"}}
    table = pa.table(
        {"image": [{"bytes": image, "path": None} for image in images], "label": pa.array(labels)}
    ).replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    sink = io.BytesIO()
    pq.write_table(table, sink, row_group_size=10)
    return sink.getvalue()


@pytest.mark.timeout(600)
def test_parquet_from_the_first_copy_to_an_append(stack: Stack, place: Store) -> None:
    images = [png(seed) for seed in range(45)]
    corpus, dataset = place.sub("hub"), place.sub("dataset")
    put(corpus, {
        "README.md": b"a dataset card",
        "data/train-00000-of-00001.parquet": hugging_face(images[:30], [i % 2 for i in range(30)]),
        "data/test-00000-of-00001.parquet": hugging_face(images[30:40], [i % 2 for i in range(10)]),
    })  # fmt: skip
    create = ("create", "--corpus", corpus.uri, "--dataset", dataset.uri)
    assert shard_here(*create, "--dry-run")["images"] == 40
    assert not list(dataset.list()), "a dry run copies nothing"

    first = shard(stack, *create)
    assert first["samples"] == {"train": 30, "eval": 10}
    found = samples(dataset)
    folder = "data/train-00000-of-00001.parquet"
    assert [found[f"{folder}/{row:08d}.png"] for row in range(30)] == [
        ("train", [("cat", "dog")[row % 2]], sha256(images[row])) for row in range(30)
    ]
    assert sum(split == "eval" for split, _, _ in found.values()) == 10
    staged = [info.path for info in dataset.list("staging")]
    assert [path for path in staged if path.endswith(".tar")] == [], "what stands in shards is not kept twice"
    assert shard_here(*create)["snapshot"] == first["snapshot"]
    assert [info.path for info in dataset.list("staging")] == staged, "a rerun copies nothing"

    put(corpus, {"more/train-00001.parquet": hugging_face(images[40:], [0] * 5)})
    second = shard(stack, "append", "--corpus", corpus.uri, "--dataset", dataset.uri)
    assert second["parent"] == first["snapshot"]
    assert second["samples"] == {"train": 35, "eval": 10}


def test_webdataset_tars_are_sharded_again(stack: Stack, place: Store, tmp_path: Any) -> None:
    images = [png(seed) for seed in range(24)]
    corpus, dataset = place.sub("wds"), place.sub("dataset")
    for name, first in (("train/0.tar", 0), ("train/1.tar", 10), ("val/0.tar", 20)):
        path = tmp_path / "some.tar"
        with webdataset.TarWriter(str(path)) as writer:
            for seed in range(first, min(first + 10, 24)):
                about = {"labels": ["cat", "dog"][: 1 + seed % 2]}
                writer.write({"__key__": f"a/image {seed}", "png": images[seed], "json": about})
        corpus.upload(path, name)
    done = shard(
        stack, "create", "--corpus", corpus.uri, "--dataset", dataset.uri,
        "--corpus_options.label", "json:labels", "--classes", "[dog, cat]",
    )  # fmt: skip
    assert done["samples"] == {"train": 20, "eval": 4}
    found = samples(dataset)
    assert found["train/1.tar/a/image 13.png"] == ("train", ["cat", "dog"], sha256(images[13]))
    assert found["val/0.tar/a/image 20.png"] == ("eval", ["cat"], sha256(images[20]))


def test_manifests_and_imagenet_are_listed(place: Store) -> None:
    rows = "".join(f"{place.uri}/images/{i}.png,{'cat;dog' if i % 3 else 'cat'}\n" for i in range(40))
    put(place, {f"images/{i}.png": b"not read" for i in range(40)} | {"m.csv": f"uri,label\n{rows}".encode()})
    create = ("create", "--dataset", place.sub("dataset").uri, "--dry-run", "--corpus")
    assert shard_here(*create, f"{place.uri}/m.csv")["images"] == 40

    synsets = ("n01440764", "n02085620")
    inner = {f"{s}.tar": tar_bytes({f"{s}_{i}.JPEG": b"not read" for i in range(5)}) for s in synsets}
    imagenet = place.sub("imagenet")
    put(imagenet, {
        "ILSVRC2012_img_train.tar": tar_bytes(inner),
        "ILSVRC2012_img_val.tar": tar_bytes({f"ILSVRC2012_val_{i:08d}.JPEG": b"x" for i in range(2)}),
        "ILSVRC2012_validation_ground_truth.txt": b"n02085620\nn01440764\n",
    })  # fmt: skip
    listed = shard_here(*create, imagenet.uri)
    assert listed["images"] == 12
    assert listed["shards"] == {"train": 1, "eval": 1}
