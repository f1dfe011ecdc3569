"""A model as one graph without Python: `torch.export` and ONNX."""

from pathlib import Path

import torch
from torch.export import Dim, ExportedProgram

from coatnet.model import CoAtNet
from data.errors import InputError


def export_program(model: CoAtNet, image_size_px: int, *, any_size: bool = False) -> ExportedProgram:
    """Return the model in eval mode for float32 images [B, C, H, W], any B.

    H and W are `image_size_px`, for which the relative biases are gathered once; with `any_size` they
    are resized and gathered in the graph, as the model itself does, and any H and W go that give each
    transformer stage at least two rows and two columns of positions.

    Raises:
        InputError: the model is in training mode, or has no position for an image of this size.
    """
    if model.training:
        raise InputError("the model is in training mode; call eval() before the export")
    # Two images, sides that differ: what is one, or equal, would be taken for a constant.
    width = image_size_px + (model.config.total_stride if any_size else 0)
    sides = {2: Dim.AUTO, 3: Dim.AUTO} if any_size else {}
    images_BCHW = torch.zeros(2, model.config.in_channels, image_size_px, width)
    shapes = {"images_BCHW": {0: Dim("batch", min=1), **sides}}
    with torch.no_grad():
        return torch.export.export(model, (images_BCHW,), dynamic_shapes=shapes)


def export_onnx(model: CoAtNet, path: Path, image_size_px: int, *, any_size: bool = False) -> None:
    """Write an ONNX file with input `images` [B, C, H, W] and output `logits` [B, K], any B.

    Needs the extra `onnx`. H and W are as in `export_program`.

    Raises:
        InputError: as `export_program`.
    """
    program = torch.onnx.export(
        export_program(model, image_size_px, any_size=any_size),
        input_names=["images"],
        output_names=["logits"],
        dynamo=True,
        verbose=False,
    )
    assert program is not None
    program.save(str(path), external_data=False)
