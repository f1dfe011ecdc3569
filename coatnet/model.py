"""CoAtNet: a convolutional stem, stages of MBConv or transformer blocks, a pooled head.

Shape letters: B batch, C channels, H height, W width, K classes.
"""

import math
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from coatnet.config import ModelConfig
from coatnet.fused_inference import FusedConvolution, is_fusable
from coatnet.layers import ACTIVATIONS, make_norm_2d
from coatnet.mbconv import MBConvBlock
from coatnet.relative_attention import RelativeBias
from coatnet.transformer import TransformerBlock


class Stem(nn.Sequential):
    """S0: convolutions, the first with the stem's stride and kernel; norm and activation between them.

    Zeros around the image make ceil(H / stride) rows of it, also where the stride does not divide H. Patches
    (a kernel as large as its stride, ViT's stem) begin at the first pixel: zeros stand below and right alone.
    """

    def __init__(self, config: ModelConfig) -> None:
        inner = config.stem_inner_width or config.stem_width
        widths = [config.in_channels] + [inner] * (config.stem_depth - 1) + [config.stem_width]
        layers: list[nn.Module] = []
        for index, (in_width, width) in enumerate(pairwise(widths)):
            if index:
                layers += [
                    make_norm_2d(config.norm, in_width, config.norm_eps),
                    ACTIVATIONS[config.conv_activation](),
                ]
            size, stride = (3, 1) if index else (config.stem_kernel_size, config.stem_stride)
            padding = 0 if size == stride else (size - 1) // 2
            layers.append(
                nn.Conv2d(in_width, width, size, stride=stride, padding=padding, bias=config.stem_bias)
            )
        super().__init__(*layers)
        self._patch_px = config.stem_stride if config.stem_kernel_size == config.stem_stride else 1
        self._fused = [FusedConvolution() for _ in range(config.stem_depth - 1)]

    def forward(self, input: Tensor) -> Tensor:
        """Map [B, C, H, W] to [B, stem_width, ceil(H / stride), ceil(W / stride)]."""
        below, right = (-side % self._patch_px for side in input.shape[2:])
        if below or right:
            input = F.pad(input, (0, right, 0, below))
        if len(self) != 3 * len(self._fused) + 1 or not is_fusable(input, *self):
            return super().forward(input)
        x, layers = input, list(self)
        for index, fused in enumerate(self._fused):
            convolution, norm, activation = layers[3 * index : 3 * index + 3]
            assert isinstance(convolution, nn.Conv2d)
            x = fused(x, convolution, activation, after=norm)
        return layers[-1](x)

    def train(self, mode: bool = True) -> "Stem":
        """Switch modes; what was folded for eval is dropped."""
        for fused in self._fused:
            fused.forget()
        return super().train(mode)


class Head(nn.Module):
    """Global average pool, norm (or the norm first), (Linear, tanh), Linear."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width = config.widths[-1]
        self.norm_first = config.head_norm == "before_pool"
        self.norm = make_norm_2d(config.transformer_norm, width, config.transformer_norm_eps)
        self.hidden = nn.Linear(width, width) if config.head_hidden else None
        self.classifier = nn.Linear(width, config.num_classes)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Map features [B, C, H, W] to logits [B, K]."""
        if self.norm_first:
            x_BC = self.norm(x_BCHW).mean((2, 3))
        else:
            x_BC = self.norm(x_BCHW.mean((2, 3), keepdim=True)).flatten(1)
        if self.hidden is not None:
            x_BC = torch.tanh(self.hidden(x_BC))
        return self.classifier(x_BC)


class CoAtNet(nn.Module):
    """CoAtNet (Dai et al. 2021, Tables 3, 11 and 12), built from a `ModelConfig`.

    Takes any height and width whose every stage keeps at least one position.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.stem = Stem(config)
        self.stages = nn.ModuleList(_make_stages(config))
        self.head = Head(config)
        self.reset_parameters()
        self.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Map normalised float images [B, C, H, W] to logits [B, K].

        Raises ValueError for a wrong rank, channel count or dtype, no image, or too small a one.
        """
        check_images(images_BCHW, self.config)
        if images_BCHW.dtype == torch.float64 != self.head.classifier.weight.dtype:
            raise ValueError(
                "images are torch.float64, as NumPy makes them, and the weights are not; call .float()"
            )
        x = self.stem(images_BCHW.contiguous(memory_format=torch.channels_last))
        for stage in self.stages:
            x = stage(x)
        return self.head(x)

    def reset_parameters(self) -> None:
        """Initialise: truncated normal(0.02) linears, fan-out normal convolutions, zero biases."""
        for module in self.modules():
            if isinstance(module, RelativeBias):
                module.reset_parameters()
            elif isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Conv2d):
                # Fan-out of a grouped convolution counts one group; torch's own helper does not.
                fan_out = module.out_channels // module.groups * module.weight[0, 0].numel()
                nn.init.normal_(module.weight, std=math.sqrt(2.0 / fan_out))
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def reset_classifier(self) -> None:
        """Initialise the last linear layer anew."""
        nn.init.trunc_normal_(self.head.classifier.weight, std=0.02)
        nn.init.zeros_(self.head.classifier.bias)


def _make_stages(config: ModelConfig) -> list[nn.Sequential]:
    num_blocks = sum(config.depths)
    stages: list[nn.Sequential] = []
    in_channels = config.stem_width
    grid_size = -(-config.pretrain_image_size_px // config.stem_stride)
    index = 0
    for letter, width, depth, stage_stride in zip(
        config.layout, config.widths, config.depths, config.strides, strict=True
    ):
        grid_size = -(-grid_size // stage_stride)
        blocks: list[nn.Module] = []
        for position in range(depth):
            stride = stage_stride if position == 0 else 1
            rate = config.stochastic_depth_rate * index / max(num_blocks - 1, 1)
            if letter == "C":
                blocks.append(MBConvBlock(config, in_channels, width, stride, rate))
            else:
                blocks.append(TransformerBlock(config, in_channels, width, stride, rate, grid_size))
            in_channels = width
            index += 1
        stages.append(nn.Sequential(*blocks))
    return stages


def check_images(images_BCHW: Tensor, config: ModelConfig) -> None:
    """Raise ValueError unless the images are a floating-point [B, in_channels, H, W] of enough pixels."""
    in_channels, smallest = config.in_channels, config.stem_stride
    if images_BCHW.ndim != 4:
        raise ValueError(f"images have shape {tuple(images_BCHW.shape)}; expected [B, {in_channels}, H, W]")
    if images_BCHW.shape[0] == 0:
        raise ValueError("there is no image in the batch; give at least one")
    if images_BCHW.shape[1] != in_channels:
        raise ValueError(f"images have {images_BCHW.shape[1]} channels; the model takes {in_channels}")
    if not images_BCHW.is_floating_point():
        raise ValueError(f"images are {images_BCHW.dtype}; normalise them to a floating-point type first")
    height, width = images_BCHW.shape[2:]
    if min(height, width) < smallest:
        raise ValueError(f"images have {height} x {width} pixels; the stem needs {smallest} x {smallest}")
