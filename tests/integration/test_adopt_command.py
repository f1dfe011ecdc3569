"""`shard.py adopt` and what goes on from it, on the real object store and the real Ray."""

import json
import os
import subprocess
import sys
import uuid
from pathlib import Path
from typing import Any

import pytest
import webdataset

from data.snapshot import load_snapshot
from infra.store import open_store
from tests.conftest import REPOSITORY, Stack
from tests.image_samples import png

pytestmark = pytest.mark.integration


def test_adopt_verify_and_find_a_flipped_bit(stack: Stack, tmp_path: Path) -> None:
    """Three tars, sorted by class, in a bucket; labels get their names from a file."""
    uri = f"s3://coatnet/wds-{uuid.uuid4().hex[:8]}"
    store = open_store(uri)
    for number, name in enumerate(("train/0.tar", "train/1.tar", "val/0.tar")):
        with webdataset.TarWriter(str(tmp_path / "one.tar")) as writer:
            for row in range(12):
                key, seed = f"x/{row:02d}.v2", 100 * number + row
                writer.write({"__key__": key.replace(".", "_"), "png": png(seed), "cls": str(row // 6)})
        store.upload(tmp_path / "one.tar", name)
    before = {info.path: info.etag for info in store.list()}
    (tmp_path / "classes.txt").write_text("cat\ndog\n")

    def run(*arguments: str, exit_code: int = 0) -> tuple[str, dict[str, Any]]:
        done = subprocess.run(
            [sys.executable, "pipelines/shard.py", *arguments, "--dataset", uri, "--json"],
            cwd=REPOSITORY, env={**os.environ, **stack.environment}, capture_output=True, text=True,
            timeout=280,
        )  # fmt: skip
        assert done.returncode == exit_code, done.stdout + done.stderr
        return done.stdout, json.loads(done.stdout.splitlines()[-1])

    adopt = ("adopt", "--classes_file", str(tmp_path / "classes.txt"))
    splits = {"train/0.tar": "train", "train/1.tar": "train", "val/0.tar": "eval"}
    assert run(*adopt, "--dry-run")[1]["tars"] == splits
    assert {info.path: info.etag for info in store.list()} == before
    text, adopted = run(*adopt)
    assert adopted["samples"] == {"train": 24, "eval": 12}
    assert "warning: 91% of the neighbours in adopted shards share a class, 50% would" in text
    assert before.items() <= {info.path: info.etag for info in store.list()}.items()
    assert f"dataset card: {uri}/{adopted['card']}" in text
    card = store.get(adopted["card"])
    store.delete(adopted["card"])  # as if it was killed before that
    assert run(*adopt)[1]["adopted"] is False
    assert store.get(adopted["card"]) == card
    assert load_snapshot(store, "HEAD").classes == ("cat", "dog")
    assert run("verify")[1]["damages"] == []
    sample = run("show", "--key", "train/1.tar/x/07_v2.png")[1]["samples"][0]
    assert (sample["labels"], sample["shard"]) == (["dog"], f"{uri}/train/1.tar")
    content = bytearray(store.get("train/1.tar"))
    content[700] ^= 1
    store.put("train/1.tar", bytes(content))
    assert [damage["path"] for damage in run("verify", exit_code=1)[1]["damages"]] == ["train/1.tar"]
