"""Statistics of two classifiers on the same samples, from their discordant pairs alone.

`gained` counts samples only the challenger has right, `lost` those only the champion has right.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """A two-sided confidence interval."""

    lower: float
    upper: float


def difference_interval(*, gained: int, lost: int, num_samples: int, confidence: float) -> Interval:
    """Return a confidence interval for the paired difference of two proportions.

    The union of two intervals, so that each one's weakness is covered by the other:
    - Tango's score interval (Statistics in Medicine 17, 1998, 891-908), good near any difference but a
      little short for few discordant pairs;
    - the exact conditional (Clopper-Pearson) interval of the discordant pairs' share, which excludes 0 only
      when McNemar's exact test rejects, but takes the number of discordant pairs as given.
    """
    score = _score_interval(gained, lost, num_samples, confidence)
    exact = _conditional_interval(gained, lost, num_samples, confidence)
    return Interval(lower=min(score.lower, exact.lower), upper=max(score.upper, exact.upper))


def regression_p_value(*, gained: int, lost: int) -> float:
    """Return McNemar's exact one-sided p-value of "the challenger is worse": P(X >= lost), X ~ B(n, 1/2)."""
    return _upper_tail(lost, gained + lost, 0.5)


def holm(p_values: Sequence[float]) -> list[float]:
    """Return Holm's (1979) adjusted p-values, in the given order: they bound the family-wise error."""
    count = len(p_values)
    adjusted = [0.0] * count
    largest = 0.0
    for rank, index in enumerate(sorted(range(count), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (count - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted


def _score_interval(gained: int, lost: int, num_samples: int, confidence: float) -> Interval:
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    observed = (gained - lost) / num_samples

    def statistic(difference: float) -> float:
        return _tango_statistic(gained, lost, num_samples, difference)

    # The statistic falls as the difference grows: +z at the lower bound, -z at the upper one.
    return Interval(
        lower=_bisect(lambda difference: statistic(difference) > z, -1.0, observed),
        upper=_bisect(lambda difference: statistic(difference) >= -z, observed, 1.0),
    )


def _tango_statistic(gained: int, lost: int, num_samples: int, difference: float) -> float:
    """Return the score statistic of `difference`, with the other parameter at its restricted maximum."""
    a = 2.0 * num_samples
    b = -gained - lost + (2 * num_samples - gained + lost) * difference
    c = -lost * difference * (1.0 - difference)
    loss_rate = (math.sqrt(max(b * b - 4.0 * a * c, 0.0)) - b) / (2.0 * a)
    variance = num_samples * (2.0 * loss_rate + difference * (1.0 - difference))
    distance = gained - lost - num_samples * difference
    if variance <= 0.0:
        return 0.0 if distance == 0.0 else math.copysign(math.inf, distance)
    return distance / math.sqrt(variance)


def _conditional_interval(gained: int, lost: int, num_samples: int, confidence: float) -> Interval:
    discordant = gained + lost
    tail = (1.0 - confidence) / 2
    share_lower, share_upper = 0.0, 1.0
    if gained > 0:
        share_lower = _bisect(lambda share: _upper_tail(gained, discordant, share) < tail, 0.0, 1.0)
    if lost > 0:
        share_upper = 1.0 - _bisect(lambda share: _upper_tail(lost, discordant, share) < tail, 0.0, 1.0)
    scale = discordant / num_samples
    return Interval(lower=scale * (2.0 * share_lower - 1.0), upper=scale * (2.0 * share_upper - 1.0))


def _upper_tail(successes: int, trials: int, probability: float) -> float:
    """Return P(X >= successes) for X ~ B(trials, probability), summed in logarithms."""
    if successes <= 0:
        return 1.0
    if probability <= 0.0 or probability >= 1.0:
        return float(probability >= 1.0)
    log_terms: NDArray[np.float64] = np.array(
        [
            math.lgamma(trials + 1) - math.lgamma(k + 1) - math.lgamma(trials - k + 1)
            + k * math.log(probability) + (trials - k) * math.log1p(-probability)
            for k in range(successes, trials + 1)
        ]
    )  # fmt: skip
    peak = float(log_terms.max())
    return min(1.0, math.exp(peak) * float(np.exp(log_terms - peak).sum()))


def _bisect(is_below: Callable[[float], bool], lower: float, upper: float) -> float:
    """Return where `is_below` turns from true to false between `lower` and `upper`."""
    for _ in range(60):
        middle = (lower + upper) / 2
        if is_below(middle):
            lower = middle
        else:
            upper = middle
    return (lower + upper) / 2
