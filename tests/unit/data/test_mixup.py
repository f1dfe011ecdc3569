"""Mixup and CutMix: Beta lambdas, exact shares, partners in the lane, nothing from weight-0 samples."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from data import mixup as mixup_module
from data.mixup import MIX_DRAWS, MixDraw, draw_mix, mix
from data.randomness import uniforms


def draw(num_lanes: int, lane_size: int, mixup: float, cutmix: float, *, side: int = 16) -> MixDraw:
    numbers = uniforms(2, 0, np.arange(num_lanes) * lane_size, 20, MIX_DRAWS)
    return draw_mix(
        numbers, lane_size=lane_size, mixup_alpha=mixup, cutmix_alpha=cutmix, height=side, width=side
    )


@pytest.mark.parametrize("alpha", [0.2, 0.8, 2.0])
def test_lambda_is_beta(alpha: float) -> None:
    """Guards against Kornia's RandomMixUpV2, whose lambda is uniform."""
    lambdas = draw(5000, 2, alpha, 0.0).lambdas_B[::2]
    assert stats.kstest(lambdas, stats.beta(alpha, alpha).cdf).pvalue > 1e-3


def test_lambdas_never_change() -> None:
    """A resumed run must draw the same ones, under any later NumPy too."""
    np.testing.assert_allclose(draw(2, 2, 0.8, 0.0).lambdas_B[::2], FROZEN_LAMBDAS, rtol=1e-9)


@settings(deadline=None, max_examples=40)
@given(num_lanes=st.integers(1, 9), lane_size=st.integers(2, 17))
def test_partners_stay_in_their_lane(num_lanes: int, lane_size: int) -> None:
    partners_B = draw(num_lanes, lane_size, 1.0, 1.0).partners_B
    rows_B = np.arange(num_lanes * lane_size)
    np.testing.assert_array_equal(np.sort(partners_B), rows_B)
    np.testing.assert_array_equal(partners_B // lane_size, rows_B // lane_size)
    assert (partners_B != rows_B).all()


def test_both_methods_share_the_lanes() -> None:
    share = draw(4000, 2, 0.8, 1.0).is_cutmix_B[::2].mean()
    assert 0.46 < share < 0.54
    assert draw(50, 2, 0.0, 1.0).is_cutmix_B.all()
    assert not draw(50, 2, 0.8, 0.0).is_cutmix_B.any()


@pytest.mark.parametrize(("mixup", "cutmix"), [(0.8, 0.0), (0.0, 1.0), (0.8, 1.0)])
def test_pixels_and_targets_have_the_same_shares(mixup: float, cutmix: float) -> None:
    """Each image is filled with its class number's one-hot, so its mean is its target.

    Guards against Kornia's inverted CutMix lambda, and a lambda not corrected for a box cut at the edge.
    """
    drawn = draw(30, 2, mixup, cutmix)
    targets = torch.eye(60)
    images = torch.eye(60).view(60, 60, 1, 1).expand(60, 60, 16, 16).contiguous()
    mixed, soft = mix(images, targets, torch.ones(60), drawn)
    torch.testing.assert_close(mixed.mean((2, 3)), soft, atol=1e-6, rtol=0)
    torch.testing.assert_close(soft.sum(1), torch.ones(60))
    torch.testing.assert_close(soft.diagonal(), torch.from_numpy(drawn.lambdas_B).float())


@pytest.mark.parametrize(("mixup", "cutmix"), [(0.8, 0.0), (0.0, 1.0)])
def test_weight_zero_never_mixes(mixup: float, cutmix: float) -> None:
    drawn = draw(10, 4, mixup, cutmix)
    weights = torch.ones(40)
    weights[::3] = 0
    images, targets = torch.rand(40, 3, 16, 16), torch.eye(40)
    mixed, soft = mix(images, targets, weights, drawn)
    for row, partner in enumerate(drawn.partners_B):
        alone = weights[row] == 0 or weights[partner] == 0
        assert torch.equal(mixed[row], images[row]) or not alone
        assert torch.equal(soft[row], targets[row]) == (alone or drawn.lambdas_B[row] == 1.0)


FROZEN_LAMBDAS = [0.8654423417296303, 0.2507311609799221]


@pytest.mark.parametrize(("mixup", "cutmix"), [(0.8, 0.0), (0.8, 1.0)])
def test_pieces_are_mixed_as_the_whole_batch(
    mixup: float, cutmix: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At this size a CPU works on two images at a time."""
    drawn = draw(4, 4, mixup, cutmix, side=200)
    images = torch.rand(16, 3, 200, 200, generator=torch.Generator().manual_seed(0))
    weights = torch.ones(16)
    weights[3] = 0.0
    mixed, _ = mix(images, torch.eye(16), weights, drawn)
    assert mixed.is_contiguous(memory_format=torch.channels_last)
    monkeypatch.setattr(mixup_module, "rows_per_call", len)
    assert torch.equal(mixed, mix(images, torch.eye(16), weights, drawn)[0])
