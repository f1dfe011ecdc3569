"""The transformer block with relative attention (section 2.1 and appendix A.1)."""

from torch import Tensor, nn

from coatnet.config import ModelConfig, PoolKind
from coatnet.fused_inference import is_fusable, linear
from coatnet.layers import Downsample, LayerScale, StochasticDepth, make_norm_channels_last, pool_2d
from coatnet.onednn_linear import trained_linear
from coatnet.relative_attention import RelativeAttentionLayer
from coatnet.relative_mlp import RelativeMlp


class FeedForward(nn.Module):
    """Linear, GELU, Linear."""

    def __init__(self, width: int, expansion: int) -> None:
        super().__init__()
        self.expand = nn.Linear(width, expansion * width)
        self.activation = nn.GELU()
        self.project = nn.Linear(expansion * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Map [..., C] to the same shape."""
        if is_fusable(x, self.expand, self.activation, self.project):
            return linear(linear(x, self.expand, self.activation), self.project)
        hidden = self.activation(trained_linear(x, self.expand))
        return trained_linear(hidden, self.project)


class TransformerBlock(nn.Module):
    """x + Attention(Norm(x)), then x + FFN(Norm(x)).

    A downsampling block pools on both branches: Proj(Pool(x)) + Attention(Pool(Norm(x))).
    The tensors between blocks are BCHW in channels_last memory, so the permutes here are free. In a block
    they are BNC, N = H W: of four dimensions the compiler takes the second for the channels, and lays out
    anew what the backward pass needs.
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
        bias = config.transformer_shortcut_bias
        self.shortcut = Downsample(in_channels, out_channels, stride, config.pool, bias)
        kind, eps, scale = config.transformer_norm, config.transformer_norm_eps, config.layer_scale_init
        self.attention_norm = make_norm_channels_last(kind, in_channels, eps)
        inner_channels = out_channels if config.attention_width == "output" else in_channels
        self.attention = RelativeAttentionLayer(
            in_channels,
            out_channels,
            config.head_size,
            grid_size,
            config.relative_attention,
            inner_channels=inner_channels,
            bias=_make_mlp(config, inner_channels // config.head_size),
        )
        self.attention_scale = LayerScale(out_channels, scale) if scale else nn.Identity()
        self.ffn_norm = make_norm_channels_last(kind, out_channels, eps)
        self.ffn = FeedForward(out_channels, config.ffn_expansion)
        self.ffn_scale = LayerScale(out_channels, scale) if scale else nn.Identity()
        self.stochastic_depth = StochasticDepth(drop_rate)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Map [B, C_in, H, W] to [B, C_out, ceil(H / stride), ceil(W / stride)]."""
        x_BHWC = x_BCHW.permute(0, 2, 3, 1)
        y = self.attention_norm(x_BHWC.flatten(1, 2)).view(x_BHWC.shape)
        if self.stride > 1:
            y = pool_2d(y.permute(0, 3, 1, 2), self.stride, self.pool).permute(0, 2, 3, 1)
        y_BNC = self.attention(y).flatten(1, 2)
        shortcut_BCHW = self.shortcut(x_BCHW)
        x_BNC = shortcut_BCHW.permute(0, 2, 3, 1).flatten(1, 2)
        x_BNC = x_BNC + self.stochastic_depth(self.attention_scale(y_BNC))
        x_BNC = x_BNC + self.stochastic_depth(self.ffn_scale(self.ffn(self.ffn_norm(x_BNC))))
        return x_BNC.mT.view(shortcut_BCHW.shape)


def _make_mlp(config: ModelConfig, num_heads: int) -> RelativeMlp | None:
    if config.relative_position == "table" or config.relative_attention == "none":
        return None
    return RelativeMlp(num_heads, config.relative_mlp_hidden)
