"""Two implementations are timed in turn: whatever slows the machine slows both."""

import gc

import pytest

from tests.benchmarks.measure import in_turn, side_by_side


class Machine:
    """A clock that only work moves, and the order in which the work came."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.order = ""

    def clock(self) -> float:
        return self.now_s

    def work(self, name: str, seconds: float) -> None:
        self.now_s += seconds
        self.order += name


def test_abba_after_a_warm_up() -> None:
    """The one that always goes second would gain from warm caches, or lose to a hot processor."""
    machine = Machine()
    timings = side_by_side(
        lambda: machine.work("a", 5.0), lambda: machine.work("b", 7.0), repeats=4, clock=machine.clock
    )
    assert machine.order == "ab" + "ab" + "ba" + "ab" + "ba"
    assert timings.ours_s == [5.0] * 4
    assert timings.peer_s == [7.0] * 4


def test_short_calls_are_repeated_equally_often() -> None:
    machine = Machine()
    timings = side_by_side(
        lambda: machine.work("a", 0.25),
        lambda: machine.work("b", 1.0),
        repeats=1,
        min_timed_s=1.0,
        clock=machine.clock,
    )
    assert machine.order == "aabb" + "aaaa" + "bbbb"
    assert timings.ours_s == [0.25]
    assert timings.peer_s == [1.0]


def test_the_first_call_does_not_decide() -> None:
    """The first call initialises libraries: 100 times slower, it would leave a stretch of one call."""
    machine = Machine()
    costs_s = iter([2.0, *[0.25] * 20])
    timings = side_by_side(
        lambda: machine.work("a", next(costs_s)),
        lambda: machine.work("b", 5.0),
        repeats=1,
        min_timed_s=1.0,
        clock=machine.clock,
    )
    assert timings.ours_s == [0.25]


def test_garbage_is_collected_outside_a_stretch() -> None:
    seen: list[bool] = []
    side_by_side(lambda: seen.append(gc.isenabled()), lambda: None, repeats=1, min_timed_s=1e-9)
    assert seen
    assert not any(seen)
    assert gc.isenabled()


def test_a_failing_call_leaves_the_collector_on() -> None:
    def fail() -> None:
        raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        side_by_side(fail, fail, repeats=1)
    assert gc.isenabled()


def test_no_repeats_is_an_error() -> None:
    with pytest.raises(ValueError, match="repeats is 0"):
        side_by_side(lambda: None, lambda: None, repeats=0)


def test_many_take_turns_forth_and_back() -> None:
    """Whatever slows the machine slows all, and none always comes last."""
    order: list[str] = []
    seconds = {"a": 1.0, "b": 2.0, "c": 3.0}

    def call(name: str) -> float:
        order.append(name)
        return seconds[name]

    found = in_turn({name: lambda name=name: call(name) for name in seconds}, repeats=3)
    assert "".join(order) == "abc" + "abc" + "cba" + "abc"
    assert found == {"a": [1.0] * 3, "b": [2.0] * 3, "c": [3.0] * 3}


def test_no_turns_is_an_error() -> None:
    with pytest.raises(ValueError, match="repeats is 0"):
        in_turn({"a": lambda: 1.0}, repeats=0)
