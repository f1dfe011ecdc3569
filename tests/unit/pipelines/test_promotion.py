"""The gate as a table of challengers, and its statistics against independent computations."""

import dataclasses
import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize, stats  # only the tests may lean on it: it comes with MLflow

from data.errors import InputError
from pipelines.evaluation import EvalReport, build_report
from pipelines.paired_statistics import difference_interval, holm, regression_p_value
from pipelines.promotion import GatePolicy, decide_promotion

NUM_CLASSES = 4
CLASSES = ("airplane", "automobile", "ship", "truck")
POLICY = GatePolicy(min_top1=0.5)


def report(
    wrong: set[int] | frozenset[int] = frozenset(),
    *,
    num_samples: int = 4000,
    confidence: float | None = None,
    snapshot_id: str = "3-0123456789ab",
    latency_ms: float = 2.0,
) -> EvalReport:
    """Build a report whose samples are all right, but for those in `wrong`. Sample i has label i mod K.

    It is perfectly calibrated unless a confidence is given.
    """
    confidence = 1 - len(wrong) / num_samples if confidence is None else confidence
    labels_N = np.arange(num_samples) % NUM_CLASSES
    predicted_N = np.array([(label + (index in wrong)) % NUM_CLASSES for index, label in enumerate(labels_N)])
    probabilities_NK = np.full((num_samples, NUM_CLASSES), (1 - confidence) / (NUM_CLASSES - 1))
    probabilities_NK[np.arange(num_samples), predicted_N] = confidence
    return build_report(
        snapshot_id=snapshot_id,
        split="eval",
        classes=CLASSES,
        keys=[f"{index:05d}.png" for index in range(num_samples)],
        labels_N=labels_N,
        probabilities_NK=probabilities_NK,
        latency_ms_per_image=latency_ms,
    )


CHAMPION = report(set(range(400)))


def with_nan(source: EvalReport) -> EvalReport:
    probabilities_NK = source.probabilities_NK.copy()
    probabilities_NK[7, 1] = math.nan
    return build_report(
        snapshot_id=source.snapshot_id,
        split=source.split,
        classes=source.classes,
        keys=source.keys,
        labels_N=source.labels_N,
        probabilities_NK=probabilities_NK,
        latency_ms_per_image=source.latency_ms_per_image,
    )


def test_better_is_promoted() -> None:
    decision = decide_promotion(report(set(range(100, 400))), CHAMPION, POLICY)
    assert decision.promoted
    assert decision.first_line == "PROMOTED +2.5 pp top-1 (95% CI 2.1 to 3.0), 0/4 classes regressed"
    assert decision.delta_label == "+2.5 pp"
    assert all(check.passed for check in decision.checks)


@pytest.mark.parametrize(
    ("challenger", "first_line"),
    [
        (report(set(range(600))), "REJECTED worse: -5.0 pp (95% CI -5.7 to -4.4), 4/4 classes regressed"),
        (CHAMPION, "REJECTED no improvement: +0.0 pp (95% CI -0.1 to 0.1), 0/4 classes regressed"),
        (report(set(range(5, 400))), "REJECTED no significant improvement: +0.1 pp (95% CI -0.0"),
        (
            with_nan(report()),
            "REJECTED challenger numbers: not finite: nll, ece, probabilities of 1/4000 samples",
        ),
        (report(latency_ms=math.inf), "REJECTED challenger numbers: not finite: latency_ms_per_image"),
        (
            report(snapshot_id="4-ba9876543210"),
            "REJECTED not comparable: snapshot id 4-ba9876543210 of the challenger, 3-0123456789ab of the ch",
        ),
        (
            report(num_samples=3999),
            "REJECTED not comparable: num samples 3999 of the challenger, 4000 of the ch",
        ),
        (
            report(confidence=0.6),
            "REJECTED calibration: expected calibration error 0.0000 to 0.4000; top-1 +10.0",
        ),
    ],
    ids=["worse", "equal", "noise", "nan", "infinite", "snapshot", "samples", "calibration"],
)
def test_what_has_not_earned_it_is_rejected(challenger: EvalReport, first_line: str) -> None:
    decision = decide_promotion(challenger, CHAMPION, POLICY)
    assert decision.verdict == "REJECTED"
    assert decision.first_line.startswith(first_line)
    assert not all(check.passed for check in decision.checks)


def test_a_better_mean_over_a_few_samples_is_noise() -> None:
    """5 of 40 samples better, none worse: the score interval alone would promote on +12.5 pp."""
    champion = report(set(range(10)), num_samples=40)
    decision = decide_promotion(report(set(range(5, 10)), num_samples=40), champion, POLICY)
    assert decision.first_line.startswith("REJECTED no significant improvement: +12.5 pp")


