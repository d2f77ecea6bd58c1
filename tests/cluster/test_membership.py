"""What follows for a run from what its processes say, with a clock that is told."""

import json
import socket

import pytest

from lumina_jax.cluster.coordinator import Lines
from lumina_jax.cluster.membership import GRACE, MEND, RETRY, Roll
from lumina_jax.cluster.processes import Place, find_place
from lumina_jax.config import PodConfig

LIMITS = PodConfig(wait=300, patience=1800, silence=60)
FACTS = {"data.batch": "256", "jax": "0.10.2"}


def roll_of(processes: int, came: int | None = None) -> Roll:
    """A roll at time 0 with the first ``came`` of its processes, on hosts a, b, c and so on."""
    roll = Roll(processes, LIMITS)
    for index in range(processes if came is None else came):
        assert not roll.hear(index, {"kind": "hello", "host": "abcdefghijkl"[index], "doing": "its start"}, 0)
    return roll


def say(roll: Roll, index: int, now: float, kind: str = "here", doing: str = "its start", **rest) -> list:
    return roll.hear(index, {"kind": kind, "doing": doing, **rest}, now)


def reach(roll: Roll, index: int, now: float, facts: dict | None = None) -> list:
    return say(roll, index, now, "reach", point="the save", limit=300, facts=facts or {})


def ended(words: list) -> tuple[str, int]:
    (word,) = words
    assert word["kind"] == "end"
    return word["why"], word["code"]


@pytest.mark.smoke
def test_who_does_not_come_is_named_with_where_it_was_last():
    roll = roll_of(4, came=3)
    assert not reach(roll, 0, 10)
    assert not say(roll, 1, 20, doing="reading batch 7")
    assert not reach(roll, 2, 30)
    for now in range(60, 311, 50):
        for index in range(3):
            say(roll, index, now, doing="reading batch 7" if index == 1 else "its start")
        assert not roll.tick(now)
    why, code = ended(roll.tick(311))
    assert code == RETRY and roll.ended
    assert why == (
        "the save: waited 300 s for process 1 on b, last heard of 1 s ago, at reading batch 7 for 291 s; "
        "process 3, which never came"
    )


def test_all_that_came_go_on_and_may_meet_there_again():
    roll = roll_of(2)
    for now in (10, 20):
        assert not reach(roll, 1, now)
        assert reach(roll, 0, now) == [{"kind": "go", "point": "the save"}]
    assert not roll.tick(30)


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({**FACTS, "data.batch": "128"}, "data.batch is 256 in process 0 on a but 128 in process 2 on c"),
        ({"data.batch": "256"}, "jax is 0.10.2 in process 0 on a but None in process 2 on c"),
    ],
)
def test_what_differs_is_named_with_both_values(other, said):
    roll = roll_of(3)
    reach(roll, 0, 1, FACTS)
    reach(roll, 1, 1, FACTS)
    assert ended(reach(roll, 2, 1, other)) == (said, MEND)


def test_a_death_ends_the_run_at_once():
    roll = roll_of(2)
    say(roll, 1, 5, doing="step 12")
    assert ended(roll.gone(1)) == ("process 1 on b died; it was last at step 12", RETRY)


def test_silence_ends_the_run_after_its_limit():
    roll = roll_of(2)
    say(roll, 0, 50)
    assert not roll.tick(60)
    say(roll, 0, 61)
    assert ended(roll.tick(61)) == ("process 1 on b has not been heard of for 61 s; it was last at its start", RETRY)


def test_a_run_that_does_not_move_says_who_is_where_and_ends_at_last():
    roll, said = roll_of(10), []
    for now in range(50, 2001, 50):
        for index in range(10):
            say(roll, index, now, doing="reading batch 5" if index == 4 else "step 5")
        said += [(now, word) for word in roll.tick(now)]
        if roll.ended:
            break
    times, words = zip(*said, strict=True)
    assert times == (400, 750, 1100, 1450, 1800, 1900)
    assert [word["kind"] for word in words] == ["say"] * 5 + ["end"]
    straggler, others = words[0]["text"].split("; ")
    assert straggler == "nothing new for 350 s: process 4 on e at reading batch 5"
    assert others.startswith("process 0 on a, ") and others.endswith("process 8 on i and 1 more at step 5")


def test_an_error_of_one_ends_the_others_after_a_while_and_an_error_of_all_needs_no_end():
    roll = roll_of(2)
    assert not say(roll, 1, 10, "left", why="ValueError: no such file")
    assert not roll.gone(1)
    assert not roll.tick(10 + GRACE)
    assert ended(roll.tick(11 + GRACE)) == ("process 1 on b ended with ValueError: no such file", MEND)
    roll = roll_of(2)
    assert not say(roll, 1, 10, "left", why="FloatingPointError: nan")
    assert say(roll, 0, 11, "left", why="FloatingPointError: nan") == [{"kind": "over"}] and roll.ended


def test_those_who_left_without_an_error_are_not_missed():
    roll = roll_of(2)
    assert not say(roll, 1, 10, "left", why="")
    assert not roll.gone(1)
    say(roll, 0, 100)
    assert not roll.tick(100)
    assert say(roll, 0, 101, "left", why="") == [{"kind": "over"}]


def test_two_that_claim_one_place_are_named():
    roll = roll_of(2, came=1)
    assert ended(roll.hear(0, {"kind": "hello", "host": "z", "doing": ""}, 1)) == (
        "two processes, on a and on z, both say they are process 0",
        MEND,
    )


def test_lines_come_whole_however_they_are_cut():
    left, right = socket.socketpair()
    with left, right:
        words = [{"kind": "here", "doing": "schön"}, {"kind": "left", "why": ""}]
        data = "".join(json.dumps(word) + "\n" for word in words).encode()
        lines, found = Lines(right), []
        for cut in (data[:7], data[7:60], data[60:]):
            left.sendall(cut)
            found += lines.read()
        assert found == words
        left.sendall(b"GET / HTTP/1.1\r\n")
        assert lines.read() is None


def test_a_place_is_given_or_found_or_asked_for():
    assert find_place("host:1234", 4, 3, 1) == Place("host:1234", 4, 3)
    assert Place("host:1234", 4, 3).roll() == ("host", 1235) and Place("[::1]:7", 1, 0).roll() == ("::1", 8)
    with pytest.raises(ValueError, match="--coordinator HOST:PORT"):
        find_place(None, None, None, 1)
    with pytest.raises(ValueError, match="--process 4"):
        find_place("host:1234", 4, 4, 1)


@pytest.mark.parametrize("limit", ["wait=0", "patience=0", "silence=1"])
def test_limits_too_short_to_keep_are_refused(limit):
    name, _, value = limit.partition("=")
    with pytest.raises(ValueError, match=rf"pod\.{name}={value}"):
        PodConfig(**{name: float(value)})
