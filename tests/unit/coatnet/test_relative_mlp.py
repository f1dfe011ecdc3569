import math

import pytest
import torch

from coatnet import CoAtNet, ModelConfig
from coatnet.relative_mlp import RelativeMlp, relative_offsets


@pytest.mark.parametrize(("height", "width"), [(3, 3), (2, 5)])
def test_entry_is_the_mlp_of_query_minus_key(height: int, width: int) -> None:
    torch.manual_seed(0)
    mlp = RelativeMlp(num_heads=2, hidden=8).eval()
    bias = mlp(height, width, torch.float32)
    assert bias.shape == (2, height * width, height * width)
    for i in range(height * width):
        for j in range(height * width):
            offset = (i // width - j // width, i % width - j % width)
            logs = [math.copysign(math.log(1 + abs(d)), d) for d in offset]
            hidden = (mlp.expand.weight @ torch.tensor(logs) + mlp.expand.bias).clamp(min=0)
            torch.testing.assert_close(bias[:, i, j], mlp.project(hidden))


def test_offsets_stand_in_the_order_of_a_flattened_table() -> None:
    offsets = relative_offsets(2, 3).view(3, 5, 2)
    assert offsets[0, 0].tolist() == [-1, -2]
    assert offsets[2, 4].tolist() == [1, 2]


def test_another_grid_agrees_where_both_have_the_offset() -> None:
    mlp = RelativeMlp(num_heads=1, hidden=4).eval()
    small, large = mlp(2, 2, torch.float32), mlp(3, 4, torch.float32)
    torch.testing.assert_close(large[:, :2, :2], small[:, :2, :2])


def test_is_computed_in_float32_under_autocast() -> None:
    mlp = RelativeMlp(num_heads=1, hidden=64).eval()
    expected = mlp(4, 4, torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(mlp(4, 4, torch.float32), expected)


def test_a_model_has_it_in_place_of_its_tables() -> None:
    config = ModelConfig(
        layout="T", widths=(8,), depths=(2,), strides=(2,), head_size=4, relative_position="mlp"
    )
    names = [name for name, _ in CoAtNet(config).named_parameters() if ".attention.bias." in name]
    assert len(names) == 2 * 4
    assert not any(name.endswith("table") for name in names)