def test_other_keys_or_labels_are_not_comparable() -> None:
    renamed = dataclasses.replace(report(), keys=("x.png", *CHAMPION.keys[1:]))
    assert "2 keys stand in one report only" in decide_promotion(renamed, CHAMPION, POLICY).first_line
    relabelled = dataclasses.replace(report(), labels_N=(CHAMPION.labels_N + 1) % NUM_CLASSES)
    assert "4000 samples have another label" in decide_promotion(relabelled, CHAMPION, POLICY).first_line


def test_nan_champion_fails_closed() -> None:
    """MLflow's own metric gate lets NaN pass, as every comparison with it is false."""
    decision = decide_promotion(report(), with_nan(CHAMPION), POLICY)
    assert decision.first_line.startswith("REJECTED champion numbers: not finite: nll, ece")


def test_class_regression_rejects_a_better_mean() -> None:
    # 600 samples of the other classes gained, 60 ships (label 2) lost.
    champion = report({index for index in range(1600) if index % NUM_CLASSES != 2})
    challenger = report(
        {index for index in range(800, 1600) if index % NUM_CLASSES != 2}
        | {index for index in range(2000, 2240) if index % NUM_CLASSES == 2}
    )
    decision = decide_promotion(challenger, champion, POLICY)
    assert decision.first_line.startswith(
        "REJECTED class regression: ship -6.0 pp, p = 3.5e-18; top-1 +13.5 pp"
    )
    tolerant = dataclasses.replace(POLICY, max_class_regression=0.06)
    assert decide_promotion(challenger, champion, tolerant).promoted


def test_a_new_class_does_not_hide_what_the_known_ones_lose() -> None:
    """All that a champion is given on a class it never saw is wrong: any challenger gains 1/K at once."""
    trucks = {index for index in range(4000) if index % NUM_CLASSES == 3}
    champion = dataclasses.replace(report(trucks), unknown_classes=("truck",))
    decision = decide_promotion(report(), champion, POLICY)
    assert decision.first_line == (
        "PROMOTED +25.0 pp top-1 (95% CI 23.7 to 26.4), 0/4 classes regressed, new to the champion: truck"
    )
    # 4 of 100 lost in each known class: noise for each alone, clear for the three together.
    champion = report({index for index in range(400) if index % NUM_CLASSES == 3}, num_samples=400)
    champion = dataclasses.replace(champion, unknown_classes=("truck",))
    challenger = report({index for index in range(16) if index % NUM_CLASSES != 3}, num_samples=400)
    decision = decide_promotion(challenger, champion, POLICY)
    assert decision.first_line.startswith(
        "REJECTED known classes: without truck, new to the champion; n = 300; top-1 +22.0 pp ("
    )
    failed = [check for check in decision.checks if not check.passed]
    assert [(check.name, check.value[:7]) for check in failed] == [("known classes", "-4.0 pp")]


def test_class_drop_within_noise_does_not_reject() -> None:
    champion = report({index for index in range(100) if index % NUM_CLASSES != 2}, num_samples=200)
    challenger = report({2, 6}, num_samples=200)  # two of 50 ships, -4 pp, p = 0.25
    decision = decide_promotion(challenger, champion, POLICY)
    assert decision.promoted, decision.first_line


def test_min_delta_is_for_the_lower_bound() -> None:
    policy = dataclasses.replace(POLICY, min_delta=0.024)
    decision = decide_promotion(report(set(range(100, 400))), CHAMPION, policy)
    assert decision.first_line.startswith("REJECTED improvement too small (lower bound > +2.4 pp): +2.5 pp (")


def test_latency() -> None:
    policy = dataclasses.replace(POLICY, max_latency_ratio=1.2)
    assert decide_promotion(report(latency_ms=2.3), CHAMPION, policy).promoted
    slow = decide_promotion(report(latency_ms=3.0), CHAMPION, policy)
    assert slow.first_line.startswith("REJECTED latency: 2.00 to 3.00 ms per image; top-1 +10.0 pp")
    assert not decide_promotion(report(latency_ms=0.0), CHAMPION, policy).promoted


def test_no_champion() -> None:
    first = decide_promotion(CHAMPION, None, POLICY)
    assert first.first_line == "PROMOTED top-1 90.0% (n = 4000), no champion to compare with"
    assert first.delta is None
    assert first.delta_label == "n/a"
    high = decide_promotion(CHAMPION, None, GatePolicy(min_top1=0.95))
    assert high.first_line == (
        "REJECTED top-1 90.0% (n = 4000) below the floor >= 95.0%; no champion to compare with"
    )
    assert not decide_promotion(with_nan(CHAMPION), None, POLICY).promoted


def test_class_without_a_sample_fails_closed() -> None:
    few = build_report(
        snapshot_id="1-a",
        split="eval",
        classes=CLASSES,
        keys=["a", "b"],
        labels_N=np.array([0, 1]),
        probabilities_NK=np.eye(4)[:2],
        latency_ms_per_image=1.0,
    )
    line = decide_promotion(few, None, POLICY).first_line
    assert "recall of ship, truck (no evaluation sample?)" in line


