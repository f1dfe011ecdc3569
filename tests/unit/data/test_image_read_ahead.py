"""Images come ahead of their use, many at once, in order, within a budget; faults are the user's to see."""

import threading
import time
from collections.abc import Callable
from functools import partial

import pytest

from data.image_read_ahead import ImageReadAhead
from data.store import StoreError
from data.tar_reader import StoredImage

WAIT_S = 20.0


class SlowStore:
    """Answers when it is told to; remembers what was asked for, and how much at the same time."""

    def __init__(self, size_bytes: int = 10) -> None:
        self.asked: list[tuple[int, int]] = []
        self.most_at_once = 0
        self.may_answer = threading.Event()
        self._size_bytes = size_bytes
        self._num_waiting = 0
        self._changed = threading.Condition()

    def read(self, shard: int, row: int) -> StoredImage:
        with self._changed:
            self.asked.append((shard, row))
            self._num_waiting += 1
            self.most_at_once = max(self.most_at_once, self._num_waiting)
            self._changed.notify_all()
        assert self.may_answer.wait(WAIT_S)
        with self._changed:
            self._num_waiting -= 1
            self._changed.notify_all()
        if row == 13:
            raise StoreError("the store is gone")
        return StoredImage(bytes(self._size_bytes), row, f"{shard}/{row}")

    def wait_until(self, condition: Callable[[], bool]) -> None:
        with self._changed:
            assert self._changed.wait_for(condition, WAIT_S)


def wait_until_idle(ahead: ImageReadAhead) -> None:
    """Wait until nothing is under way, also a moment later: what ends may begin something."""
    num_idle = 0
    while num_idle < 5:
        time.sleep(0.01)
        with ahead._lock:
            num_idle = num_idle + 1 if ahead._num_under_way == 0 else 0


def test_many_reads_are_under_way_at_once() -> None:
    """Each decode thread read one image after the other: two threads at 30 ms a read gave 66 images/s."""
    store = SlowStore()
    ahead = ImageReadAhead(store.read)
    places = [(0, row) for row in range(20, 100)]
    ahead.want(places)
    store.wait_until(lambda: len(store.asked) == 32)
    store.may_answer.set()
    assert [ahead.read(*place).name for place in places] == [f"0/{row}" for row in range(20, 100)]
    ahead.close()
    assert store.most_at_once == 32
    assert sorted(store.asked) == places, "each once"


def test_no_more_is_held_than_the_budget() -> None:
    store = SlowStore(size_bytes=1000)
    store.may_answer.set()
    ahead = ImageReadAhead(store.read, max_held_bytes=5000)
    ahead.want((0, row) for row in range(20, 520))
    wait_until_idle(ahead)
    assert 5 <= len(store.asked) <= 5 + 32, "those under way come on top"
    ahead.read(0, 519)  # far from its turn: read at once, and not again later
    for row in range(20, 519):
        ahead.read(0, row)
    ahead.close()
    assert sorted(store.asked) == [(0, row) for row in range(20, 520)]


def test_an_image_wanted_twice_is_there_twice() -> None:
    store = SlowStore()
    store.may_answer.set()
    ahead = ImageReadAhead(store.read)
    for _ in range(2):
        ahead.want([(1, 2)])
    assert [ahead.read(1, 2).label for _ in range(2)] == [2, 2]
    ahead.close()


def test_a_fault_surfaces_where_the_image_is_read() -> None:
    store = SlowStore()
    store.may_answer.set()
    ahead = ImageReadAhead(store.read)
    ahead.want([(0, 13), (0, 14)])
    with pytest.raises(StoreError, match="gone"):
        ahead.read(0, 13)
    assert ahead.read(0, 14).label == 14
    ahead.close()


def test_closing_forgets_what_was_not_begun() -> None:
    store = SlowStore()
    ahead = ImageReadAhead(store.read)
    ahead.want((0, row) for row in range(20, 1020))
    store.wait_until(lambda: len(store.asked) == 32)
    closing = threading.Thread(target=ahead.close)
    closing.start()
    while not ahead._is_closed:
        time.sleep(0.001)
    store.may_answer.set()
    closing.join(WAIT_S)
    assert not closing.is_alive()
    assert len(store.asked) == 32
    assert not any(thread.name.startswith("read-ahead") for thread in threading.enumerate())


def test_several_threads_read() -> None:
    store = SlowStore()
    store.may_answer.set()
    ahead = ImageReadAhead(store.read, max_held_bytes=100)
    places = [(0, row) for row in range(20, 420)]
    ahead.want(places)
    found: list[str] = []

    def use(some: list[tuple[int, int]]) -> None:
        found.extend(ahead.read(*place).name for place in some)

    threads = [threading.Thread(target=partial(use, places[start::4])) for start in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT_S)
    ahead.close()
    assert sorted(found) == sorted(f"0/{row}" for row in range(20, 420))
    assert sorted(store.asked) == places
