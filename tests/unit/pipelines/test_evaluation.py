"""The numbers of a report against hand-made cases, its files, and its pictures."""

import io
import math

import numpy as np
import pytest
from PIL import Image

from data.errors import InputError
from pipelines.evaluation import EvalReport, build_report, expected_calibration_error
from pipelines.evaluation_plots import (
    Thumbnail,
    confusion_delta_png,
    confusion_png,
    reliability_png,
    report_html,
)


def small_report(**changes: object) -> EvalReport:
    values = {
        "snapshot_id": "1-abcdefabcdef",
        "split": "eval",
        "classes": ("cat", "dog"),
        "keys": ["b.png", "a.png", "c.png", "d.png"],
        "labels_N": np.array([1, 0, 1, 0]),
        "probabilities_NK": np.array([[0.2, 0.8], [0.9, 0.1], [0.6, 0.4], [0.75, 0.25]], np.float32),
        "latency_ms_per_image": 1.5,
    }
    return build_report(**{**values, **changes})


def test_numbers_by_hand() -> None:
    report = small_report()
    assert report.keys == ("a.png", "b.png", "c.png", "d.png")
    assert report.top1 == 0.75
    assert report.confusion_KK.tolist() == [[2, 0], [1, 1]]
    assert report.per_class_recall == (1.0, 0.5)
    assert report.nll == pytest.approx(-np.log([0.9, 0.8, 0.4, 0.75]).mean(), rel=1e-6)
    # Four bins of one sample: |1 - .8|, |1 - .9|, |0 - .6|, |1 - .75|.
    assert report.ece == pytest.approx((0.2 + 0.1 + 0.6 + 0.25) / 4, rel=1e-6)


def test_ece_of_a_calibrated_model_is_near_zero() -> None:
    rng = np.random.default_rng(0)
    top_N = rng.uniform(0.5, 1.0, 50_000)
    labels_N = (rng.uniform(size=50_000) > top_N).astype(np.int64)
    probabilities_NK = np.stack([top_N, 1 - top_N], axis=1).astype(np.float32)
    assert expected_calibration_error(probabilities_NK, labels_N) < 0.01


def test_files_give_the_same_report_back() -> None:
    report = small_report(unknown_classes=("dog",))
    again = EvalReport.from_dict(report.to_dict(), report.predictions_parquet())
    assert again.to_dict() == report.to_dict()
    assert again.unknown_classes == ("dog",)
    assert again.keys == report.keys
    np.testing.assert_array_equal(again.probabilities_NK, report.probabilities_NK)


def test_nan_survives_the_files() -> None:
    """A NaN that became 0 or was dropped on the way would let a broken model through the gate."""
    probabilities_NK = np.array([[0.2, 0.8], [math.nan, 0.1], [0.6, 0.4], [0.7, 0.3]], np.float32)
    report = small_report(probabilities_NK=probabilities_NK, latency_ms_per_image=math.inf)
    again = EvalReport.from_dict(report.to_dict(), report.predictions_parquet())
    assert math.isnan(again.nll)
    assert math.isnan(again.ece)
    assert math.isnan(again.latency_ms_per_image)
    assert np.isnan(again.probabilities_NK).sum() == 1


def test_numbers_that_do_not_follow_from_the_predictions_are_refused() -> None:
    report, values = small_report(), small_report().to_dict()
    values["confusion"] = [[2, 0], [0, 2]]
    with pytest.raises(InputError, match="does not match its predictions"):
        EvalReport.from_dict(values, report.predictions_parquet())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"keys": ["a", "a", "b", "c"]}, "4 samples but 3 distinct keys"),
        ({"keys": [], "labels_N": np.array([])}, "0 samples of 2 classes"),
        ({"labels_N": np.array([0, 1, 2, 0])}, "labels run from 0 to 2"),
        ({"probabilities_NK": np.zeros((4, 3))}, r"probabilities \(4, 3\)"),
    ],
)
def test_bad_input_is_one_line(changes: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        small_report(**changes)
    assert "\n" not in str(caught.value)


def test_a_certain_and_wrong_model_has_a_finite_loss() -> None:
    report = small_report(probabilities_NK=np.array([[1, 0], [1, 0], [1, 0], [1, 0]], np.float32))
    assert math.isfinite(report.nll)


@pytest.mark.parametrize("num_classes", [2, 40])
def test_pictures_and_page(num_classes: int) -> None:
    rng = np.random.default_rng(0)
    probabilities_NK = rng.dirichlet(np.ones(num_classes), 400).astype(np.float32)
    report = build_report(
        snapshot_id="1-abcdefabcdef",
        split="eval",
        classes=[f"<class {index}>" for index in range(num_classes)],
        keys=[f"{index}.png" for index in range(400)],
        labels_N=np.arange(400) % num_classes,
        probabilities_NK=probabilities_NK,
        latency_ms_per_image=1.0,
    )
    for png in (confusion_png(report), reliability_png(report), confusion_delta_png(report, report)):
        assert Image.open(io.BytesIO(png)).width >= 400
    thumbnail = Thumbnail(png=reliability_png(report), caption="truck taken for <ship>")
    page = report_html(report, title="finetune", thumbnails=[thumbnail])
    assert "&lt;class " in page
    assert "<class " not in page
    assert "http" not in page.replace("http-equiv", ""), "the page must be self-contained"
    assert len(page) < 2_000_000
