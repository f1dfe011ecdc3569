"""`pipelines/shard.py` as a process, on the real object store and the real Ray."""

import contextlib
import io
import json
import os
import subprocess
import sys
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import mlflow
import pytest
from mlflow.entities import Run

from data.errors import InputError
from data.snapshot import load_snapshot
from infra.store import open_store
from pipelines.shard import main
from tests.conftest import REPOSITORY, Stack
from tests.image_samples import fill, png
from tests.small_dataset import encode, picture, small_dataset

pytestmark = pytest.mark.integration


@dataclass(frozen=True, kw_only=True)
class Shelf:
    """A corpus on disk and a place in the object store."""

    stack: Stack
    corpus: Path
    dataset: str

    def add(self, split: str, name: str, first: int, count: int) -> None:
        folder = self.corpus / split / name
        folder.mkdir(parents=True, exist_ok=True)
        for number in range(first, first + count):
            content = encode(picture(24, 24, hash((split, name, number)) % 2**32), "png")
            (folder / f"{number:04d}.png").write_bytes(content)

    def run(self, *arguments: str, exit_code: int = 0) -> tuple[str, dict[str, Any]]:
        """Run a command with --json; return what it printed and the object."""
        done = subprocess.run(
            [sys.executable, "pipelines/shard.py", *arguments, "--dataset", self.dataset, "--json"],
            cwd=REPOSITORY,
            env={**os.environ, **self.stack.environment},
            capture_output=True,
            text=True,
            timeout=180,
        )
        assert done.returncode == exit_code, done.stdout + done.stderr
        return done.stdout, json.loads(done.stdout.splitlines()[-1])

    def look(self, *arguments: str) -> dict[str, Any]:
        """Run a command that needs no Ray in this process; return its object."""
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            assert main([*arguments, "--dataset", self.dataset, "--json"]) == 0
        return json.loads(printed.getvalue().splitlines()[-1])


@pytest.fixture
def shelf(stack: Stack, tmp_path: Path) -> Shelf:
    made = Shelf(
        stack=stack, corpus=tmp_path / "my images", dataset=f"s3://coatnet/shelf-{uuid.uuid4().hex[:8]}"
    )
    for name in "ab":
        made.add("train", name, 0, 30)
        made.add("test", name, 0, 5)
    return made


def test_a_dataset_from_its_first_day_to_its_first_damage(shelf: Shelf, tmp_path: Path) -> None:
    """Create, again, append, look, and find a flipped bit."""
    create = ("create", "--corpus", str(shelf.corpus), "--shard_size_bytes", "40000")
    assert shelf.look(*create, "--dry-run")["images"] == 70
    store = open_store(shelf.dataset)
    assert not list(store.list())

    text, first = shelf.run(*create)
    assert "70 images of 2 classes" in text
    assert "shards  " in text
    assert first["samples"] == {"train": 60, "eval": 10}
    assert f"dataset card: {shelf.dataset}/{first['card']}" in text
    written = {info.path: info.etag for info in store.list()}
    text, again = shelf.run(*create)
    assert again["snapshot"] == first["snapshot"]
    assert {info.path: info.etag for info in store.list()} == written, "nothing is written twice"

    shelf.add("train", "c", 0, 6)
    shelf.add("test", "c", 0, 2)
    (shelf.corpus / "train" / "c" / "broken.png").write_bytes(b"no picture")
    append = ("append", "--corpus", str(shelf.corpus))
    assert shelf.look(*append, "--dry-run")["images"] == 9
    text, second = shelf.run(*append)
    assert second["parent"] == first["snapshot"]
    assert second["samples"] == {"train": 66, "eval": 12}
    assert second["rejects"] == {"unreadable": 1}
    assert f"{shelf.dataset}/{second['quarantine']}" in text
    card_of_second = store.get(second["card"])
    store.delete(second["card"])  # as if it was killed before that
    assert shelf.run(*append)[1]["appended"] is False
    assert store.get(second["card"]) == card_of_second
    (shelf.corpus / "train" / "c" / "broken too.png").write_bytes(b"no picture either")
    text, nothing = shelf.run(*append)
    assert "1 new images, none of use (1 unreadable)" in text
    assert nothing["rejects"] == {"unreadable": 1}
    with pytest.raises(InputError, match=r"holds snapshot 2-\w+, made of other images .*: add new images"):
        shelf.look(*create)

    card = tmp_path / "folder" / "card.html"
    assert shelf.look("card", "--out", str(card))["snapshot"] == second["snapshot"]
    assert card.read_bytes() == store.get(second["card"])
    client = mlflow.MlflowClient(shelf.stack.environment["MLFLOW_TRACKING_URI"])
    for snapshot in (first, second):
        run = _run_of(client, snapshot["snapshot"])
        assert (run.info.status, run.data.metrics["samples/train"]) == (
            "FINISHED",
            snapshot["samples"]["train"],
        )
        logged = Path(client.download_artifacts(run.info.run_id, "dataset_card.html", str(tmp_path)))
        assert logged.read_bytes() == store.get(snapshot["card"])

    shown = shelf.look("show")
    assert shown["by_class"]["train"] == {"a": 30, "b": 30, "c": 6}
    assert shown["snapshots"] == [1, 2]
    photo = next(file for file in sorted((shelf.corpus / "train/c").iterdir()) if "broken" not in file.name)
    (added,) = shelf.look("show", "--key", str(photo.relative_to(shelf.corpus)))["samples"]
    assert added["added_by"] == second["snapshot"]
    assert Path(unquote(added["corpus"].removeprefix("file://"))) / added["corpus_path"] == photo
    difference = shelf.look("diff")
    assert difference["added"] == {"train": {"c": 6}, "eval": {"c": 2}}
    assert difference["new_classes"] == ["c"]

    assert shelf.run("verify")[1]["damages"] == []
    shard = load_snapshot(store, "HEAD").splits["train"][0]
    content = bytearray(store.get(shard.path))
    content[1000] ^= 1
    store.put(shard.path, bytes(content))
    text, found = shelf.run("verify", exit_code=1)
    assert [damage["path"] for damage in found["damages"]] == [shard.path]
    assert f"DAMAGED {shelf.dataset}/{shard.path}" in text


