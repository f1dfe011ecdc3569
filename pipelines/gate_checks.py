"""The gate's policy and its checks, one row of the gate table each. All rates are fractions."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from data.errors import InputError
from pipelines.evaluation import EvalReport
from pipelines.paired_statistics import Interval, difference_interval, holm, regression_p_value

_MAX_NAMES_SHOWN = 3


@dataclass(frozen=True, kw_only=True)
class GatePolicy:
    """What a challenger must reach. Rates are fractions: 0.05 is five percentage points."""

    min_top1: float
    """Absolute floor of top-1 accuracy; the only bar on quality while there is no champion."""
    min_delta: float = 0.0
    """The lower bound of the top-1 difference must exceed this."""
    confidence: float = 0.95
    """Of the two-sided interval; also 1 - the family-wise error of the per-class tests."""
    max_class_regression: float = 0.02
    """A class has regressed if its recall fell by more than this and the fall is significant (exact
    one-sided McNemar per class, Holm-corrected over the classes). Noise alone blocks no promotion; a class
    with few samples can only be protected by evaluating more of them."""
    max_ece_increase: float = 0.02
    """Expected calibration error is biased upwards in small samples; on the same samples both reports carry
    about the same bias, so the difference is compared and not the value."""
    max_latency_ratio: float | None = None
    """Challenger's time per image over the champion's; None where the machines are not alike."""

    def __post_init__(self) -> None:
        for name in ("min_top1", "min_delta", "max_class_regression", "max_ece_increase"):
            value = getattr(self, name)
            if not 0.0 <= value <= 1.0:
                raise InputError(f"gate {name} is {value}: give a fraction from 0 to 1 (0.05 is 5 points)")
        if not 0.5 <= self.confidence < 1.0:
            raise InputError(f"gate confidence is {self.confidence}: give 0.5 to below 1, as 0.95")
        ratio = self.max_latency_ratio
        if ratio is not None and not (math.isfinite(ratio) and ratio > 0.0):
            raise InputError(f"gate max_latency_ratio is {ratio}: give a positive number, as 1.2, or null")


@dataclass(frozen=True, slots=True, kw_only=True)
class GateCheck:
    """One row of the gate table."""

    name: str
    value: str
    threshold: str
    passed: bool
    detail: str


def check_finite(role: str, report: EvalReport) -> GateCheck:
    """Every number of the report, every probability and every class's recall is finite."""
    bad = [
        name
        for name in ("top1", "nll", "ece", "latency_ms_per_image")
        if not math.isfinite(getattr(report, name))
    ]
    without_sample = [
        name
        for name, recall in zip(report.classes, report.per_class_recall, strict=True)
        if not math.isfinite(recall)
    ]
    num_bad_rows = int((~np.isfinite(report.probabilities_NK)).any(axis=1).sum())
    if num_bad_rows:
        bad.append(f"probabilities of {num_bad_rows}/{report.num_samples} samples")
    if without_sample:
        bad.append(f"recall of {shorten(without_sample)} (no evaluation sample?)")
    return GateCheck(
        name=f"{role} numbers",
        value=f"{len(bad)} not finite" if bad else "all finite",
        threshold="all finite",
        passed=not bad,
        detail=f"not finite: {', '.join(bad)}" if bad else "every number is finite",
    )


def check_floor(challenger: EvalReport, policy: GatePolicy) -> GateCheck:
    """Top-1 reaches the absolute floor."""
    return GateCheck(
        name="top-1 floor",
        value=as_percent(challenger.top1),
        threshold=f">= {as_percent(policy.min_top1)}",
        passed=challenger.top1 >= policy.min_top1,  # False for NaN
        detail="absolute",
    )


def check_comparable(challenger: EvalReport, champion: EvalReport) -> GateCheck:
    """Both reports stand on the same snapshot, split, classes, keys and labels."""
    reason = ""
    for name in ("snapshot_id", "split", "classes", "num_samples"):
        ours, theirs = getattr(challenger, name), getattr(champion, name)
        if ours != theirs:
            reason = (
                f"{name.replace('_', ' ')} {_brief(ours)} of the challenger, {_brief(theirs)} of the champion"
            )
            break
    else:
        # Reports are sorted by key, so equal keys also mean equal rows.
        if challenger.keys != champion.keys:
            differing = sorted(set(challenger.keys) ^ set(champion.keys))
            reason = f"{len(differing)} keys stand in one report only (first {shorten(differing)})"
        elif not np.array_equal(challenger.labels_N, champion.labels_N):
            reason = f"{int((challenger.labels_N != champion.labels_N).sum())} samples have another label"
    return GateCheck(
        name="same samples",
        value="no" if reason else "yes",
        threshold="yes",
        passed=not reason,
        detail=reason or f"{challenger.num_samples} keys and labels equal",
    )


