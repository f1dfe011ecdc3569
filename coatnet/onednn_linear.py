"""Linear layers of training on the CPU as the 1x1 convolutions that they are.

torch hands a float32 linear layer to MKL and a convolution to oneDNN. On Intel's processors and on AMD's
Zen 4 both come near the peak; on Zen 5 MKL reaches 220 GFLOP/s on two cores where oneDNN has 500. Inference
calls oneDNN itself (`coatnet.fused_inference`).
Shape letters: B batch, H height, W width, C channels, O output channels.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from coatnet.fused_inference import is_watched

_MIN_POSITIONS = 256
"""With fewer, laying out the weights for a convolution, in each call, takes longer than it saves."""


def linear_as_convolution(x_BHWC: Tensor, layer: nn.Linear) -> Tensor:
    """Return layer(x), [B, H, W, O]: as torch does it, but in plain training on the CPU."""
    if not _is_plain_training(x_BHWC, layer):
        return layer(x_BHWC)
    weight_OC11 = layer.weight[:, :, None, None]
    return F.conv2d(x_BHWC.permute(0, 3, 1, 2), weight_OC11, layer.bias).permute(0, 2, 3, 1)


def _is_plain_training(x: Tensor, layer: nn.Linear) -> bool:
    """Say whether this is float32 on the CPU, by a layer of torch's own type that nobody listens to."""
    return (
        type(layer) is nn.Linear
        and type(layer.weight) is nn.Parameter
        and x.ndim == 4
        and x.shape[:3].numel() >= _MIN_POSITIONS
        and x.device.type == "cpu"
        and x.dtype == layer.weight.dtype == torch.float32
        and layer.training
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_exporting()
        and not torch.jit.is_tracing()  # pyright: ignore[reportPrivateImportUsage]
        and not is_watched(layer)
    )
