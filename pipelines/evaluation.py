"""What a model did on one split of one snapshot: the numbers, and every prediction behind them.

Shape letters: N samples, K classes.
"""

import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from data.errors import InputError
from data.shard_index import parquet_table
from data.store import Store

FORMAT_VERSION = 1
NUM_ECE_BINS = 15
# A confident wrong answer may underflow to probability 0; the floor (smallest normal float32) keeps its
# loss finite (87 nats) while NaN still passes through to the gate.
_MIN_PROBABILITY = float(np.finfo(np.float32).tiny)


@dataclass(frozen=True, kw_only=True, eq=False)
class EvalReport:
    """One evaluation; build it with `build_report`, never by hand.

    Non-finite numbers are kept as they are: the promotion gate refuses them by name.
    """

    snapshot_id: str
    split: str
    classes: tuple[str, ...]
    num_samples: int
    top1: float
    """Share of samples whose predicted class is the label, in [0, 1]."""
    per_class_recall: tuple[float, ...]
    """[K]; NaN for a class without a sample."""
    confusion_KK: NDArray[np.int64]
    """Rows are labels, columns predictions."""
    nll: float
    """Mean negative log-likelihood of the label, nats."""
    ece: float
    """Expected calibration error of the top prediction, 15 equal-width bins (Guo et al. 2017, eq. 3)."""
    latency_ms_per_image: float
    unknown_classes: tuple[str, ...]
    """Those the model has never been taught, in the order of `classes`; it gives them probability 0."""
    keys: tuple[str, ...]
    """[N]; record keys, unique: they pair the samples of two reports."""
    labels_N: NDArray[np.int64]
    predicted_N: NDArray[np.int64]
    probabilities_NK: NDArray[np.float32]

    @property
    def is_correct(self) -> NDArray[np.bool_]:
        """Return whether each prediction is the label."""
        return self.predicted_N == self.labels_N

    def to_dict(self) -> dict[str, Any]:
        """Return the numbers as strict JSON values; the arrays go to `predictions_parquet`."""
        return {
            "format_version": FORMAT_VERSION,
            "snapshot_id": self.snapshot_id,
            "split": self.split,
            "classes": list(self.classes),
            "unknown_classes": list(self.unknown_classes),
            "num_samples": self.num_samples,
            "top1": _to_json(self.top1),
            "per_class_recall": [_to_json(recall) for recall in self.per_class_recall],
            "confusion": self.confusion_KK.tolist(),
            "nll": _to_json(self.nll),
            "ece": _to_json(self.ece),
            "latency_ms_per_image": _to_json(self.latency_ms_per_image),
        }

    @staticmethod
    def from_dict(values: Mapping[str, Any], predictions: bytes) -> "EvalReport":
        """Rebuild a report from `to_dict` and `predictions_parquet`.

        Raises:
            InputError: another format version, or numbers that do not follow from the predictions.
        """
        if values.get("format_version") != FORMAT_VERSION:
            raise InputError(
                f"evaluation report has format {values.get('format_version')!r}, this code reads "
                f"{FORMAT_VERSION}: evaluate again"
            )
        table = parquet_table(predictions)
        num_classes = len(values["classes"])
        flat = table["probabilities"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
        report = build_report(
            snapshot_id=values["snapshot_id"],
            split=values["split"],
            classes=values["classes"],
            unknown_classes=values["unknown_classes"],
            keys=table["key"].to_pylist(),
            labels_N=table["label"].to_numpy(),
            probabilities_NK=flat.reshape(table.num_rows, num_classes),
            latency_ms_per_image=_from_json(values["latency_ms_per_image"]),
        )
        if report.num_samples != values["num_samples"] or report.confusion_KK.tolist() != values["confusion"]:
            raise InputError(
                f"evaluation report of {report.snapshot_id} does not match its predictions "
                f"({values['num_samples']} samples against {report.num_samples}): evaluate again"
            )
        return report

    def predictions_parquet(self) -> bytes:
        """Return one row a sample: key, label, predicted, probabilities [K] float32."""
        flat = pa.array(np.ascontiguousarray(self.probabilities_NK).reshape(-1), type=pa.float32())
        table = pa.table(
            {
                "key": pa.array(self.keys, type=pa.string()),
                "label": pa.array(self.labels_N, type=pa.int32()),
                "predicted": pa.array(self.predicted_N, type=pa.int32()),
                "probabilities": pa.FixedSizeListArray.from_arrays(flat, len(self.classes)),
            }
        )
        sink = io.BytesIO()
        pq.write_table(table, sink, compression="zstd")
        return sink.getvalue()

    def save(self, store: Store, prefix: str) -> None:
        """Write `{prefix}/predictions.parquet`, then `{prefix}/report.json`, which marks it whole."""
        store.put(f"{prefix}/predictions.parquet", self.predictions_parquet())
        store.put(f"{prefix}/report.json", json.dumps(self.to_dict(), indent=1, allow_nan=False).encode())

    @staticmethod
    def load(store: Store, prefix: str) -> "EvalReport":
        """Read what `save` wrote."""
        values = json.loads(store.get(f"{prefix}/report.json"))
        return EvalReport.from_dict(values, store.get(f"{prefix}/predictions.parquet"))


def build_report(
    *,
    snapshot_id: str,
    split: str,
    classes: Sequence[str],
    keys: Sequence[str],
    labels_N: NDArray[Any],
    probabilities_NK: NDArray[Any],
    latency_ms_per_image: float,
    unknown_classes: Sequence[str] = (),
) -> EvalReport:
    """Compute every number from the samples' labels and the model's probabilities.

    Rows are sorted by key: the order of evaluation leaves no trace. A row of probabilities with a NaN
    predicts class 0 and leaves `nll` and `ece` NaN. Raises `InputError` for no sample, shapes that do not
    fit, a key twice, or a label that is no class.
    """
    num_classes = len(classes)
    _check_inputs(num_classes, keys, labels_N, probabilities_NK)
    order = sorted(range(len(keys)), key=keys.__getitem__)
    labels = np.asarray(labels_N, dtype=np.int64)[order]
    probabilities = np.asarray(probabilities_NK, dtype=np.float32)[order]
    predicted = np.where(np.isnan(probabilities).any(axis=1), 0, probabilities.argmax(axis=1)).astype(
        np.int64
    )
    confusion = np.bincount(labels * num_classes + predicted, minlength=num_classes**2)
    confusion_KK = confusion.reshape(num_classes, num_classes).astype(np.int64)
    return EvalReport(
        snapshot_id=snapshot_id,
        split=split,
        classes=tuple(classes),
        num_samples=len(order),
        top1=float((predicted == labels).mean()),
        per_class_recall=_recall(confusion_KK),
        confusion_KK=confusion_KK,
        nll=_negative_log_likelihood(probabilities, labels),
        ece=expected_calibration_error(probabilities, labels),
        latency_ms_per_image=latency_ms_per_image,
        unknown_classes=tuple(unknown_classes),
        keys=tuple(keys[index] for index in order),
        labels_N=labels,
        predicted_N=predicted,
        probabilities_NK=probabilities,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibrationBins:
    """The top prediction's confidence against its accuracy, per bin of confidence."""

    counts_M: NDArray[np.int64]
    confidence_M: NDArray[np.float64]
    """Mean confidence in the bin; 0 where it is empty."""
    accuracy_M: NDArray[np.float64]


def calibration_bins(
    probabilities_NK: NDArray[np.float32], labels_N: NDArray[np.int64], num_bins: int = NUM_ECE_BINS
) -> CalibrationBins:
    """Cut [0, 1] into equal bins, (lower, upper]; the caller keeps NaN out."""
    confidence_N = probabilities_NK.max(axis=1).astype(np.float64)
    correct_N = probabilities_NK.argmax(axis=1) == labels_N
    bin_N = np.clip(np.ceil(confidence_N * num_bins).astype(np.int64) - 1, 0, num_bins - 1)
    counts_M = np.bincount(bin_N, minlength=num_bins)
    divisor_M = np.maximum(counts_M, 1)
    return CalibrationBins(
        counts_M=counts_M,
        confidence_M=np.bincount(bin_N, weights=confidence_N, minlength=num_bins) / divisor_M,
        accuracy_M=np.bincount(bin_N, weights=correct_N, minlength=num_bins) / divisor_M,
    )


def expected_calibration_error(probabilities_NK: NDArray[np.float32], labels_N: NDArray[np.int64]) -> float:
    """Return the mean gap of confidence and accuracy over the bins; NaN if a probability is not finite."""
    if not np.isfinite(probabilities_NK).all():
        return math.nan
    bins = calibration_bins(probabilities_NK, labels_N)
    gaps_M = np.abs(bins.accuracy_M - bins.confidence_M)
    return float((bins.counts_M * gaps_M).sum() / len(labels_N))


def _recall(confusion_KK: NDArray[np.int64]) -> tuple[float, ...]:
    support_K = confusion_KK.sum(axis=1)
    recall_K = np.where(support_K > 0, np.diag(confusion_KK) / np.maximum(support_K, 1), np.nan)
    return tuple(recall_K.tolist())


def _negative_log_likelihood(probabilities_NK: NDArray[np.float32], labels_N: NDArray[np.int64]) -> float:
    if not np.isfinite(probabilities_NK).all():
        return math.nan
    chosen_N = probabilities_NK[np.arange(len(labels_N)), labels_N].astype(np.float64)
    return float(-np.log(np.maximum(chosen_N, _MIN_PROBABILITY)).mean())


def _check_inputs(
    num_classes: int, keys: Sequence[str], labels_N: NDArray[Any], probabilities_NK: NDArray[Any]
) -> None:
    num_samples = len(keys)
    if num_samples == 0 or num_classes == 0:
        raise InputError(
            f"evaluation has {num_samples} samples of {num_classes} classes: it needs at least one of each"
        )
    if labels_N.shape != (num_samples,) or probabilities_NK.shape != (num_samples, num_classes):
        raise InputError(
            f"evaluation of {num_samples} samples and {num_classes} classes got labels {labels_N.shape} and "
            f"probabilities {probabilities_NK.shape}: pass [N] and [N, K]"
        )
    if len(set(keys)) != num_samples:
        raise InputError(
            f"evaluation has {num_samples} samples but {len(set(keys))} distinct keys: "
            "every sample must be evaluated exactly once (drop the padding)"
        )
    if labels_N.min() < 0 or labels_N.max() >= num_classes:
        raise InputError(
            f"evaluation labels run from {labels_N.min()} to {labels_N.max()}: "
            f"they must be 0 to {num_classes - 1}"
        )


def _to_json(value: float) -> float | None:
    """Strict JSON has no NaN: any non-finite number becomes null, and the gate refuses it."""
    return value if math.isfinite(value) else None


def _from_json(value: float | None) -> float:
    return math.nan if value is None else value
