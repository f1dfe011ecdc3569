"""MBConv, the convolution block (section 2.1 and appendix A.1; Sandler et al. 2018)."""

from torch import Tensor, nn

from coatnet.compiled_depthwise import depthwise
from coatnet.config import Activation, ModelConfig
from coatnet.fused_inference import FusedConvolution, is_fusable
from coatnet.layers import ACTIVATIONS, Downsample, Pool2d, StochasticDepth, make_norm_2d
from coatnet.plain_cpu import is_watched


class SqueezeExcite(nn.Module):
    """Channel gates from globally pooled features (Hu et al. 2018)."""

    def __init__(self, num_channels: int, hidden: int, activation: Activation) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(num_channels, hidden, 1)
        self.activation = ACTIVATIONS[activation]()
        self.expand = nn.Conv2d(hidden, num_channels, 1)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Scale each channel of [B, C, H, W] by a gate in (0, 1)."""
        pooled = x_BCHW.mean((2, 3), keepdim=True)
        return x_BCHW * self.expand(self.activation(self.reduce(pooled))).sigmoid()


class MBConvBlock(nn.Module):
    """x + Project(SE(Depthwise(Expand(Norm(x))))), pre-activation.

    A downsampling block is Proj(Pool(x)) + MBConv(x) with the stride on the first 1x1, on the
    depthwise convolution or on a pooling before both (`ModelConfig.downsample_on`).
    """

    def __init__(
        self, config: ModelConfig, in_channels: int, out_channels: int, stride: int, drop_rate: float
    ) -> None:
        super().__init__()
        hidden = config.conv_expansion * (
            out_channels if config.conv_expand_from == "output" else in_channels
        )
        se_hidden = int(config.se_ratio * (out_channels if config.se_ratio_of == "output" else hidden))
        strides = {"conv1x1": 1, "depthwise": 1, "pool": 1, config.downsample_on: stride}
        self.shortcut = Downsample(in_channels, out_channels, stride, config.pool, config.conv_output_bias)
        self.pre_norm = make_norm_2d(config.norm, in_channels, config.norm_eps)
        self.activation = ACTIVATIONS[config.conv_activation]()
        self.pre_activation = self.activation if config.pre_norm_activation else nn.Identity()
        self.pool = Pool2d(strides["pool"], "avg")
        self.expand = nn.Conv2d(in_channels, hidden, 1, stride=strides["conv1x1"], bias=False)
        self.expand_norm = make_norm_2d(config.norm, hidden, config.norm_eps)
        self.depthwise = nn.Conv2d(
            hidden, hidden, 3, stride=strides["depthwise"], padding=1, groups=hidden, bias=False
        )
        self.depthwise_norm = make_norm_2d(config.norm, hidden, config.norm_eps)
        se = SqueezeExcite(hidden, se_hidden, config.se_activation) if se_hidden else nn.Identity()
        is_early = config.se_place == "before_norm"
        self.early_se = se if is_early else nn.Identity()
        self.se = nn.Identity() if is_early else se
        self.project = nn.Conv2d(hidden, out_channels, 1, bias=config.conv_output_bias)
        self.stochastic_depth = StochasticDepth(drop_rate)
        self._fused_expand, self._fused_depthwise = FusedConvolution(), FusedConvolution()

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Map [B, C_in, H, W] to [B, C_out, ceil(H / stride), ceil(W / stride)]."""
        if self._is_fusable(x_BCHW):
            y = self._expand_and_filter_fused(x_BCHW)
        else:
            y = self.pool(self.pre_activation(self.pre_norm(x_BCHW)))
            y = self.activation(self.expand_norm(self.expand(y)))
            y = self.activation(self.depthwise_norm(self.early_se(depthwise(y, self.depthwise))))
        y = self.project(self.se(y))
        return self.shortcut(x_BCHW) + self.stochastic_depth(y)

    def train(self, mode: bool = True) -> "MBConvBlock":
        """Switch modes; what was folded for eval is dropped."""
        self._fused_expand.forget()
        self._fused_depthwise.forget()
        return super().train(mode)

    def _is_fusable(self, x_BCHW: Tensor) -> bool:
        norms = (self.pre_norm, self.expand_norm, self.depthwise_norm)
        layers = (self.expand, self.depthwise, self.activation, *norms)
        is_one_by_one = self.expand.kernel_size == (1, 1) and self.expand.padding == (0, 0)
        is_heard = is_watched(self.pre_activation) or is_watched(self.early_se)
        return is_fusable(x_BCHW, *layers) and is_one_by_one and not is_heard

    def _expand_and_filter_fused(self, x_BCHW: Tensor) -> Tensor:
        """Fold each norm that no activation or squeeze-and-excitation parts from its convolution."""
        activation, before = self.activation, None
        if isinstance(self.pre_activation, nn.Identity):
            before = self.pre_norm
        else:
            x_BCHW = self.pre_activation(self.pre_norm(x_BCHW))
        y = self._fused_expand(
            self.pool(x_BCHW), self.expand, activation, before=before, after=self.expand_norm
        )
        if isinstance(self.early_se, nn.Identity):
            return self._fused_depthwise(y, self.depthwise, activation, after=self.depthwise_norm)
        return activation(self.depthwise_norm(self.early_se(self.depthwise(y))))
