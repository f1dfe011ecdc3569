"""Small parts that MBConv and transformer blocks share.

Shape letters: B batch, C channels, H height, W width, N = H W positions.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from coatnet.config import Activation, NormKind, PoolKind

BATCH_NORM_MOMENTUM = 0.01
_USUAL_EPS: dict[NormKind, float] = {"batch": 1e-3, "layer": 1e-5}

ACTIVATIONS: dict[Activation, type[nn.Module]] = {"gelu": nn.GELU, "silu": nn.SiLU, "relu": nn.ReLU}


def set_batch_norm_momentum(model: nn.Module, momentum: float) -> None:
    """Make running statistics follow each batch by `momentum` at least, in every BatchNorm layer."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = max(BATCH_NORM_MOMENTUM, momentum)


class LayerNorm2d(nn.LayerNorm):
    """LayerNorm over the channels of a BCHW tensor."""

    def forward(self, input: Tensor) -> Tensor:
        """Normalise [B, C, H, W] over C."""
        return super().forward(input.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class BatchNormChannelsLast(nn.BatchNorm2d):
    """BatchNorm over the channels of a BNC tensor."""

    def forward(self, input: Tensor) -> Tensor:
        """Normalise [B, N, C] over B and N."""
        # As [B, C, 1, N]: of [B, C, N, 1] torch's gradients are wrong on the CPU where it and its gradient
        # lie in memory in different orders.
        return super().forward(input.mT.unsqueeze(2)).squeeze(2).mT


def make_norm_2d(kind: NormKind, num_channels: int, eps: float | None) -> nn.Module:
    """Return a normalisation of BCHW tensors; no eps: the usual one of its kind."""
    eps = _USUAL_EPS[kind] if eps is None else eps
    if kind == "batch":
        return nn.BatchNorm2d(num_channels, eps=eps, momentum=BATCH_NORM_MOMENTUM)
    return LayerNorm2d(num_channels, eps=eps)


def make_norm_channels_last(kind: NormKind, num_channels: int, eps: float | None) -> nn.Module:
    """Return a normalisation of BNC tensors; no eps: the usual one of its kind."""
    eps = _USUAL_EPS[kind] if eps is None else eps
    if kind == "batch":
        return BatchNormChannelsLast(num_channels, eps=eps, momentum=BATCH_NORM_MOMENTUM)
    return nn.LayerNorm(num_channels, eps=eps)


class Downsample(nn.Module):
    """The shortcut of a downsampling block, Proj(Pool(x)) (section 2.3).

    An odd side of length n becomes (n + 1) / 2, which is what the strided convolution beside it gives.
    """

    def __init__(
        self, in_channels: int, out_channels: int, stride: int, pool: PoolKind, bias: bool = True
    ) -> None:
        super().__init__()
        self.stride = stride
        self.pool: PoolKind = pool
        self.project = (
            nn.Conv2d(in_channels, out_channels, 1, bias=bias)
            if in_channels != out_channels
            else nn.Identity()
        )

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Return [B, out_channels, ceil(H / stride), ceil(W / stride)]."""
        return self.project(pool_2d(x_BCHW, self.stride, self.pool))


def pool_2d(x_BCHW: Tensor, stride: int, pool: PoolKind) -> Tensor:
    """Pool with a window (3x3 for max3) at `stride` to ceil(side / stride); stride 1 returns the input."""
    if stride == 1:
        return x_BCHW
    if pool == "max3":
        return F.max_pool2d(x_BCHW, 3, stride, padding=1)
    if pool == "max":
        return F.max_pool2d(x_BCHW, stride, ceil_mode=True)
    return F.avg_pool2d(x_BCHW, stride, ceil_mode=True)


class Pool2d(nn.Module):
    """`pool_2d` as a module."""

    def __init__(self, stride: int, pool: PoolKind) -> None:
        super().__init__()
        self.stride = stride
        self.pool: PoolKind = pool

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Return [B, C, ceil(H / stride), ceil(W / stride)]."""
        return pool_2d(x_BCHW, self.stride, self.pool)


class LayerScale(nn.Module):
    """A learned scale for each channel of a residual branch (Touvron et al. 2021)."""

    def __init__(self, num_channels: int, init: float) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((num_channels,), init))

    def forward(self, x: Tensor) -> Tensor:
        """Scale [..., C]."""
        return x * self.gamma


class StochasticDepth(nn.Module):
    """Drop a residual branch for whole samples (Huang et al. 2016), scaling what is kept."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        """Zero each sample of [B, ...] with probability `rate` while training."""
        if not self.training or self.rate == 0.0:
            return x
        keep = 1.0 - self.rate
        mask = x.new_empty((x.shape[0],) + (1,) * (x.ndim - 1)).bernoulli_(keep)
        return x * mask.div_(keep)

    def extra_repr(self) -> str:
        """Show the rate in the module's printout."""
        return f"rate={self.rate}"