def check_classes(challenger: EvalReport, champion: EvalReport, policy: GatePolicy) -> GateCheck:
    """No class lost more recall than allowed, beyond what noise explains."""
    gained_N = challenger.is_correct & ~champion.is_correct
    lost_N = champion.is_correct & ~challenger.is_correct
    num_classes = len(challenger.classes)
    gained_K = np.bincount(challenger.labels_N[gained_N], minlength=num_classes)
    lost_K = np.bincount(challenger.labels_N[lost_N], minlength=num_classes)
    adjusted_K = holm(
        [regression_p_value(gained=int(g), lost=int(c)) for g, c in zip(gained_K, lost_K, strict=True)]
    )
    support_K = challenger.confusion_KK.sum(axis=1)
    drop_K = (lost_K - gained_K) / support_K
    regressed = [
        index
        for index in np.argsort(-drop_K, kind="stable").tolist()
        if drop_K[index] > policy.max_class_regression and adjusted_K[index] < 1.0 - policy.confidence
    ]
    names = [
        f"{challenger.classes[index]} {as_points(-drop_K[index])} pp, p = {adjusted_K[index]:.2g}"
        for index in regressed
    ]
    worst = int(drop_K.argmax())
    return GateCheck(
        name="class regression",
        value=f"{len(regressed)}/{num_classes}",
        threshold=f"0 beyond {as_points(-policy.max_class_regression)} pp",
        passed=not regressed,
        detail=shorten(names, separator="; ")
        or f"largest change {challenger.classes[worst]} {as_points(-drop_K[worst])} pp (adjusted p = "
        f"{adjusted_K[worst]:.2g}); smallest class has {int(support_K.min())} samples",
    )


def check_known_classes(challenger: EvalReport, champion: EvalReport, policy: GatePolicy) -> GateCheck:
    """On the images of the classes that the champion knows, the challenger is not clearly worse.

    For a champion that is older than some classes: what the challenger gains on those, where the
    champion cannot be right, must not hide what it loses on the others, spread thinly over them.
    """
    new_classes = [champion.classes.index(name) for name in champion.unknown_classes]
    known_N = ~np.isin(challenger.labels_N, new_classes)
    gained = int((challenger.is_correct & ~champion.is_correct & known_N).sum())
    lost = int((champion.is_correct & ~challenger.is_correct & known_N).sum())
    num_samples = int(known_N.sum())
    delta = (gained - lost) / num_samples
    interval = difference_interval(
        gained=gained, lost=lost, num_samples=num_samples, confidence=policy.confidence
    )
    return GateCheck(
        name="known classes",
        value=format_difference(delta, interval, policy.confidence),
        threshold=f">= {as_points(-policy.max_class_regression)} pp, or within noise",
        passed=delta >= -policy.max_class_regression or interval.upper >= 0.0,
        detail=f"without {shorten(list(champion.unknown_classes))}, new to the champion; n = {num_samples}",
    )


def check_calibration(challenger: EvalReport, champion: EvalReport, policy: GatePolicy) -> GateCheck:
    """The expected calibration error has not grown by more than allowed."""
    increase = challenger.ece - champion.ece
    return GateCheck(
        name="calibration",
        value=f"{round(increase, 4) + 0.0:+.4f}",  # never -0.0000
        threshold=f"<= +{policy.max_ece_increase:.4f}",
        passed=increase <= policy.max_ece_increase,
        detail=f"expected calibration error {champion.ece:.4f} to {challenger.ece:.4f}",
    )


def check_latency(challenger: EvalReport, champion: EvalReport, max_ratio: float) -> GateCheck:
    """The time per image has not grown by more than the ratio allowed."""
    ours, theirs = challenger.latency_ms_per_image, champion.latency_ms_per_image
    measured = ours > 0.0 and theirs > 0.0
    return GateCheck(
        name="latency",
        value=f"{ours / theirs:.2f}x" if measured else "n/a",
        threshold=f"<= {max_ratio:.2f}x",
        passed=measured and ours / theirs <= max_ratio,
        detail=f"{theirs:.2f} to {ours:.2f} ms per image" if measured else "not measured: must be above 0 ms",
    )


def format_difference(delta: float, interval: Interval, confidence: float) -> str:
    """Format a difference of two rates: `+0.6 pp (95% CI 0.3 to 0.9)`."""
    # A bound that is not zero must not be printed as zero.
    bounds = (interval.lower, interval.upper)
    digits = 2 if any(bound != 0.0 and abs(100.0 * bound) < 0.05 for bound in bounds) else 1
    lower, upper = (f"{100.0 * bound + 0.0:.{digits}f}" for bound in bounds)
    return f"{as_points(delta)} pp ({100.0 * confidence:g}% CI {lower} to {upper})"


def as_points(fraction: float) -> str:
    """Format a fraction as signed percentage points: `+0.6`."""
    return f"{100.0 * fraction + 0.0:+.1f}"


def as_percent(fraction: float) -> str:
    """Format a fraction as a percentage: `72.3%`."""
    return f"{100.0 * fraction:.1f}%"


def shorten(names: Sequence[str], separator: str = ", ") -> str:
    """Join the first names and say how many more there are."""
    more = f"{separator}{len(names) - _MAX_NAMES_SHOWN} more" if len(names) > _MAX_NAMES_SHOWN else ""
    return separator.join(names[:_MAX_NAMES_SHOWN]) + more


def _brief(value: object) -> str:
    return f"{len(value)} ({shorten([str(v) for v in value])})" if isinstance(value, tuple) else str(value)
