"""A short run of the fuzzing of decoders and parsers, and the proof that it notices what it looks for."""

import ctypes
import json
import time

import pytest

from lumina_jax.errors import InputError
from tests.fuzz import run
from tests.fuzz.targets import TARGETS, FuzzTarget

SHORT = {
    **{
        "json_text": 5000,
        "records": 4000,
        "rows": 4000,
        "json": 1000,
        "csv": 1000,
        "tar": 500,
        "parquet": 500,
        "specs": 500,
        "pickles": 2000,
    },
    **{"prompts": 500, "pictures": 3000},
}
"""Inputs of each target: 22,000 in all."""


@pytest.mark.parametrize("target", TARGETS)
def test_no_input_makes_a_reader_raise_crash_or_hang(target, tmp_path):
    outcome = run.fuzz(target, SHORT[target], 0, tmp_path)
    assert outcome.failures == {} and outcome.returned + outcome.refused == SHORT[target]
    assert outcome.returned > SHORT[target] / 100  # damage that is refused at once tests nothing


def crash() -> None:
    ctypes.string_at(0)


def hang() -> None:
    start = time.process_time()
    while time.process_time() - start < 60:
        pass


def sleep() -> None:
    time.sleep(60)


def fill() -> None:
    bytearray(2 * run.MEMORY)


def leave() -> None:
    raise SystemExit(1)


def bug() -> None:
    raise KeyError("a field")


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        (crash, "crash: SIGSEGV"),
        (hang, "hang: more than 1 s"),
        (sleep, "hang: more than 1 s"),
        (fill, "MemoryError"),
        (leave, "SystemExit"),
        (bug, "KeyError"),
    ],
)
def test_a_fault_of_one_input_is_reported_saved_and_passed_over(monkeypatch, tmp_path, fault, kind):
    def call(content: bytes) -> None:
        if content == inputs[3]:
            fault()
        if content in inputs[:2]:
            raise InputError("refused")

    monkeypatch.setitem(TARGETS, "faulty", FuzzTarget(lambda: [b"a seed of some length"], (b"word",), call))
    monkeypatch.setattr(run, "SECONDS", 1.0)
    monkeypatch.setattr(run, "WAITING", 2.0)
    inputs = [run.make_input("faulty", [b"a seed of some length"], 5, number) for number in range(8)]
    assert len(set(inputs)) == 8
    outcome = run.fuzz("faulty", 8, 5, tmp_path)
    ((found, count),) = outcome.failures.items()
    assert found.startswith(kind) and count == 1
    assert (outcome.returned, outcome.refused) == (5, 2)
    assert (tmp_path / "faulty-5-3").read_bytes() == inputs[3]
    assert json.loads(outcome.line())["failures"] == {found: 1}
