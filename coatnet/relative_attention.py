"""Attention with a learned bias for each relative offset (section 2.1, equation 3).

Shape letters: B batch, H height, W width, N = H * W positions, h heads, d head size, C channels.
"""

from functools import lru_cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from coatnet.config import RelativeAttention
from coatnet.fused_inference import is_fusable, linear
from coatnet.onednn_linear import trained_linear

_BIAS_STD = 0.02
_MAX_CACHED_GRIDS = 8


class RelativeBias(nn.Module):
    """One scalar for each head and relative offset, resized to the grid it is asked for.

    The parameter keeps the pretraining grid's shape [h, 2H - 1, 2W - 1] for ever, so optimizer
    state, EMA and sharding never see another resolution; other grids read a bilinear resize
    (section 4.1). In eval the gathered bias of the last few grids is cached until the table changes.
    """

    def __init__(self, num_heads: int, grid_size: int) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.empty(num_heads, 2 * grid_size - 1, 2 * grid_size - 1))
        self._cache: dict[tuple[object, ...], Tensor] = {}
        self._cached_version: tuple[int, int] | None = None

    def reset_parameters(self) -> None:
        """Draw the table from normal(0, 0.02)."""
        nn.init.normal_(self.table, std=_BIAS_STD)

    def forward(self, height: int, width: int, dtype: torch.dtype) -> Tensor:
        """Return the bias [h, N, N] of a height x width grid; entry (i, j) is w[i - j]."""
        if torch.compiler.is_compiling() or self.training or torch.is_grad_enabled():
            return self._gather(height, width, dtype)
        table = self.table
        if table.is_inference():  # made in inference mode: such a tensor does not count its writes
            return self._gather(height, width, dtype)
        # `_version` grows with every in-place write: optimizer step, EMA swap, load_state_dict.
        version = (table.data_ptr(), table._version)  # pyright: ignore[reportPrivateUsage]
        if version != self._cached_version:
            self._cached_version, self._cache = version, {}
        key = (height, width, dtype, table.device)
        if key not in self._cache:
            if len(self._cache) == _MAX_CACHED_GRIDS:
                self._cache = {}
            self._cache[key] = self._gather(height, width, dtype)
        return self._cache[key]

    def train(self, mode: bool = True) -> "RelativeBias":
        """Switch modes; the eval cache is dropped."""
        self._cache = {}
        return super().train(mode)

    def _gather(self, height: int, width: int, dtype: torch.dtype) -> Tensor:
        table = self.table.to(torch.promote_types(self.table.dtype, torch.float32))
        if table.shape[1:] != (2 * height - 1, 2 * width - 1):
            size = (2 * height - 1, 2 * width - 1)
            table = F.interpolate(table[None], size=size, mode="bilinear", align_corners=False)[0]
        num_positions = height * width
        bias = table.flatten(1).index_select(1, _index(height, width, table.device))
        return bias.view(-1, num_positions, num_positions).to(dtype)

    def __getstate__(self) -> dict[str, object]:
        return {**super().__getstate__(), "_cache": {}, "_cached_version": None}


def _index(height: int, width: int, device: torch.device) -> Tensor:
    if torch.compiler.is_compiling():  # a traced graph keeps nothing between calls
        return relative_index(height, width).to(device)
    return _kept_index(height, width, device)


@lru_cache(maxsize=_MAX_CACHED_GRIDS)
def _kept_index(height: int, width: int, device: torch.device) -> Tensor:
    with torch.inference_mode(False):  # made in inference mode it could never be trained with
        return relative_index(height, width).to(device)


def relative_index(height: int, width: int) -> Tensor:
    """Return int64 [N * N]: where the offset of query i and key j stands in a flattened table."""
    rows = torch.arange(height).repeat_interleave(width)
    columns = torch.arange(width).repeat(height)
    row_offset = rows[:, None] - rows[None, :] + height - 1
    column_offset = columns[:, None] - columns[None, :] + width - 1
    return (row_offset * (2 * width - 1) + column_offset).flatten()


class RelativeAttentionLayer(nn.Module):
    """Multi-head self-attention with the relative bias before or after the softmax.

    pre: softmax(q.k / sqrt(d) + w[i - j]).v; post: (softmax(q.k / sqrt(d)) + w[i - j]).v.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        head_size: int,
        grid_size: int,
        kind: RelativeAttention,
        *,
        inner_channels: int | None = None,
        bias: nn.Module | None = None,
    ) -> None:
        """Build the layer.

        `inner_channels` is the width of q, k and v (by default the output's); `bias`, a module called
        as `RelativeBias` is, replaces the table.
        """
        super().__init__()
        inner_channels = inner_channels or out_channels
        self.kind = kind
        self.head_size = head_size
        self.num_heads = inner_channels // head_size
        self.qkv = nn.Linear(in_channels, 3 * inner_channels)
        self.project = nn.Linear(inner_channels, out_channels)
        if bias is None and kind != "none":
            bias = RelativeBias(self.num_heads, grid_size)
        self.bias = bias

    def forward(self, x_BHWC: Tensor) -> Tensor:
        """Map [B, H, W, C_in] to [B, H, W, C_out]."""
        batch, height, width, _ = x_BHWC.shape
        x_BNC = x_BHWC.flatten(1, 2)
        project = linear if is_fusable(x_BNC, self.qkv, self.project) else trained_linear
        qkv = project(x_BNC, self.qkv).view(batch, height * width, 3, self.num_heads, self.head_size)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        bias = self.bias(height, width, q.dtype) if self.bias is not None else None
        out = _attend(q, k, v, bias if self.kind == "pre" else None)
        if self.kind == "post" and bias is not None:
            out = out + bias @ v
        if torch.compiler.is_exporting():
            out = out.contiguous()  # else the fused CPU kernel's memory layout becomes part of the graph
        y_BNC = project(out.transpose(1, 2).flatten(2), self.project)
        return y_BNC.view(batch, height, width, -1)


def _attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
    """Return softmax(q.k / sqrt(d) + bias).v, [B, h, N, d] as q, k and v are; the bias is [h, N, N]."""
    is_precise = q.dtype in (torch.float32, torch.float64)  # in less the softmax would not be float32
    is_cpu_training = q.device.type == "cpu" and not torch.compiler.is_exporting()
    if bias is not None and bias.requires_grad and is_cpu_training and is_precise:
        # No fused CPU kernel has a gradient of the mask, and torch's own single steps also look for rows
        # of nothing but -inf, which a bias never makes.
        scores = (q * q.shape[-1] ** -0.5) @ k.transpose(2, 3) + bias
        return scores.softmax(-1) @ v
    # Four dimensions: with three, torch's fused CPU kernel refuses the mask and takes single steps.
    mask = bias if bias is None else bias.unsqueeze(0)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
