"""What a long job prints where there is no terminal."""

import pytest

from lumina_jax.progress import ProgressDisplay

pytestmark = pytest.mark.smoke


class EveryLine(ProgressDisplay):
    """Prints a line at each step, without times."""

    seconds_between_lines = 0.0
    line = "{title}: {done:.0f} of {total:.0f} {unit}{text}"


def test_lines_count_what_was_skipped_and_show_the_text(capsys):
    with EveryLine("[copy] :x:", 5_000_000, unit="MB", unit_size=10**6) as progress:
        progress.skip(2_000_000)
        progress.advance(1_000_000, ", slowly")
        progress.print_line("one [bold] line")
        progress.advance(2_000_000)
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.splitlines() == [
        "[copy] :x:: 3 of 5 MB, slowly",
        "one [bold] line",
        "[copy] :x:: 5 of 5 MB",
    ]


def test_the_default_line_is_printed_at_the_end_with_rate_and_time_left(capsys):
    with ProgressDisplay("index", 2) as progress:
        progress.advance(1)
        progress.advance(1)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("index: 2 of 2 records, ") and line.endswith("/s, 0:00:00 left")


def test_without_show_nothing_is_printed(capsys):
    with EveryLine("hidden", 1, show=False) as progress:
        progress.print_line("line")
        progress.advance(1)
    assert capsys.readouterr() == ("", "")
