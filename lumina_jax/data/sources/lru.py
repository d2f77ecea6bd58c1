"""A least-recently-used cache that threads share."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from typing import Generic, TypeVar

T = TypeVar("T")


class LRUCache(Generic[T]):
    """Holds the ``limit`` results used last. Pickling keeps none, so that the object that owns it can change process."""

    def __init__(self, limit: int):
        self._limit = limit
        self._results: OrderedDict[Hashable, Future[T]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: Hashable, make: Callable[[], T]) -> T:
        """The result of ``make`` for ``key``, computed by one thread while others wait for it; failures are not held."""
        with self._lock:
            result = self._results.get(key)
            if missing := result is None:
                result = self._results[key] = Future()
            self._results.move_to_end(key)
            while len(self._results) > self._limit:
                self._results.popitem(last=False)
        if missing:
            try:
                result.set_result(make())
            except BaseException as error:
                result.set_exception(error)
                with self._lock:
                    if self._results.get(key) is result:
                        del self._results[key]
        return result.result()

    def __reduce__(self) -> tuple[type["LRUCache"], tuple[int]]:
        return LRUCache, (self._limit,)
