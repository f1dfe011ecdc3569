"""A model older than some classes is evaluated on all images, its outputs matched by name."""

import pytest
import torch

from coatnet.config import ModelConfig
from coatnet.model import CoAtNet
from data.errors import InputError
from pipelines.eval_tasks import AlignedClasses

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
