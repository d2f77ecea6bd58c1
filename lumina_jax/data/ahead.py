"""Reads ahead with two groups of threads: many that fetch, and mostly wait, and a few that compute, and never wait for a fetch."""

import itertools
import queue
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Generic, TypeVar

WORK_AHEAD = 32
"""Items that each computing thread may be ahead."""
FETCH_AHEAD = 4
"""Items that each fetching thread may be ahead."""
BYTES_AHEAD = 1 << 30
"""Of fetched content. Once so much is held, no thread goes further ahead."""
PATIENCE = 0.02
"""Seconds of waiting for the next item after which the fetching threads go further ahead."""

Item = TypeVar("Item")
Content = TypeVar("Content")
Result = TypeVar("Result")


@dataclass(frozen=True)
class _Entry(Generic[Item, Content, Result]):
    item: Item
    fetched: Future[Content]
    done: Future[Result]


def read_ahead(
    items: Iterable[Item],
    fetch: Callable[[Item], Content],
    work: Callable[[Item, Content], Result],
    weigh: Callable[[Content], int],
    fetchers: int,
    threads: int,
) -> Iterator[tuple[Item, Result]]:
    """(item, ``work(item, fetch(item))``) of each item, in order.

    ``fetchers`` threads fetch and ``threads`` threads work. Local files keep the fetching threads as little ahead as the working
    ones; slow servers make them go further, until ``weigh``, in bytes, of what they hold is BYTES_AHEAD. What ``fetch`` or
    ``work`` raises is raised here, in its turn.
    """
    fetchers, threads = max(fetchers, 1), max(threads, 1)
    items, narrow = iter(items), WORK_AHEAD * threads
    ahead, widest = narrow, max(narrow, FETCH_AHEAD * fetchers)
    waiting: deque[tuple[Item, Future[Content]]] = deque()
    entries: deque[_Entry[Item, Content, Result]] = deque()
    held = _Sum()
    fetching, working = _DaemonThreads(fetchers), ThreadPoolExecutor(threads, "work")

    def fetch_one(item: Item) -> Content:
        content = fetch(item)
        held.add(weigh(content))
        return content

    def top_up() -> None:
        for item in itertools.islice(items, max(ahead - len(waiting) - len(entries), 0)):
            waiting.append((item, fetching.submit(fetch_one, item)))
        while waiting and len(entries) < narrow:
            item, fetched = waiting.popleft()
            entries.append(_Entry(item, fetched, _then(fetched, working, work, item)))

    try:
        while top_up() or entries:
            entry = entries[0]
            while not wait([entry.done], PATIENCE).done:
                if not entry.fetched.done() and held.total < BYTES_AHEAD:
                    ahead = min(2 * ahead, widest)
                    top_up()
            result = entries.popleft().done.result()
            held.add(-weigh(entry.fetched.result()))
            yield entry.item, result
    finally:
        fetching.close()
        working.shutdown(wait=False, cancel_futures=True)


class _DaemonThreads:
    """Up to ``limit`` threads that call functions. Unlike those of an executor they do not keep an interrupted process waiting."""

    def __init__(self, limit: int):
        self._limit, self._threads, self._closed = limit, 0, False
        self._calls: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()

    def submit(self, function: Callable[[Item], Content], item: Item) -> Future[Content]:
        result: Future[Content] = Future()
        self._calls.put(lambda: _call_into(result, function, item))
        if self._threads < self._limit:
            threading.Thread(target=self._run, name=f"fetch-{self._threads}", daemon=True).start()
            self._threads += 1
        return result

    def close(self) -> None:
        """Ends the threads, each after the call it is in."""
        self._closed = True
        for _ in range(self._threads):
            self._calls.put(lambda: None)

    def _run(self) -> None:
        while not self._closed:
            self._calls.get()()


class _Sum:
    """A number that threads add to."""

    def __init__(self):
        self.total = 0
        self._lock = threading.Lock()

    def add(self, number: int) -> None:
        with self._lock:
            self.total += number


def _then(
    fetched: Future[Content], pool: ThreadPoolExecutor, work: Callable[[Item, Content], Result], item: Item
) -> Future[Result]:
    """The result of ``work(item, content)``, which begins in a thread of ``pool`` once the content is there."""
    result: Future[Result] = Future()
    fetched.add_done_callback(lambda _: pool.submit(_call_into, result, lambda: work(item, fetched.result())))
    return result


def _call_into(result: Future[Result], function: Callable[..., Result], *arguments: object) -> None:
    """Gives ``function(*arguments)``, or what it raises, to whoever waits for ``result``."""
    try:
        result.set_result(function(*arguments))
    except BaseException as error:
        result.set_exception(error)
