"""Which part of a collective is waited for, in small schedules."""

import pytest

from lumina_jax.pods.links import EVERY_LINK
from lumina_jax.pods.schedule import BETWEEN_SLICES, Event, Loop, waits


def start(key: int, seconds: float, busy=EVERY_LINK) -> Event:
    return Event("start", key, seconds, busy, frozenset({str(key)}))


def done(key: int) -> Event:
    return Event("done", handles=frozenset({str(key)}))


def compute(seconds: float) -> Event:
    return Event("run", -1, seconds)


@pytest.mark.smoke
def test_what_runs_between_start_and_done_hides_a_collective():
    assert waits([start(0, 3), compute(2), done(0), compute(4)]) == (7, {0: 1})
    assert waits([start(0, 3), compute(3), done(0)]) == (3, {})
    assert waits([compute(5), start(0, 3), done(0)]) == (8, {0: 3})
    assert waits([compute(5), Event("block", 0, 3, EVERY_LINK)]) == (8, {0: 3})


def test_collectives_queue_and_a_wait_counts_for_the_one_that_moves():
    assert waits([start(0, 3), start(1, 2), compute(1), done(1), done(0)]) == (5, {0: 2, 1: 2})


def test_a_blocking_collective_shares_the_links_and_delays_the_others():
    assert waits([start(0, 3), compute(1), Event("block", 1, 2, EVERY_LINK), done(0)]) == (5, {0: 2, 1: 2})
    short = Event("block", 1, 1, EVERY_LINK)
    assert waits([start(0, 10), compute(1), short, compute(3), done(0)]) == (11, {0: 6, 1: 1})
    assert waits([start(0, 10), compute(1), short, compute(20), done(0)]) == (23, {0: 1, 1: 1})


def test_permutes_over_other_links_and_other_networks_do_not_queue():
    forward, backward = frozenset({(0, 0, 0, 0, 1)}), frozenset({(0, 0, 0, 0, -1)})
    assert waits([start(0, 3, forward), start(1, 3, backward), done(0), done(1)]) == (3, {0: 3})
    assert waits([start(0, 3, forward), start(1, 3, forward), done(0), done(1)]) == (6, {0: 3, 1: 3})
    assert waits([start(0, 3, forward), start(1, 3), done(0), done(1)]) == (6, {0: 3, 1: 3})
    assert waits([start(0, 3), start(1, 4, BETWEEN_SLICES), done(0), done(1)]) == (4, {0: 3, 1: 1})


def test_what_is_never_waited_for_ends_before_the_program_does():
    assert waits([start(0, 3), compute(1)]) == (3, {0: 2})


def test_every_trip_of_a_loop_waits():
    body = (start(0, 3), compute(2), done(0))
    assert waits([Loop(10, body)]) == (30, {0: 10})
    assert waits([Loop(3, (Loop(4, body), compute(1)))]) == (39, {0: 12})
    assert waits([Loop(0, body), compute(1)]) == (1, {})
    # Started before the loop, it keeps the links busy in the first trip alone.
    assert waits([start(1, 5), Loop(10, (start(0, 2), compute(3), done(0))), done(1)]) == (34, {0: 2, 1: 2})
