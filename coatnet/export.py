"""A model as one graph without Python: `torch.export` and ONNX."""

from pathlib import Path

import torch
from torch.export import Dim, ExportedProgram

from coatnet.model import CoAtNet
from data.errors import InputError


def export_program(model: CoAtNet, image_size_px: int) -> ExportedProgram:
    """Return the model in eval mode for float32 images [B, C, image_size_px, image_size_px], any B.

    The graph has one image size: grids, and with them the relative biases, are computed for it once.

    Raises:
        InputError: the model is in training mode, or has no position for an image of this size.
    """
    if model.training:
        raise InputError("the model is in training mode; call eval() before the export")
    channels = model.config.in_channels
    # Two images: a batch of one would be taken for a constant.
    device = next(model.parameters()).device
    images_BCHW = torch.zeros(2, channels, image_size_px, image_size_px, device=device)
    shapes = {"images_BCHW": {0: Dim("batch", min=1)}}
    with torch.no_grad():
        return torch.export.export(model, (images_BCHW,), dynamic_shapes=shapes)


def export_onnx(model: CoAtNet, path: Path, image_size_px: int) -> None:
    """Write an ONNX file with input `images` [B, C, H, W] and output `logits` [B, K], any B.

    Needs the extra `onnx`. H and W are those given: a file serves one size.

    Raises:
        InputError: as `export_program`.
    """
    program = torch.onnx.export(
        export_program(model, image_size_px),
        input_names=["images"],
        output_names=["logits"],
        dynamo=True,
        verbose=False,
    )
    assert program is not None
    program.save(str(path), external_data=False)
