"""Where the time of a run goes, over restarts."""

import time

import pytest

from lumina_jax.train.goodput import FILE, Goodput, read_goodput


class Clock:
    """A clock that is set by hand, in seconds."""

    def __init__(self, now: float):
        self.now = now

    def __call__(self) -> float:
        return self.now


@pytest.mark.smoke
def test_what_is_measured_as_nothing_else_is_training_and_all_adds_up():
    clock = Clock(100.0)
    goodput = Goodput([], 0, restoring=7.0, clock=clock)
    with goodput.measure("compiling"):
        clock.now += 30
    clock.now += 60
    goodput.add("waiting for data", 5)
    with goodput.measure("saving"):
        clock.now += 3
    goodput.mark(10)
    (line,) = goodput.lines
    assert line["step"] == 10 and line["restarts"] == 0 and line["time"] == 193
    assert {kind: seconds for kind, seconds in line["seconds"].items() if seconds} == {
        "training": 55,
        "compiling": 30,
        "restoring": 7,
        "saving": 3,
        "waiting for data": 5,
    }
    assert goodput.in_words().startswith("goodput 55.0%: of 1 min 40 s, compiling 30 s, restoring 7 s, saving 3 s")


@pytest.mark.smoke
def test_time_since_the_checkpoint_was_lost(tmp_path):
    clock = Clock(0.0)
    first = Goodput([], 0, clock=clock)
    for step in (10, 20):
        clock.now += 50
        first.mark(step)
    first.write(str(tmp_path))
    with (tmp_path / FILE).open("a") as file:
        file.write('{"step": 3')  # as no run leaves it
    # Checkpoint 20 is damaged; the run comes back after 400 s, of which 10 s were for restoring.
    clock.now = 500.0
    again = Goodput(read_goodput(str(tmp_path)), 10, restoring=10.0, clock=clock)
    clock.now += 50
    again.mark(20)
    assert [line["step"] for line in again.lines] == [10, 20]
    seconds = again.lines[-1]["seconds"]
    assert (seconds["training"], seconds["lost to restarts"], seconds["restoring"]) == (100, 440, 10)
    assert again.restarts == 1 and sum(seconds.values()) == clock.now


@pytest.mark.smoke
def test_a_run_without_lines_of_its_checkpoint_begins_to_count():
    assert Goodput([{"step": 5, "time": 0, "restarts": 3, "seconds": {}}], 4).restarts == 0


@pytest.mark.smoke
def test_nothing_is_lost_between_the_end_of_a_run_and_more_steps():
    clock = Clock(0.0)
    first = Goodput([], 0, clock=clock)
    clock.now = 50.0
    first.mark(10, ended=True)
    clock.now = 10_000.0
    again = Goodput(first.lines, 10, clock=clock)
    assert again.restarts == 0 and sum(again.seconds.values()) == 50


def test_a_clock_that_is_set_loses_no_time(monkeypatch):
    goodput, real = Goodput([], 0), time.time
    for jump in (-86400, 86400):
        monkeypatch.setattr(time, "time", lambda: real() + jump)  # noqa: B023, called before the next
        with goodput.measure("saving"):
            goodput.mark(1)
    goodput.mark(2)
    assert all(0 <= seconds < 60 for seconds in goodput.seconds.values())
    assert abs(goodput.lines[-1]["time"] - real()) < 60