def _run_of(client: mlflow.MlflowClient, snapshot_id: str) -> Run:
    experiment = client.get_experiment_by_name("coatnet-datasets")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id], f"tags.`coatnet.snapshot` = '{snapshot_id}'")
    return run


def test_order_names_the_images_of_each_rank(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every image once, in the same global batches whatever the number of ranks."""
    shelf = _local_shelf(tmp_path)
    found: dict[int, list[list[list[str]]]] = {}
    for world_size in (1, 3):
        options = ["--global_batch", "12", "--num_lanes", "4", "--world_size", str(world_size)]
        assert main(["order", "--dataset", shelf, *options, "--epoch", "1", "--json"]) == 0
        *lines, last = capsys.readouterr().out.splitlines()
        assert json.loads(last)["left_out"] == 0
        steps = [json.loads(line) for line in lines]
        assert [step["step"] for step in steps] == list(range(5))
        assert all(len(step["ranks"]) == world_size for step in steps)
        found[world_size] = [step["ranks"] for step in steps]
    flat = {
        size: [[name for rank in ranks for name in rank] for ranks in steps] for size, steps in found.items()
    }
    assert flat[1] == flat[3]
    assert len({name for step in flat[1] for name in step}) == 60
    assert main(["order", "--dataset", shelf, "--global_batch", "12", "--num_lanes", "4",
                 "--epoch", "1", "--from_step", "3", "--num_steps", "1"]) == 0  # fmt: skip
    (line,) = capsys.readouterr().out.splitlines()
    assert json.loads(line)["ranks"] == found[1][3]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["creat"], "unknown command 'creat'; commands: create, append, adopt, show, diff, verify, order"),
        (["create", "--dataset", "x"], "corpus is empty: give --corpus"),
        (["show"], "dataset is empty: give --dataset"),
        (["show", "--dataset", "/nowhere/at/all"], "folder /nowhere/at/all does not exist"),
        (["create", "--corpus", "x", "--dataset", "y", "--eval_fraction", "2"], "eval_fraction is 2"),
        (
            ["create", "--corpus", "x", "--dataset", "y", "--evalfraction", "0.1"],
            "did you mean eval_fraction",
        ),
        (["create", "--corpus", "/nowhere", "--dataset", "y"], "folder /nowhere does not exist"),
        (["verify", "--dataset", "x", "--runtime.num_workers", "0"], "runtime.num_workers is 0"),
        (["order", "--dataset", "x", "--world_size", "0"], "world_size is 0; it must be 1 to num_lanes = 8"),
        (["order", "--dataset", "x", "--world_size", "9"], "world_size is 9"),
        (["order", "--dataset", "x", "--epoch", "-1"], "epoch is -1; it must not be negative"),
    ],
)
def test_bad_input_is_one_line(arguments: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        main(arguments)
    assert "\n" not in str(caught.value)


def test_bad_choices_about_a_real_dataset(tmp_path: Path) -> None:
    shelf, corpus, one_image = _local_shelf(tmp_path), str(tmp_path / "corpus"), str(tmp_path / "one image")
    fill(Path(one_image), {"train/a/1.png": png(1), "test/a/2.png": png(2), "test/b/3.png": png(3)})
    for arguments, message in (
        (["diff", "--dataset", shelf], "has no parent to compare with: give --base"),
        (["show", "--dataset", shelf, "--snapshot", "9-abc"], "'9-abc' is not in .*: there are 1-"),
        (
            ["order", "--dataset", shelf, "--global_batch", "9"],
            "global_batch 9 is not a multiple",
        ),
        (
            ["append", "--corpus", corpus, "--dataset", shelf, "--classes", "[z]", "--dry-run=true"],
            "class 'a' of snapshot 1-.* is not among classes: an append can neither rename nor remove",
        ),
        (
            ["append", "--corpus", corpus, "--dataset", shelf, "--classes", "[a,b,z]", "--dry-run=true"],
            "class 'z' is neither in .* nor in snapshot 1-",
        ),
        (["create", "--corpus", one_image, "--dataset", shelf, "--dry-run"], "no usable image for training"),
        (["order", "--dataset", shelf, "--global_batch", "64"], "60 samples, fewer than one global batch"),
        (
            ["order", "--dataset", shelf, "--global_batch", "24", "--from_step", "2"],
            "from_step is 2; the epoch has steps 0 to 1",
        ),
    ):
        with pytest.raises(InputError, match=message):
            main(arguments)


def test_help_is_for_newcomers(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(f"  {command}" in text for command in ("create", "append", "show", "diff", "verify", "order"))
    with pytest.raises(SystemExit) as end:
        main(["create", "--help"])
    assert end.value.code == 0
    text = capsys.readouterr().out
    assert "usage: shard.py create" in text
    assert "class folders of images" in text


def _local_shelf(tmp_path: Path) -> str:
    dataset, _ = small_dataset(tmp_path)
    return dataset.uri
