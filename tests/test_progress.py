"""What a long job prints: lines that a person can read where there is no terminal, and words before a wait."""

import io
import sys
import time

import pytest

from lumina_jax import progress
from lumina_jax.errors import printable
from lumina_jax.progress import ProgressDisplay, duration, waiting

pytestmark = pytest.mark.smoke


class EveryLine(ProgressDisplay):
    """Prints a line at each step, without times."""

    seconds_between_lines = 0.0
    line = "{title}: {done:.0f} of {total:.0f} {unit}{text}"


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still; ``clock(seconds)`` moves it."""
    now = [1000.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])

    def move(seconds: float) -> None:
        now[0] += seconds

    return move


def test_lines_count_what_was_skipped_and_show_the_text(capsys):
    with EveryLine("[copy] :x:", 5_000_000, unit="MB", unit_size=10**6) as display:
        display.skip(2_000_000)
        display.advance(1_000_000, ", slowly")
        display.print_line("one [bold] line")
        display.advance(2_000_000)
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.splitlines() == [
        "[copy] :x:: 3 of 5 MB, slowly",
        "one [bold] line",
        "[copy] :x:: 5 of 5 MB",
    ]


def test_the_default_line_is_printed_at_the_end_with_rate_and_time_left(capsys):
    with ProgressDisplay("index", 2) as display:
        display.advance(1)
        display.advance(1)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("index: 2 of 2 records, ") and line.endswith("/s, 0 s left")


def test_without_show_nothing_is_printed(capsys):
    with EveryLine("hidden", 1, show=False) as display:
        display.print_line("line")
        display.advance(1)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("total", [3, 5, 0])
def test_no_line_comes_twice(capsys, total):
    """Empty steps at the end, behind a total that was too small, or of a total of nothing."""
    with EveryLine("x", total) as display:
        for count in (0, 3, 0, 0, *([2] if total == 5 else []), 0, 0):
            display.advance(count)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == len(set(lines)) <= 3


def test_more_than_the_total_is_shown_as_a_larger_total(capsys):
    with EveryLine("x", 2) as display:
        for _ in range(3):
            display.advance(1)
    assert capsys.readouterr().err.splitlines() == ["x: 1 of 2 records", "x: 2 of 2 records", "x: 3 of 3 records"]


def test_the_time_left_follows_from_the_recent_past_and_not_from_a_compilation_at_the_start(clock, capsys):
    with ProgressDisplay("x", 1000) as display:
        clock(600)  # compiles
        display.advance(10)
        for _ in range(9):
            clock(1)
            display.advance(10)
        clock(300)  # compiles again
        for _ in range(40):
            clock(1)
            display.advance(10)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "x: 10 of 1,000 records, unknown rate, unknown time left"
    assert lines[1] == "x: 60 of 1,000 records, 10/s, 1 min 34 s left"
    assert lines[-1] == "x: 460 of 1,000 records, 10/s, 54 s left"


def test_slow_steps_have_a_rate_that_can_be_read(clock, capsys):
    with ProgressDisplay("x", 10**9) as display:
        for _ in range(4):
            clock(1200)
            display.advance(1)
    lines = capsys.readouterr().err.splitlines()
    assert lines[-1] == "x: 4 of 1,000,000,000 records, 3/h, unknown time left"


def test_durations_are_words():
    seconds = (0, 3.4, 59.7, 130, 3 * 3600 + 5 * 60, 36 * 3600, 86400 * 12.2, 1e14, float("nan"), float("inf"))
    assert [duration(number) for number in seconds] == [
        *("0 s", "3 s", "1 min 0 s", "2 min 10 s", "3 h 5 min", "1 day 12 h", "12 days 4 h"),
        *["unknown time"] * 3,
    ]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\nb\r\x1b[2J", r"a\nb\r\x1b[2J"),
        ("half \udcff, \u2028 and \u202e", r"half \udcff, \u2028 and \u202e"),
        ("[red]{title}%s 猫 👩‍👧 é", "[red]{title}%s 猫 👩‍👧 é"),
    ],
)
def test_data_never_moves_the_cursor_and_is_never_markup(capsys, text, shown):
    with EveryLine(text, 1) as display:
        display.print_line(text)
        display.advance(1)
    assert capsys.readouterr().err.splitlines() == [shown, f"{shown}: 1 of 1 records"]
    assert printable(text) == shown


def test_a_stream_of_few_letters_gets_escapes(monkeypatch):
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stderr", stream)
    with ProgressDisplay("x", 1) as display:
        display.print_line("a 猫")
    stream.seek(0)
    assert stream.read() == "a \\u732b\n"


class Gone(io.StringIO):
    def write(self, text: str) -> int:
        raise BrokenPipeError


@pytest.mark.parametrize("stream", [None, Gone(), "closed"])
def test_a_stream_that_nobody_reads_does_not_end_the_job(monkeypatch, stream):
    if stream == "closed":
        stream = io.StringIO()
        stream.close()
    monkeypatch.setattr(sys, "stderr", stream)
    with EveryLine("x", 2) as display:
        display.print_line("line")
        display.advance(2)
    assert display.done == 2


def test_only_a_long_wait_is_announced(monkeypatch, capsys):
    monkeypatch.setattr(progress, "SILENT_SECONDS", 0.02)
    with waiting("compiling [x]", seconds=20):
        deadline = time.monotonic() + 10
        while not (words := capsys.readouterr().err) and time.monotonic() < deadline:
            time.sleep(0.01)
    assert words == "compiling [x], about 20 s\n"
    monkeypatch.setattr(progress, "SILENT_SECONDS", 60.0)
    with waiting("loading"):
        pass
    with pytest.raises(KeyError), waiting("loading"):
        raise KeyError
    assert capsys.readouterr().err == ""
