"""The transformer block with relative attention (section 2.1 and appendix A.1)."""

from torch import Tensor, nn

from coatnet.config import ModelConfig, PoolKind
from coatnet.layers import LAYER_NORM_EPS, Downsample, StochasticDepth, pool_2d
from coatnet.relative_attention import RelativeAttentionLayer


class FeedForward(nn.Module):
    """Linear, GELU, Linear."""

    def __init__(self, width: int, expansion: int) -> None:
        super().__init__()
        self.expand = nn.Linear(width, expansion * width)
        self.activation = nn.GELU()
        self.project = nn.Linear(expansion * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Map [..., C] to [..., C]."""
        return self.project(self.activation(self.expand(x)))


class TransformerBlock(nn.Module):
    """x + Attention(Norm(x)), then x + FFN(Norm(x)).

    A downsampling block pools on both branches: Proj(Pool(x)) + Attention(Pool(Norm(x))).
    The tensors between blocks are BCHW in channels_last memory, so the permutes here are free.
    """

    def __init__(
        self,
        config: ModelConfig,
        in_channels: int,
        out_channels: int,
        stride: int,
        drop_rate: float,
        grid_size: int,
    ) -> None:
        super().__init__()
        self.stride = stride
        self.pool: PoolKind = config.pool
        self.shortcut = Downsample(in_channels, out_channels, stride, config.pool)
        self.attention_norm = nn.LayerNorm(in_channels, eps=LAYER_NORM_EPS)
        self.attention = RelativeAttentionLayer(
            in_channels, out_channels, config.head_size, grid_size, config.relative_attention
        )
        self.ffn_norm = nn.LayerNorm(out_channels, eps=LAYER_NORM_EPS)
        self.ffn = FeedForward(out_channels, config.ffn_expansion)
        self.stochastic_depth = StochasticDepth(drop_rate)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Map [B, C_in, H, W] to [B, C_out, ceil(H / stride), ceil(W / stride)]."""
        shortcut = self.shortcut(x_BCHW).permute(0, 2, 3, 1)
        y = self.attention_norm(x_BCHW.permute(0, 2, 3, 1))
        if self.stride > 1:
            y = pool_2d(y.permute(0, 3, 1, 2), self.stride, self.pool).permute(0, 2, 3, 1)
        x = shortcut + self.stochastic_depth(self.attention(y))
        x = x + self.stochastic_depth(self.ffn(self.ffn_norm(x)))
        return x.permute(0, 3, 1, 2)
