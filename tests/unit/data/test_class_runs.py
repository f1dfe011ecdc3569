import pyarrow as pa
import pytest

from data.class_runs import count_class_runs


def index(labels: list[int]) -> pa.Table:
    return pa.table(
        {"labels": [[label] for label in labels]}, schema=pa.schema([("labels", pa.list_(pa.int32()))])
    )


def test_sorted_by_class_is_noticed() -> None:
    runs = count_class_runs([index([0] * 50), index([1] * 50)])
    assert (runs.num_pairs, runs.num_same, runs.share) == (98, 98, 1.0)
    assert runs.expected_share == pytest.approx(0.5)
    assert runs.is_sorted
    assert "100% of the neighbours in adopted shards share a class, 50% would" in runs.warning


def test_mixed_is_not() -> None:
    assert not count_class_runs([index([0, 1] * 50)]).is_sorted
    assert not count_class_runs([index([0, 0, 1, 1, 0, 1, 0, 1] * 20)]).is_sorted


def test_a_single_class_cannot_be_mixed_better() -> None:
    runs = count_class_runs([index([3] * 10)])
    assert runs.expected_share == 1
    assert not runs.is_sorted


def test_nothing_to_compare() -> None:
    assert not count_class_runs([]).is_sorted
    assert not count_class_runs([index([1])]).is_sorted
