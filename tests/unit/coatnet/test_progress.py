from coatnet.progress import ProgressLine, format_duration, format_progress


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def make_line(clock: Clock, every_s: float = 5.0) -> ProgressLine:
    return ProgressLine(
        stage="pretrain",
        num_epochs=8,
        steps_per_epoch=1872,
        global_batch_size=16,
        every_s=every_s,
        clock=clock,
    )


def test_a_line_reads_well() -> None:
    clock = Clock()
    line = make_line(clock)
    shown = None
    for step in range(410):
        clock.now_s += 0.0125
        shown = line.step(1, step, 1.2134, 5e-4) or shown
    assert shown is not None
    assert format_progress(shown) == (
        "pretrain  epoch 2/8  step 400/1872  loss 1.213  LR 5.0e-04  1,280 images/s  ETA 2m39s"
    )


def test_a_line_is_due_at_most_every_interval() -> None:
    clock = Clock()
    line = make_line(clock)
    shown = []
    for step in range(100):
        clock.now_s += 1.0
        shown.append(line.step(0, step, 1.0, 1e-3))
    assert sum(progress is not None for progress in shown) == 20


def test_short_epochs_get_lines_too_and_pauses_do_not_count() -> None:
    """An epoch shorter than the interval never showed a line, because each epoch began a new one."""
    clock = Clock()
    line = make_line(clock)
    rates = []
    for epoch in range(6):
        line.resume()
        for step in range(2):
            clock.now_s += 1.0
            if shown := line.step(epoch, step, 1.0, 1e-3):
                rates.append(shown.images_per_s)
        line.pause()
        clock.now_s += 1000.0
    assert rates == [16.0, 16.0]


def test_the_first_steps_have_a_rate_too() -> None:
    """MLflow's curve began only after the first interval: a short stage had hardly a point."""
    clock = Clock()
    line = make_line(clock)
    assert line.images_per_s == 0.0
    for seconds in (1.0, 3.0):
        clock.now_s += seconds
        assert line.step(0, 0, 1.0, 1e-3) is None
    assert line.images_per_s == 8.0
    clock.now_s += 2.0
    line.step(0, 2, 1.0, 1e-3)
    clock.now_s += 0.1
    line.step(0, 3, 1.0, 1e-3)
    assert line.images_per_s == 8.0, "from then on of the last interval"


def test_a_note_replaces_the_numbers() -> None:
    line = make_line(Clock())
    assert format_progress(line.note(0, "eval  top-1 55.2%")) == "pretrain  epoch 1/8  eval  top-1 55.2%"


def test_durations() -> None:
    assert [format_duration(s) for s in (0, 45.4, 112, 3599, 11234)] == [
        "0s",
        "45s",
        "1m52s",
        "59m59s",
        "3h07m",
    ]
