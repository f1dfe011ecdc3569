"""The exported graphs compute what the model computes."""

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

from coatnet import CoAtNet, ModelConfig
from coatnet.export import export_onnx, export_program
from data.errors import InputError

CONFIG = ModelConfig(
    layout="CT",
    stem_width=8,
    widths=(8, 16),
    depths=(1, 1),
    strides=(2, 2),
    head_size=8,
    num_classes=5,
    pretrain_image_size_px=64,
)
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


@pytest.fixture
def model() -> CoAtNet:
    torch.manual_seed(0)
    return CoAtNet(CONFIG).eval()


def test_the_program_takes_any_batch_and_refuses_another_size(model: CoAtNet) -> None:
    program = export_program(model, 48).module()
    for batch_size in (1, 5):
        images = torch.randn(batch_size, 3, 48, 48)
        torch.testing.assert_close(program(images), model(images), atol=1e-5, rtol=1e-5)
    with pytest.raises(Exception, match=r"size\(\)\[2\] == 48"):
        program(torch.randn(1, 3, 64, 64))


def test_onnxruntime_computes_the_same(model: CoAtNet, tmp_path: Path) -> None:
    """The resized bias of a size other than the pretraining's is part of the file."""
    export_onnx(model, tmp_path / "model.onnx", 48)
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    for batch_size in (1, 5):
        images = torch.randn(batch_size, 3, 48, 48)
        (logits,) = session.run(["logits"], {"images": images.numpy()})
        with torch.no_grad():
            np.testing.assert_allclose(logits, model(images).numpy(), atol=1e-4)


def test_a_model_in_training_mode_is_refused(model: CoAtNet) -> None:
    with pytest.raises(InputError, match=r"training mode; call eval\(\)"):
        export_program(model.train(), 48)
