import time
from collections.abc import Iterator

import pytest

from coatnet.step_times import StepTimes


def slow(count: int, seconds: float) -> Iterator[int]:
    for number in range(count):
        time.sleep(seconds)
        yield number


@pytest.mark.parametrize(("data_s", "work_s", "low", "high"), [(0.03, 0.0, 0.9, 1.0), (0.0, 0.03, 0.0, 0.1)])
def test_waiting_is_told_from_working(data_s: float, work_s: float, low: float, high: float) -> None:
    times = StepTimes()
    seen: list[int] = []
    for number in times.watch(slow(5, data_s)):
        with times.part("copy"):
            time.sleep(work_s)
        seen.append(number)
    assert seen == [0, 1, 2, 3, 4]
    taken = times.take()
    assert low <= taken["train/data_wait_share"] <= high
    assert taken["data/wait_s"] >= data_s
    assert taken["data/copy_s"] >= work_s, "means over a step"
    assert times.take() == {}, "each is of the time since the last"


def test_an_error_of_the_source_passes_through() -> None:
    def broken() -> Iterator[int]:
        yield 1
        raise OSError("gone")

    with pytest.raises(OSError, match="gone"):
        list(StepTimes().watch(broken()))
