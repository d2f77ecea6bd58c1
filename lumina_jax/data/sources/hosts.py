"""Which hosts do not answer, so that a dead one costs seconds once and not for each of its records."""

import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass


@dataclass
class _Host:
    failures: int = 0
    answered: float = float("-inf")
    asked_again: float = 0.0
    reason: str = ""


class HostMemory:
    """What is known of each host, shared by all threads of a process.

    A host that failed ``failures`` times in a row is skipped. Each ``pause`` seconds one request goes through; when it is
    answered the host is as good as new. A host that answered within the last ``pause`` seconds lives: that it leaves single
    requests unanswered does not count. Of all hosts the ``limit`` asked last are remembered.
    """

    def __init__(
        self, failures: int = 3, pause: float = 60.0, limit: int = 1 << 16, clock: Callable[[], float] = time.monotonic
    ):
        self._failures, self._pause, self._limit, self._clock = failures, pause, limit, clock
        self._hosts: OrderedDict[str, _Host] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._hosts)

    def reason_to_skip(self, host: str) -> str:
        """Why ``host`` is not to be asked now; empty if it may be."""
        with self._lock:
            known, now = self._hosts.get(host), self._clock()
            if known is None or known.failures < self._failures:
                return ""
            if now >= known.asked_again:
                known.asked_again = now + self._pause
                return ""
            return (
                f"skipped, because {host} failed {known.failures} times in a row, at last so: {known.reason}; "
                f"it is asked again every {self._pause:g} s"
            )

    def answered(self, host: str) -> None:
        """``host`` answered, whatever it said."""
        with self._lock:
            known = self._touch(host)
            known.failures, known.answered = 0, self._clock()

    def failed(self, host: str, reason: str, connected: bool) -> None:
        """``host`` refused the connection, or was ``connected`` and gave no answer."""
        with self._lock:
            known, now = self._touch(host), self._clock()
            if connected and now - known.answered < self._pause:
                return
            known.failures, known.asked_again, known.reason = known.failures + 1, now + self._pause, reason

    def clear(self) -> None:
        """Forgets all."""
        with self._lock:
            self._hosts.clear()

    def _touch(self, host: str) -> _Host:
        known = self._hosts.setdefault(host, _Host())
        self._hosts.move_to_end(host)
        if len(self._hosts) > self._limit:
            self._hosts.popitem(last=False)
        return known


HOSTS = HostMemory()
