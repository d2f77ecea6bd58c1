"""MEASURED.md is what tests/bench/measured.py makes of the recorded results, and each result says where it comes from."""

import json

import pytest

from tests.bench import measured, tpu_compile

FIELDS = {"section", "text", "command", "date", "machine", "versions"}
OPTIONAL = {"values", "columns", "rows", "derived", "note"}


@pytest.mark.smoke
def test_the_page_equals_the_recorded_numbers():
    text = measured.PAGE.read_text(encoding="utf-8")
    assert text == measured.page(), "python tests/bench/measured.py --save writes MEASURED.md anew"
    for table in tpu_compile.tables():
        assert f"\n\n{table}\n" in text


def test_each_recorded_result_says_what_measured_it():
    for result in json.loads(measured.RECORDED.read_text(encoding="utf-8")):
        assert FIELDS <= set(result) <= FIELDS | OPTIONAL
        assert result["command"].startswith(("python ", "python3 "))
        assert len(result["date"].split("-")) == 3
        assert all(len(row) == len(result["columns"]) for row in result.get("rows", []))


def test_cells_are_written_by_their_formats():
    assert measured.cell(None, "{}") == ""
    assert measured.cell([0.5, 0.25, 1], "{0:.0%} ({1:.0%} to {2:.0%})") == "50% (25% to 100%)"
    assert measured.cell([1060, 90, 2.2, None], "passes") == "1,060 ± 90 (2.2x)"
    assert measured.cell([634, None, 3.7, 16], "passes") == "634, 16 of them branches (3.7x)"


def test_a_step_that_was_not_compiled_is_named():
    with pytest.raises(ValueError, match="no step of v4:2x2x1"):
        measured.short_step("v4:2x2x1")
