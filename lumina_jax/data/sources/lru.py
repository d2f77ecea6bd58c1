"""A small memory of what was made last, shared by threads."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from typing import Generic, TypeVar

T = TypeVar("T")


class Recent(Generic[T]):
    """Holds the ``limit`` results asked for last. A pickled one comes back empty, so that its owner can change process."""

    def __init__(self, limit: int):
        self._limit = limit
        self._made: OrderedDict[Hashable, Future[T]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: Hashable, make: Callable[[], T]) -> T:
        """The result under ``key``, made by one thread while others that ask for it wait; a failure is not held."""
        with self._lock:
            result = self._made.get(key)
            if mine := result is None:
                result = self._made[key] = Future()
            self._made.move_to_end(key)
            while len(self._made) > self._limit:
                self._made.popitem(last=False)
        if mine:
            try:
                result.set_result(make())
            except BaseException as error:
                result.set_exception(error)
                with self._lock:
                    if self._made.get(key) is result:
                        del self._made[key]
        return result.result()

    def __reduce__(self) -> tuple[type["Recent"], tuple[int]]:
        return Recent, (self._limit,)
