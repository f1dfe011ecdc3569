"""MBConv, the convolution block (section 2.1 and appendix A.1; Sandler et al. 2018)."""

from torch import Tensor, nn

from coatnet.config import ModelConfig
from coatnet.layers import Downsample, StochasticDepth, make_norm_2d


class SqueezeExcite(nn.Module):
    """Channel gates from globally pooled features (Hu et al. 2018), with SiLU inside."""

    def __init__(self, num_channels: int, hidden: int) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(num_channels, hidden, 1)
        self.activation = nn.SiLU()
        self.expand = nn.Conv2d(hidden, num_channels, 1)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Scale each channel of [B, C, H, W] by a gate in (0, 1)."""
        pooled = x_BCHW.mean((2, 3), keepdim=True)
        return x_BCHW * self.expand(self.activation(self.reduce(pooled))).sigmoid()


class MBConvBlock(nn.Module):
    """x + Project(SE(Depthwise(Expand(Norm(x))))), pre-activation.

    A downsampling block is Proj(Pool(x)) + MBConv(x) with the stride on the first 1x1 or on the
    depthwise convolution (`ModelConfig.downsample_on`).
    """

    def __init__(
        self, config: ModelConfig, in_channels: int, out_channels: int, stride: int, drop_rate: float
    ) -> None:
        super().__init__()
        hidden = config.conv_expansion * out_channels
        expand_stride = stride if config.downsample_on == "conv1x1" else 1
        self.shortcut = Downsample(in_channels, out_channels, stride, config.pool)
        self.pre_norm = make_norm_2d(config.norm, in_channels)
        self.expand = nn.Conv2d(in_channels, hidden, 1, stride=expand_stride, bias=False)
        self.expand_norm = make_norm_2d(config.norm, hidden)
        self.depthwise = nn.Conv2d(
            hidden, hidden, 3, stride=stride // expand_stride, padding=1, groups=hidden, bias=False
        )
        self.depthwise_norm = make_norm_2d(config.norm, hidden)
        self.activation = nn.GELU()
        se_hidden = int(config.se_ratio * out_channels)
        self.se = SqueezeExcite(hidden, se_hidden) if se_hidden else nn.Identity()
        self.project = nn.Conv2d(hidden, out_channels, 1)
        self.stochastic_depth = StochasticDepth(drop_rate)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Map [B, C_in, H, W] to [B, C_out, ceil(H / stride), ceil(W / stride)]."""
        y = self.activation(self.expand_norm(self.expand(self.pre_norm(x_BCHW))))
        y = self.activation(self.depthwise_norm(self.depthwise(y)))
        y = self.project(self.se(y))
        return self.shortcut(x_BCHW) + self.stochastic_depth(y)
