"""Operations are drawn fairly and each sample gets exactly its own."""

import numpy as np
import pytest
import torch
from scipy import stats

from data.rand_augment import (
    DRAWS_PER_OP,
    NOT_APPLIED,
    Op,
    RandAugmentDraw,
    describe_op,
    draw_rand_augment,
    rand_augment_,
)
from data.randomness import uniforms


def draw_ops(
    num_samples: int, num_ops: int, *, probability: float = 1.0, magnitude: float = 9.0
) -> RandAugmentDraw:
    numbers = uniforms(3, 1, np.arange(num_samples), 18, num_ops * DRAWS_PER_OP)
    return draw_rand_augment(numbers, magnitude=magnitude, probability=probability, increasing=False)


def test_pairs_are_uniform_with_replacement() -> None:
    """Chi-square over the 225 ordered pairs. Kornia draws one set for a whole batch."""
    draw = draw_ops(45_000, 2)
    counts = np.bincount(draw.ops_BN[:, 0] * len(Op) + draw.ops_BN[:, 1], minlength=len(Op) ** 2)
    assert stats.chisquare(counts).pvalue > 1e-3


def test_signs_are_fair_and_independent_of_the_operation() -> None:
    draw = draw_ops(30_000, 1)
    table = [
        [np.sum(np.sign(draw.arguments_BN[draw.ops_BN == op]) == sign) for sign in (-1, 1)]
        for op in (Op.Rotate, Op.ShearX, Op.ShearY, Op.TranslateXRel, Op.TranslateYRel)
    ]
    assert stats.chi2_contingency(table).pvalue > 1e-3
    negative, positive = np.sum(table, axis=0)
    assert stats.binomtest(negative, negative + positive).pvalue > 1e-3


def test_probability_skips_operations() -> None:
    skipped = np.sum(draw_ops(20_000, 1, probability=0.5).ops_BN == NOT_APPLIED)
    assert stats.binomtest(int(skipped), 20_000, 0.5).pvalue > 1e-3
    assert (draw_ops(1000, 2, probability=0.0).ops_BN == NOT_APPLIED).all()


def test_more_operations_keep_the_first_ones() -> None:
    np.testing.assert_array_equal(draw_ops(50, 3).ops_BN[:, :2], draw_ops(50, 2).ops_BN)


@pytest.mark.parametrize("num_ops", [1, 2, 3])
def test_grouping_equals_one_sample_at_a_time(num_ops: int) -> None:
    """Guards the sorting by operation: a wrong permutation gives a sample another one's operations."""
    draw = draw_ops(64, num_ops, probability=0.8)
    images = torch.randint(0, 256, (64, 3, 12, 10), dtype=torch.uint8)
    together = rand_augment_(images.clone(), draw)
    for row in range(64):
        alone = images[row : row + 1].clone()
        for number in range(num_ops):
            one = RandAugmentDraw(
                ops_BN=draw.ops_BN[row : row + 1, number : number + 1],
                arguments_BN=draw.arguments_BN[row : row + 1, number : number + 1],
            )
            alone = rand_augment_(alone, one)
        assert torch.equal(alone[0], together[row])


def test_nothing_to_do() -> None:
    images = torch.randint(0, 256, (4, 3, 8, 8), dtype=torch.uint8)
    nothing = RandAugmentDraw(ops_BN=np.zeros((4, 0), dtype=np.int64), arguments_BN=np.zeros((4, 0)))
    assert torch.equal(rand_augment_(images.clone(), nothing), images)
    assert rand_augment_(images[:0], draw_ops(0, 2)).shape == (0, 3, 8, 8)


def test_captions() -> None:
    assert describe_op(Op.Equalize, 0.0) == "Equalize"
    assert describe_op(Op.TranslateXRel, -0.405) == "TranslateX -0.405"
