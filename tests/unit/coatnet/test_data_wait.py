import time
from collections.abc import Iterator

import pytest

from coatnet.data_wait import DataWait


def slow(count: int, seconds: float) -> Iterator[int]:
    for number in range(count):
        time.sleep(seconds)
        yield number


@pytest.mark.parametrize(("data_s", "work_s", "low", "high"), [(0.03, 0.0, 0.9, 1.0), (0.0, 0.03, 0.0, 0.1)])
def test_waiting_is_told_from_working(data_s: float, work_s: float, low: float, high: float) -> None:
    wait = DataWait()
    seen: list[int] = []
    for number in wait.watch(slow(5, data_s)):
        time.sleep(work_s)
        seen.append(number)
    assert seen == [0, 1, 2, 3, 4]
    assert low <= wait.take_share() <= high
    assert wait.take_share() == 0.0, "each share is of the time since the last"


def test_an_error_of_the_source_passes_through() -> None:
    def broken() -> Iterator[int]:
        yield 1
        raise OSError("gone")

    with pytest.raises(OSError, match="gone"):
        list(DataWait().watch(broken()))
