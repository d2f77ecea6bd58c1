"""Laws of reading ahead: results come in order, workers never wait for fetches, and neither runs far ahead of its reader."""

import itertools
import threading
import time

import pytest

from lumina_jax.data.ahead import FETCH_AHEAD, WORK_AHEAD, read_ahead


def run(items, fetch, work=lambda item, content: content, weigh=lambda content: 1, fetchers=8, threads=2):
    return read_ahead(items, fetch, work, weigh, fetchers, threads)


def test_results_come_in_order_whatever_comes_first():
    def fetch(number: int) -> int:
        time.sleep(0.02 if number % 7 == 0 else 0)
        return number * 2

    results = list(run(range(200), fetch, lambda number, content: (number, content)))
    assert results == [(number, (number, 2 * number)) for number in range(200)]
    assert list(run([], fetch)) == []


def test_workers_go_on_while_fetches_hang():
    release, worked = threading.Event(), []

    def fetch(number: int) -> int:
        if number < 4:
            release.wait(10)
        return number

    def work(number: int, content: int) -> int:
        worked.append(number)
        if len(worked) == 20:
            release.set()
        return content

    assert [result for _, result in run(range(24), fetch, work)] == list(range(24))
    assert release.is_set()


@pytest.mark.parametrize("slow", [False, True])
def test_only_slow_fetches_are_begun_far_ahead(slow):
    begun = []

    def fetch(number: int) -> int:
        begun.append(number)
        if slow and number == 0:
            time.sleep(0.5)
        return number

    results = run(itertools.count(), fetch, fetchers=64)
    next(results)
    time.sleep(0.05)
    assert len(begun) == (64 * FETCH_AHEAD if slow else 2 * WORK_AHEAD)
    results.close()


def test_heavy_contents_are_not_held_far_ahead():
    begun = []

    def fetch(number: int) -> int:
        begun.append(number)
        time.sleep(0.5 if number == 0 else 0)
        return number

    results = run(itertools.count(), fetch, weigh=lambda content: 1 << 28, fetchers=64)
    next(results)
    assert len(begun) <= 4 * WORK_AHEAD
    results.close()


@pytest.mark.parametrize("place", ["fetch", "work"])
def test_an_error_is_raised_in_its_turn(place):
    def fail(number: int, *_: int) -> int:
        return 1 // (number - 5)

    results = run(
        range(9), fail if place == "fetch" else abs, fail if place == "work" else lambda item, content: content
    )
    for _ in range(5):
        next(results)
    with pytest.raises(ZeroDivisionError):
        next(results)


def test_a_reader_that_leaves_does_not_wait_for_what_hangs():
    release = threading.Event()
    results = run(range(100), lambda number: number and release.wait(20))
    next(results)
    begin = time.monotonic()
    results.close()
    assert time.monotonic() - begin < 5
    release.set()
