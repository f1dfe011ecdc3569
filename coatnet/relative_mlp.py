"""The relative bias as a function of the offset, in place of a table.

Shape letters: H height, W width, N = H * W positions, h heads.
"""

import torch
from torch import Tensor, nn

from coatnet.relative_attention import relative_index

_DROPOUT = 0.125


class RelativeMlp(nn.Module):
    """An MLP from log-spaced offsets to a bias for each head (Liu et al. 2021, Swin V2, section 3.3).

    As in timm 1.0.31 ("cr" mode) offsets are sign(d) * ln(1 + |d|) of whole positions, not of their
    share of the grid, so another grid needs no resize. Unlike a table's, the bias is computed anew
    on every call: its cost is that of (2H - 1)(2W - 1) positions of two small linear layers.
    """

    def __init__(self, num_heads: int, hidden: int) -> None:
        super().__init__()
        self.expand = nn.Linear(2, hidden)
        self.activation = nn.ReLU()
        self.dropout = nn.Dropout(_DROPOUT)
        self.project = nn.Linear(hidden, num_heads)

    def forward(self, height: int, width: int, dtype: torch.dtype) -> Tensor:
        """Return the bias [h, N, N] of a height x width grid; entry (i, j) is of offset i - j."""
        device = self.expand.weight.device
        offsets = relative_offsets(height, width).to(device, self.expand.weight.dtype)
        log_offsets = offsets.sign() * offsets.abs().log1p()
        with torch.autocast(device.type, enabled=False):
            table = self.project(self.dropout(self.activation(self.expand(log_offsets)))).T
        bias = table.index_select(1, relative_index(height, width).to(device))
        return bias.view(-1, height * width, height * width).to(dtype)


def relative_offsets(height: int, width: int) -> Tensor:
    """Return float32 [(2H - 1) * (2W - 1), 2]: rows and columns in the order of a flattened table."""
    rows = torch.arange(1 - height, height, dtype=torch.float32)
    columns = torch.arange(1 - width, width, dtype=torch.float32)
    return torch.cartesian_prod(rows, columns)
