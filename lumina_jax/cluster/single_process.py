"""A run of one process, which watches over itself."""

import os
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace

from lumina_jax.cluster.membership import GRACE_SECONDS, Membership
from lumina_jax.cluster.pace import Pace
from lumina_jax.config import PodConfig
from lumina_jax.faults import EXIT_ERROR, EXIT_RESTART

WATCH_SECONDS = 1.0
"""Between two looks at what the process does."""
CURES = {
    EXIT_RESTART: "; start all again to go on from the newest checkpoint",
    EXIT_ERROR: "; mend that, then start again",
}
"""What to do after a run that ended with an exit code."""


class SingleProcess:
    """A run of one process, with the methods of :class:`ProcessGroup`; there is no other process to wait for or to inform."""

    present = 0
    """It stands in no slice that could be lost."""

    def __init__(self, limits: PodConfig | None = None):
        self._limits, self._activity, self._limit = limits, "its start", 0.0
        self._watcher: threading.Thread | None = None
        self._over = threading.Event()

    def doing(self, activity: str, limit: float = 0.0) -> None:
        """Says what this process does from now on. From the first ``limit`` on, with ``limits``, a thread ends the process with the
        exit code 75 when something takes longer than it may."""
        self._activity, self._limit = activity, limit
        if limit and self._limits is not None and self._watcher is None:
            self._watcher = threading.Thread(target=self._watch, args=(self._limits,), name="watch", daemon=True)
            self._watcher.start()

    def pace(self, pace: Pace | None) -> None:
        """Does nothing."""

    def slowest(self) -> str:
        """There is none."""
        return ""

    def paces(self) -> Mapping[str, Pace]:
        """Empty: nobody waits for another."""
        return {}

    def barrier(self, name: str, timeout: float, values: Mapping[str, str] | None = None) -> tuple[int, ...]:
        """Does nothing; no slice returned."""
        return ()

    @contextmanager
    def guard(self) -> Iterator[None]:
        """A with-block after which nothing is watched any more."""
        try:
            yield
        finally:
            self._over.set()

    def _watch(self, limits: PodConfig) -> None:
        membership, last = None, 0.0
        while not self._over.wait(WATCH_SECONDS):
            now = time.monotonic()
            if membership is None or now - last > GRACE_SECONDS:  # the process was stopped meanwhile
                membership = Membership(1, replace(limits, slices=1, elastic=False), now)
                membership.receive(0, {"kind": "hello", "host": socket.gethostname()}, now)
            last, doing = now, {"kind": "heartbeat", "doing": self._activity, "limit": self._limit}
            for message in [*membership.receive(0, doing, now), *membership.tick(now)]:
                if message["kind"] == "notice":
                    say_at_once(str(message["text"]))
                elif message["kind"] == "end":
                    say_at_once(f"the run ends: {message['reason']}{CURES[EXIT_RESTART]}")
                    os._exit(EXIT_RESTART)


def say_at_once(line: str) -> None:
    """Prints a line on stderr, whatever else is being printed."""
    # Not through sys.stderr: the main thread may hang while it holds the lock of that stream. Who reads it may be gone.
    with suppress(OSError):
        os.write(2, f"{line}\n".encode())
