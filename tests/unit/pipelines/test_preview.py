"""The picture shows what training will see."""

import io
from pathlib import Path

import pytest
from PIL import Image

from data.errors import InputError
from data.loader import TooManyBadSamplesError
from data.store import ObjectNotFoundError
from pipelines.parse_config import parse_config
from pipelines.preview import PreviewConfig, main
from pipelines.retrain import RetrainConfig
from tests.conftest import REPOSITORY
from tests.small_dataset import small_dataset

_PHASE = ["--recipe.finetune.global_batch_size", "16", "--recipe.finetune.decode.image_size_px", "32"]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> str:
    return small_dataset(tmp_path_factory.mktemp("preview"))[0].uri


def show(dataset: str, out: Path, *options: str) -> bytes:
    assert main(["--dataset", dataset, "--out", str(out), *_PHASE, *options]) == 0
    return out.read_bytes()


def test_the_same_draws_make_the_same_picture(dataset: str, tmp_path: Path) -> None:
    options = ["--recipe.finetune.augment.randaugment_num_ops", "2"]
    first = show(dataset, tmp_path / "new folder" / "a.png", *options)
    image = Image.open(io.BytesIO(first))
    assert image.format == "PNG"
    assert min(image.size) > 4 * 128
    assert show(dataset, tmp_path / "b.png", *options) == first
    assert show(dataset, tmp_path / "c.png", *options, "--epoch", "1") != first
    assert show(dataset, tmp_path / "d.png", *options, "--recipe.seed", "5") != first
    assert show(dataset, tmp_path / "e.png") != first, "the recipe's augmentation is what is shown"
    few = show(dataset, tmp_path / "f.png", *options, "--num_images", "4")
    assert Image.open(io.BytesIO(few)).height < image.height


def test_a_lost_shard_is_left_out_as_training_does(tmp_path: Path) -> None:
    """With `missing_shards: skip` training went on, and the preview of the same config failed."""
    store, snapshot = small_dataset(tmp_path)
    for shard in snapshot.splits["train"][1:]:
        store.delete(shard.path)
    skip = ["--recipe.finetune.missing_shards", "skip"]
    assert show(store.uri, tmp_path / "a.png", *skip)
    with pytest.raises(ObjectNotFoundError, match="does not exist"):
        show(store.uri, tmp_path / "b.png")
    with pytest.raises(TooManyBadSamplesError, match="max_bad_samples allows 0"):
        show(store.uri, tmp_path / "c.png", *skip, "--runtime.max_bad_samples", "0")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "dataset is empty: give --dataset"),
        (["--dataset", "x", "--num_images", "0"], "num_images is 0"),
        (["--dataset", "x", "--epoch", "-1"], "epoch is -1"),
        (["--dataset", "x", "--phase", "train"], "phase"),
        (["--dataset", "/nowhere"], "folder /nowhere does not exist"),
        (["--dataset", "."], "no snapshot in file://"),
    ],
)
def test_bad_input_is_one_line(options: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        main(options)
    assert "\n" not in str(caught.value)


COMMANDS = {
    "preview": (PreviewConfig, ["--dataset", "x"]),
    "retrain": (RetrainConfig, ["--incoming", "x", "--once=true"]),
}


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("name", ["demo", "images", "smoke"])
def test_the_main_jobs_configs_are_taken_as_they_are(name: str, command: str, tmp_path: Path) -> None:
    file = REPOSITORY / "pipelines" / "configs" / f"{name}.yaml"
    corpus = tmp_path / "corpus.yaml"
    corpus.write_text("corpus: /x.csv\ncorpus_format: manifest\ncorpus_options: {label_column: y}\n")
    config_type, options = COMMANDS[command]
    config = parse_config(config_type, ["--config", str(file), "--config", str(corpus), *options], "A test.")
    assert config.recipe.finetune.decode.image_size_px > 0


def test_a_place_that_cannot_be_written_is_named(dataset: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"cannot be written .*: give --out another file"):
        main(["--dataset", dataset, "--out", str(tmp_path / "file" / "a.png"), *_PHASE])