def test_markdown_opens_with_the_verdict_and_has_a_row_a_check() -> None:
    decision = decide_promotion(CHAMPION, CHAMPION, POLICY)
    lines = decision.to_markdown().splitlines()
    assert lines[0] == f"**{decision.first_line}**"
    assert sum(line.startswith("| ") for line in lines) == 1 + len(decision.checks)
    assert json.loads(json.dumps(decision.to_dict(), allow_nan=False))["verdict"] == "REJECTED"


@pytest.mark.parametrize(
    "values", [{"min_top1": 5.0}, {"min_delta": math.nan}, {"confidence": 95}, {"max_latency_ratio": -1.0}]
)
def test_policy_refuses_what_is_no_fraction(values: dict[str, float]) -> None:
    with pytest.raises(InputError, match=next(iter(values))):
        GatePolicy(**{"min_top1": 0.5, **values})


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 40), st.integers(0, 40), st.integers(0, 60))
def test_interval_holds_the_estimate_and_mirrors(gained: int, lost: int, ties: int) -> None:
    num_samples = max(1, gained + lost + ties)
    ours = difference_interval(gained=gained, lost=lost, num_samples=num_samples, confidence=0.95)
    mirror = difference_interval(gained=lost, lost=gained, num_samples=num_samples, confidence=0.95)
    assert ours.lower - 1e-9 <= (gained - lost) / num_samples <= ours.upper + 1e-9
    assert ours.lower == pytest.approx(-mirror.upper, abs=1e-7)
    # A bound above zero only if McNemar's exact two-sided test rejects as well.
    two_sided = min(1.0, 2 * regression_p_value(gained=lost, lost=gained))
    assert ours.lower <= 0.0 or two_sided <= 0.05 + 1e-9


def test_score_interval_against_a_likelihood_maximised_by_scipy() -> None:
    gained, lost, num_samples = 25, 9, 200

    def statistic(difference: float) -> float:
        def negative_log_likelihood(rate: float) -> float:
            same = 1 - 2 * rate - difference
            counts = ((gained, rate + difference), (lost, rate), (num_samples - gained - lost, same))
            return -sum(count * math.log(max(share, 1e-300)) for count, share in counts)

        low, high = max(0.0, -difference), (1 - difference) / 2
        bounds = (low + 1e-12, high - 1e-12)
        rate = optimize.minimize_scalar(
            negative_log_likelihood, bounds=bounds, method="bounded", options={"xatol": 1e-12}
        ).x
        variance = num_samples * (2 * rate + difference - difference**2)
        return (gained - lost - num_samples * difference) / math.sqrt(variance)

    z = stats.norm.ppf(0.975)
    lower = optimize.brentq(lambda difference: statistic(difference) - z, -0.5, 0.079)
    upper = optimize.brentq(lambda difference: statistic(difference) + z, 0.081, 0.5)
    share = stats.binomtest(gained, gained + lost).proportion_ci(0.95, method="exact")
    scale = (gained + lost) / num_samples
    ours = difference_interval(gained=gained, lost=lost, num_samples=num_samples, confidence=0.95)
    assert ours.lower == pytest.approx(min(lower, scale * (2 * share.low - 1)), abs=1e-6)
    assert ours.upper == pytest.approx(max(upper, scale * (2 * share.high - 1)), abs=1e-6)


@pytest.mark.parametrize(
    ("num_samples", "gain_rate", "loss_rate"), [(40, 0.1, 0.1), (100, 0.02, 0.02), (100, 0.15, 0.05)]
)
def test_interval_covers_the_truth(num_samples: int, gain_rate: float, loss_rate: float) -> None:
    """Exact coverage over every outcome: at least the nominal 95%, lucky promotions at most 2.5%."""
    truth, covered, lucky = gain_rate - loss_rate, 0.0, 0.0
    for gained in range(num_samples + 1):
        for lost in range(num_samples + 1 - gained):
            cells = [gained, lost, num_samples - gained - lost]
            chance = stats.multinomial.pmf(
                cells, num_samples, [gain_rate, loss_rate, 1 - gain_rate - loss_rate]
            )
            if chance < 1e-7:
                continue
            interval = difference_interval(gained=gained, lost=lost, num_samples=num_samples, confidence=0.95)
            covered += chance * (interval.lower <= truth <= interval.upper)
            lucky += chance * (interval.lower > truth)
    assert covered >= 0.95
    assert lucky <= 0.025


@settings(deadline=None, max_examples=50)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_is_monotone_and_never_below_the_raw_values(p_values: list[float]) -> None:
    adjusted = holm(p_values)
    assert all(raw <= ours <= 1.0 for raw, ours in zip(p_values, adjusted, strict=True))
    order = np.argsort(p_values, kind="stable")
    assert np.all(np.diff(np.array(adjusted)[order]) >= 0)


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert regression_p_value(gained=2, lost=8) == pytest.approx(
        stats.binomtest(8, 10, alternative="greater").pvalue
    )
