from pathlib import Path
from typing import Any

import pytest

from data.errors import InputError
from data.types import Record
from pipelines.config import PhaseConfig, parse_run_config
from pipelines.dataset_ref import DatasetRef
from pipelines.mixture import SourceConfig
from pipelines.phase_images import PhaseImages, check_images, pin_images
from tests.listings import listing_of
from tests.small_dataset import small_dataset


def test_several_labels_an_image_are_refused_before_training() -> None:
    """The reader of shards refuses them too, but only once a job has sharded and trains."""
    records = [
        Record(key=f"{split}{i}", path="p", labels=labels, split=split, size_bytes=1, etag="e")
        for split in ("train", "eval")
        for i, labels in enumerate([("a",), ("b",), ("a",)])
    ]
    check_images("pretrain", PhaseImages.of_listing(listing_of(records)), 2)
    several = Record(key="c", path="p", labels=("a", "b"), split="train", size_bytes=1, etag="e")
    with pytest.raises(InputError, match="pretrain has images with several labels, and training takes one"):
        check_images("pretrain", PhaseImages.of_listing(listing_of([*records, several])), 2)


@pytest.mark.parametrize(
    ("phase", "message"),
    [
        ({"classes": ("a", "b")}, r"recipe.finetune.classes is \('a', 'b'\) beside a dataset"),
        ({"max_train_per_class": 3}, "finetune.max_train_per_class is 3 beside a dataset"),
        ({"dataset": "data/birds"}, "recipe.finetune.dataset is 'data/birds': a submitted job"),
        ({"snapshot": "9-abc"}, "'9-abc' is not in .*: there are 1-"),
        (
            {"global_batch_size": 8000},
            "finetune has 60 images for training, recipe.finetune.global",
        ),
    ],
)
def test_a_dataset_that_does_not_fit_is_one_line(tmp_path: Path, phase: dict[str, Any], message: str) -> None:
    store, _ = small_dataset(tmp_path)
    phase = {"dataset": store.uri, "global_batch_size": 16, **phase}
    with pytest.raises(InputError, match=message):
        pin_images("finetune", PhaseConfig(**phase))


def test_the_newest_snapshot_of_a_dataset_is_pinned(tmp_path: Path) -> None:
    store, snapshot = small_dataset(tmp_path)
    images = pin_images("finetune", PhaseConfig(dataset=str(store.root), global_batch_size=16))
    assert images.source == DatasetRef(path=store.uri, snapshot_id=snapshot.id, classes=("a", "b"))
    assert images.num_images == {"train": 60, "eval": 11}
    assert sum(images.counts.values()) == 71


def test_its_own_snapshot_cannot_be_mixed_in(tmp_path: Path) -> None:
    """It was found only by the workers, after the job had begun."""
    store, snapshot = small_dataset(tmp_path)
    mixture = (SourceConfig(dataset=store.uri, snapshot=snapshot.id, weight=0.5),)
    phase = PhaseConfig(dataset=store.uri, global_batch_size=16, mixture=mixture)
    with pytest.raises(InputError, match=f"mixture names snapshot {snapshot.id}, its own: leave it out"):
        pin_images("finetune", phase)


def test_another_dataset_lifts_the_classes_of_the_config_file() -> None:
    dataset = ["--recipe.finetune.dataset", "s3://bucket/birds"]
    recipe = parse_run_config(["--config", "pipelines/configs/smoke.yaml", *dataset], "A test.").recipe
    assert (recipe.finetune.classes, recipe.finetune.max_train_per_class) == (None, None)
    assert recipe.pretrain.classes is not None


def test_a_corpus_that_would_not_be_read_is_refused() -> None:
    datasets = [f"--recipe.{name}.dataset=s3://bucket/birds" for name in ("pretrain", "finetune")]
    with pytest.raises(InputError, match="corpus '/photos' would not be read"):
        parse_run_config(
            ["--config", "pipelines/configs/smoke.yaml", "--corpus", "/photos", *datasets], "A test."
        )
