"""Decide whether a challenger has earned the champion's place: a pure function of two reports.

It fails closed: what cannot be compared, or is not a finite number, is rejected. All rates are fractions.
"""

from dataclasses import asdict, dataclass
from typing import Any, Literal

from pipelines.evaluation import EvalReport
from pipelines.gate_checks import (
    GateCheck,
    GatePolicy,
    as_percent,
    as_points,
    check_calibration,
    check_classes,
    check_comparable,
    check_finite,
    check_floor,
    check_known_classes,
    check_latency,
    format_difference,
    shorten,
)
from pipelines.paired_statistics import Interval, difference_interval

__all__ = ["Decision", "GateCheck", "GatePolicy", "decide_promotion"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """The gate's answer, with everything a reader needs to check it."""

    verdict: Literal["PROMOTED", "REJECTED"]
    first_line: str
    checks: tuple[GateCheck, ...]
    delta: float | None
    """Challenger's top-1 minus the champion's; None if they could not be compared."""
    delta_lower: float | None
    delta_upper: float | None
    policy: GatePolicy
    snapshot_id: str
    split: str
    num_samples: int

    @property
    def promoted(self) -> bool:
        """Return whether the champion alias should move."""
        return self.verdict == "PROMOTED"

    @property
    def delta_label(self) -> str:
        """Return the difference as a short tag: `+0.6 pp`, or `n/a`."""
        return "n/a" if self.delta is None else f"{as_points(self.delta)} pp"

    def to_dict(self) -> dict[str, Any]:
        """Return the decision as JSON values (`gates.json`)."""
        return {**asdict(self), "checks": [asdict(check) for check in self.checks]}

    def to_markdown(self) -> str:
        """Return the model version's description: the verdict, then the gate table."""
        rows = [
            f"| {check.name} | {check.value} | {check.threshold} | {'pass' if check.passed else '**FAIL**'} "
            f"| {check.detail} |"
            for check in self.checks
        ]
        header = ["| gate | value | required | | detail |", "|---|---|---|---|---|"]
        footer = f"Evaluated on snapshot `{self.snapshot_id}`, split `{self.split}`, n = {self.num_samples}."
        return "\n".join([f"**{self.first_line}**", "", *header, *rows, "", footer])


def decide_promotion(challenger: EvalReport, champion: EvalReport | None, policy: GatePolicy) -> Decision:
    """Compare two models on the same samples and say which one should serve.

    Both reports must come from the same snapshot, split, classes, keys and labels. Without a champion only
    the absolute checks run, and the first line says so.
    """
    checks = [check_finite("challenger", challenger), check_floor(challenger, policy)]
    if champion is None:
        return _decide_alone(challenger, policy, checks)
    checks.insert(1, check_finite("champion", champion))
    comparable = check_comparable(challenger, champion)
    checks.insert(0, comparable)
    if not comparable.passed:
        return _decision(challenger, policy, checks, f"not comparable: {comparable.detail}")
    for check in checks[1:3]:
        if not check.passed:
            return _decision(challenger, policy, checks, f"{check.name}: {check.detail}")
    return _decide_paired(challenger, champion, policy, checks)


def _decide_alone(challenger: EvalReport, policy: GatePolicy, checks: list[GateCheck]) -> Decision:
    finite, floor = checks
    no_champion = "no champion to compare with"
    if not finite.passed:
        return _decision(challenger, policy, checks, f"{finite.name}: {finite.detail}; {no_champion}")
    line = f"top-1 {as_percent(challenger.top1)} (n = {challenger.num_samples})"
    if not floor.passed:
        return _decision(
            challenger, policy, checks, f"{line} below the floor {floor.threshold}; {no_champion}"
        )
    return _decision(challenger, policy, checks, None, promoted=f"{line}, {no_champion}")


def _decide_paired(
    challenger: EvalReport, champion: EvalReport, policy: GatePolicy, checks: list[GateCheck]
) -> Decision:
    gained = int((challenger.is_correct & ~champion.is_correct).sum())
    lost = int((champion.is_correct & ~challenger.is_correct).sum())
    delta = (gained - lost) / challenger.num_samples
    interval = difference_interval(
        gained=gained, lost=lost, num_samples=challenger.num_samples, confidence=policy.confidence
    )
    improvement = GateCheck(
        name="top-1 difference",
        value=format_difference(delta, interval, policy.confidence),
        threshold=f"lower bound > {as_points(policy.min_delta)} pp",
        passed=interval.lower > policy.min_delta,
        detail=f"{gained} samples gained, {lost} lost, {challenger.num_samples} in all; paired, by key",
    )
    classes = check_classes(challenger, champion, policy)
    checks += [improvement, classes, check_calibration(challenger, champion, policy)]
    if champion.unknown_classes:
        checks.append(check_known_classes(challenger, champion, policy))
    if policy.max_latency_ratio is not None:
        checks.append(check_latency(challenger, champion, policy.max_latency_ratio))
    summary = f"{improvement.value}, {classes.value} classes regressed"
    if champion.unknown_classes:
        summary += f", new to the champion: {shorten(champion.unknown_classes)}"
    return _decision(
        challenger,
        policy,
        checks,
        _first_failure(checks, improvement, delta, interval, summary),
        promoted=summary.replace(" pp (", " pp top-1 (", 1),
        delta=delta,
        interval=interval,
    )


def _first_failure(
    checks: list[GateCheck], improvement: GateCheck, delta: float, interval: Interval, summary: str
) -> str | None:
    """Return the reason of the rejection in a line, or None if every check passed."""
    others = [check for check in checks if not check.passed and check is not improvement]
    also = f"; also {', '.join(check.name for check in others)}" if others else ""
    if not improvement.passed:
        if interval.upper < 0.0:
            reason = "worse"
        elif delta <= 0.0:
            reason = "no improvement"
        elif interval.lower > 0.0:
            reason = f"improvement too small ({improvement.threshold})"
        else:
            reason = "no significant improvement"
        return f"{reason}: {summary}{also}"
    if others:
        rest = f"; also {', '.join(check.name for check in others[1:])}" if others[1:] else ""
        return f"{others[0].name}: {others[0].detail}{rest}; top-1 {improvement.value}"
    return None


def _decision(
    challenger: EvalReport,
    policy: GatePolicy,
    checks: list[GateCheck],
    failure: str | None,
    *,
    promoted: str = "",
    delta: float | None = None,
    interval: Interval | None = None,
) -> Decision:
    return Decision(
        verdict="PROMOTED" if failure is None else "REJECTED",
        first_line=f"PROMOTED {promoted}" if failure is None else f"REJECTED {failure}",
        checks=tuple(checks),
        delta=delta,
        delta_lower=interval.lower if interval else None,
        delta_upper=interval.upper if interval else None,
        policy=policy,
        snapshot_id=challenger.snapshot_id,
        split=challenger.split,
        num_samples=challenger.num_samples,
    )
