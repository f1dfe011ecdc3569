"""The pictures and the page of one evaluation. No global state of matplotlib is used: any thread may draw."""

import base64
import html
import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from pipelines.evaluation import NUM_ECE_BINS, EvalReport, calibration_bins

_MAX_LABELLED_CLASSES = 40
_NUM_WORST_CLASSES = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Thumbnail:
    """A picture for the page, e.g. a confident mistake."""

    png: bytes
    caption: str


def confusion_png(report: EvalReport) -> bytes:
    """Draw the confusion matrix, each row as shares of its class."""
    support_K1 = np.maximum(report.confusion_KK.sum(axis=1, keepdims=True), 1)
    title = f"Confusion, top-1 {100 * report.top1:.1f}%, n = {report.num_samples}"
    return _draw_matrix(
        report.confusion_KK / support_K1, report.confusion_KK, report.classes, title, "Blues", 0.0
    )


def confusion_delta_png(challenger: EvalReport, champion: EvalReport) -> bytes:
    """Draw challenger minus champion, as shares of each class; blue is more, red is less."""
    support_K1 = np.maximum(challenger.confusion_KK.sum(axis=1, keepdims=True), 1)
    delta_KK = challenger.confusion_KK - champion.confusion_KK
    title = "Confusion, challenger minus champion"
    return _draw_matrix(delta_KK / support_K1, delta_KK, challenger.classes, title, "RdBu", -1.0)


def reliability_png(report: EvalReport) -> bytes:
    """Draw accuracy against confidence, and how many samples stand in each bin.

    Samples with a probability that is not finite are left out, and counted in the title.
    """
    finite_N = np.isfinite(report.probabilities_NK).all(axis=1)
    bins = calibration_bins(report.probabilities_NK[finite_N], report.labels_N[finite_N])
    centers_M = (np.arange(NUM_ECE_BINS) + 0.5) / NUM_ECE_BINS
    figure = Figure(figsize=(5.5, 5.5), layout="constrained")
    upper, lower = figure.subplots(2, 1, height_ratios=[3, 1], sharex=True)
    filled_M = bins.counts_M > 0
    upper.plot([0, 1], [0, 1], linestyle="--", color="grey", label="perfect")
    upper.bar(
        centers_M[filled_M], bins.accuracy_M[filled_M], width=1 / NUM_ECE_BINS, alpha=0.4, edgecolor="C0"
    )
    upper.plot(bins.confidence_M[filled_M], bins.accuracy_M[filled_M], marker="o", label="model")
    left_out = f", {int((~finite_N).sum())} not finite" if not finite_N.all() else ""
    upper.set(ylabel="accuracy", ylim=(0, 1), title=f"Reliability, ECE {report.ece:.4f}{left_out}")
    upper.legend(loc="upper left")
    lower.bar(centers_M, bins.counts_M, width=1 / NUM_ECE_BINS, color="C1")
    lower.set(xlabel="confidence of the prediction", ylabel="samples", xlim=(0, 1))
    return _to_png(figure)


def report_html(report: EvalReport, *, title: str, thumbnails: Sequence[Thumbnail] = ()) -> str:
    """Return a page that needs no other file: numbers, worst classes, pictures."""
    numbers = {
        "snapshot": report.snapshot_id,
        "split": report.split,
        "samples": f"{report.num_samples}",
        "top-1": f"{100 * report.top1:.2f}%",
        "negative log-likelihood": f"{report.nll:.4f} nats",
        "expected calibration error": f"{report.ece:.4f}",
        "latency": f"{report.latency_ms_per_image:.2f} ms per image",
    }
    figures = "".join(
        f'<figure><img src="{_data_uri(picture.png)}" alt="{html.escape(picture.caption)}">'
        f"<figcaption>{html.escape(picture.caption)}</figcaption></figure>"
        for picture in thumbnails
    )
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title><style>
body {{ font: 15px/1.4 sans-serif; max-width: 60em; margin: 2em auto; padding: 0 1em; }}
table {{ border-collapse: collapse; margin: 1em 0; }} td, th {{ border: 1px solid #ccc; padding: .3em .7em; }}
td {{ text-align: right; }} th {{ text-align: left; }} img {{ max-width: 100%; }}
figure {{ display: inline-block; margin: .4em; }} figcaption {{ font-size: 12px; }}
</style></head><body>
<h1>{html.escape(title)}</h1>
<table>{_rows(numbers)}</table>
<h2>Weakest classes</h2><table>{_rows(_worst_classes(report))}</table>
<h2>Confusion</h2><img src="{_data_uri(confusion_png(report))}" alt="confusion matrix">
<h2>Calibration</h2><img src="{_data_uri(reliability_png(report))}" alt="reliability diagram">
{f"<h2>Samples</h2>{figures}" if figures else ""}
</body></html>
"""


def _worst_classes(report: EvalReport) -> dict[str, str]:
    rows: dict[str, str] = {}
    for index in np.argsort(report.per_class_recall, kind="stable")[:_NUM_WORST_CLASSES].tolist():
        wrong_K = report.confusion_KK[index].copy()
        wrong_K[index] = 0
        taken_for = f", mostly taken for {report.classes[int(wrong_K.argmax())]}" if wrong_K.any() else ""
        support = int(report.confusion_KK[index].sum())
        rows[report.classes[index]] = f"{100 * report.per_class_recall[index]:.1f}% of {support}{taken_for}"
    return rows


def _draw_matrix(
    shares_KK: NDArray[np.float64],
    counts_KK: NDArray[np.int64],
    classes: Sequence[str],
    title: str,
    colours: str,
    lowest: float,
) -> bytes:
    num_classes = len(classes)
    side_inches = min(16.0, 4.0 + 0.35 * num_classes)
    figure = Figure(figsize=(side_inches + 1, side_inches), layout="constrained")
    axes = figure.subplots()
    largest = max(float(np.abs(shares_KK).max()), 0.01) if lowest < 0 else 1.0
    image = axes.imshow(shares_KK, cmap=colours, vmin=lowest * largest, vmax=largest)
    figure.colorbar(image, ax=axes, shrink=0.8, label="share of the class")
    axes.set(title=title, xlabel="predicted", ylabel="label")
    if num_classes <= _MAX_LABELLED_CLASSES:
        # A dollar sign would start matplotlib's mathematics.
        names = [name.replace("$", r"\$") for name in classes]
        axes.set_xticks(range(num_classes), names, rotation=90)
        axes.set_yticks(range(num_classes), names)
    if num_classes <= 12:
        for row, column in np.ndindex(num_classes, num_classes):
            dark = abs(shares_KK[row, column]) > 0.6 * largest
            colour = "white" if dark else "black"
            axes.text(column, row, str(counts_KK[row, column]), ha="center", va="center", color=colour)
    return _to_png(figure)


def _rows(values: dict[str, str]) -> str:
    return "".join(f"<tr><th>{html.escape(k)}</th><td>{html.escape(v)}</td></tr>" for k, v in values.items())


def _to_png(figure: Figure) -> bytes:
    sink = io.BytesIO()
    figure.savefig(sink, format="png", dpi=100)
    return sink.getvalue()


def _data_uri(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"
