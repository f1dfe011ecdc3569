"""Records come in order, from this thread or from others."""

import threading
import time
from itertools import islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.record_fetch import fetch_in_order
from data.types import Record


def record(number: int, size_bytes: int = 1000) -> Record:
    return Record(
        key=f"{number}", path=f"{number}.jpg", labels=("a",), split=None, size_bytes=size_bytes, etag=""
    )


@given(sizes=st.lists(st.sampled_from([0, 1000, 2**19, 2**21]), max_size=60), is_slow=st.booleans())
def test_every_record_comes_once_in_order(sizes: list[int], is_slow: bool) -> None:
    records = [record(number, size) for number, size in enumerate(sizes)]

    def fetch(one: Record) -> str:
        if is_slow:
            time.sleep(1e-5)
        return f"content of {one.key}"

    assert list(fetch_in_order(records, fetch)) == [(one, f"content of {one.key}") for one in records]


def test_a_slow_store_is_read_in_threads() -> None:
    threads: set[int] = set()

    def fetch(one: Record) -> None:
        threads.add(threading.get_ident())
        time.sleep(0.002)

    assert len(list(fetch_in_order([record(number) for number in range(320)], fetch))) == 320
    assert len(threads) > 4


def test_a_quick_store_is_read_here() -> None:
    """Handing files from memory to threads took a third of the time of a header check."""
    threads: set[int] = set()

    def fetch(one: Record) -> None:
        threads.add(threading.get_ident())

    for _ in fetch_in_order([record(number) for number in range(64)], fetch):
        time.sleep(0.004)  # so that a busy machine does not make the fetching look slow
    assert threads == {threading.get_ident()}


@pytest.mark.parametrize("failing", [3, 100])
def test_a_failure_is_raised_at_its_record(failing: int) -> None:
    def fetch(one: Record) -> int:
        time.sleep(0.001)
        if one.key == str(failing):
            raise OSError("gone")
        return int(one.key)

    fetched = fetch_in_order([record(number) for number in range(200)], fetch)
    before = failing // 16 * 16
    assert [content for _, content in islice(fetched, before)] == list(range(before))
    with pytest.raises(OSError, match="gone"):
        next(fetched)
