"""A model older than some classes is evaluated on all images, its outputs matched by name."""

from pathlib import Path
from typing import Any

import pytest
import torch

from coatnet.config import ModelConfig
from coatnet.interop import save_model
from coatnet.model import CoAtNet
from data.build import build_snapshot
from data.crop import DecodeConfig
from data.errors import InputError
from data.image_check import ImageLimits
from data.loader import TooManyBadSamplesError
from data.shard_write import write_shards_here
from data.sharding_config import ShardingConfig
from data.snapshot import Snapshot
from infra.folder_store import FolderStore
from pipelines.config import Runtime
from pipelines.eval_tasks import (
    AlignedClasses,
    EvalPlan,
    evaluate_model,
    evaluate_slice,
    merge_slices,
    report_bad_samples,
)
from tests.small_dataset import encode, picture

CONFIG = ModelConfig(
    widths=(8, 16, 32, 32), depths=(1, 1, 1, 1), stem_width=8, head_size=16, num_classes=2,
    pretrain_image_size_px=32,
)  # fmt: skip


@pytest.fixture(scope="module")
def model() -> CoAtNet:
    torch.manual_seed(0)
    return CoAtNet(CONFIG).eval()


@torch.no_grad()
def test_outputs_move_by_name_and_an_unknown_class_has_probability_zero(model: CoAtNet) -> None:
    """By index, a class that sorts before the old ones would take their outputs."""
    aligned = AlignedClasses(model, known=("ship", "cat"), wanted=("bird", "cat", "ship"))
    images_BCHW = torch.randn(3, 3, 32, 32)
    ours_BK, theirs_BC = aligned(images_BCHW).softmax(1), model(images_BCHW).softmax(1)
    assert (ours_BK[:, 0] == 0).all()
    torch.testing.assert_close(ours_BK[:, 1:], theirs_BC.flip(1))


@torch.no_grad()
def test_nan_reaches_every_class(model: CoAtNet) -> None:
    """A broken model must not hide behind the zeros of the classes that it does not know."""
    broken = CoAtNet(CONFIG).eval()
    for weight in broken.parameters():
        weight.fill_(torch.nan)
    aligned = AlignedClasses(broken, known=("cat", "ship"), wanted=("cat", "ship", "bird"))
    assert aligned(torch.randn(2, 3, 32, 32)).softmax(1).isnan().all()


@pytest.mark.parametrize(
    ("known", "message"),
    [
        (("cat", "dog"), "knows the classes cat, dog; the images are of bird, cat, ship"),
        (("cat",), "has 2 outputs and knows the classes cat;"),
    ],
)
def test_a_class_without_images_is_refused(model: CoAtNet, known: tuple[str, ...], message: str) -> None:
    """To drop an output flatters: the model can no longer choose that class wrongly."""
    with pytest.raises(InputError, match=message):
        AlignedClasses(model, known=known, wanted=("bird", "cat", "ship"))


def snapshot_with_a_broken_image(folder: Path) -> Snapshot:
    """Header checks let a truncated picture pass; it is the third of six for evaluation."""
    corpus, dataset = FolderStore(root=folder / "corpus"), FolderStore(root=folder / "dataset")
    for index in range(6):
        content = encode(picture(24, 24, index), "png")
        corpus.put(f"train/{'ab'[index % 2]}/{index}.png", content)
        content = encode(picture(24, 24, 100 + index), "png")
        corpus.put(f"test/{'ab'[index % 2]}/{index}.png", content[:-200] if index == 2 else content)
    config = ShardingConfig(limits=ImageLimits(validate="header"))
    run_all = write_shards_here(corpus, dataset, config.limits)
    return build_snapshot(corpus, dataset, config, run_all)


def test_an_image_that_cannot_be_decoded_is_not_in_the_report(model: CoAtNet, tmp_path: Path) -> None:
    """It once counted as a black picture under its label."""
    snapshot = snapshot_with_a_broken_image(tmp_path)
    (tmp_path / "model").mkdir()
    save_model(model, tmp_path / "model", model.state_dict())
    plan = EvalPlan(
        root_uri=tmp_path.as_uri(),
        model_path="model",
        model_classes=("a", "b"),
        dataset_path="dataset",
        snapshot_id=snapshot.id,
        decode=DecodeConfig(image_size_px=32),
        runtime=Runtime(cache_dir=str(tmp_path / "cache")),
    )
    slices = [evaluate_slice(plan, 2, index) for index in range(2)]
    report = merge_slices(plan, slices)
    assert report.keys == tuple(f"test/{'ab'[i % 2]}/{i}.png" for i in (0, 4, 1, 3, 5))
    assert report.confusion_KK.sum() == 5
    reasons = {key: why for found in slices for key, why in found.bad_samples.items()}
    lines: list[str] = []
    report_bad_samples(reasons, 1, lines.append)
    assert [line.partition(" cannot")[0] for line in lines] == ["evaluate  left out: 'test/a/2.png'"]
    with pytest.raises(TooManyBadSamplesError, match="1 samples of the eval split"):
        report_bad_samples(reasons, 0, lines.append)


@pytest.mark.parametrize(("use_gpu", "num_gpus"), [(True, 1), (False, 0)])
def test_each_task_reserves_the_gpu_that_it_uses(
    monkeypatch: pytest.MonkeyPatch, use_gpu: bool, num_gpus: int
) -> None:
    """With none reserved, all tasks of a node ran on its first GPU."""
    asked: dict[str, Any] = {}
    monkeypatch.setattr("pipelines.eval_tasks.run_tasks", lambda *_, **options: asked.update(options) or [])
    monkeypatch.setattr("pipelines.eval_tasks.merge_slices", lambda *_: None)
    plan = EvalPlan(
        root_uri="file:///absent",
        model_path="model",
        model_classes=("a", "b"),
        dataset_path="dataset",
        snapshot_id="1-abc",
        decode=DecodeConfig(image_size_px=32),
        runtime=Runtime(use_gpu=use_gpu),
    )
    evaluate_model(plan, lambda line: None)
    assert asked["num_gpus_per_task"] == num_gpus
