"""What every logger takes, and one that passes it on in a thread of its own, so that no step waits for a network."""

import queue
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Protocol

from PIL import Image

QUEUED = 1000
"""How many calls may wait for a logger; where more do, the newest are dropped."""
CLOSE_SECONDS, HURRY_SECONDS = 60.0, 5.0
"""How long the end of a run waits for a logger to take what waits; and one that was told to stop, or fails."""


class Logger(Protocol):
    """Takes the numbers and pictures of one run. Its errors are of any kind: each service has its own."""

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Finite numbers after ``step``, by name."""

    def image(self, step: int, name: str, image: Image.Image) -> None:
        """A picture that was made after ``step``."""

    def flush(self) -> None:
        """Writes what was taken to the disk."""

    def close(self, error: BaseException | None = None) -> None:
        """Ends, with the run or, by ``error``, before its end."""


class BackgroundLogger:
    """A logger in a thread: ``open`` makes it there, with whatever connection that takes, and calls wait in a queue.

    None of its calls waits but close, for at most CLOSE_SECONDS. The first error of a kind is said once in a line by ``warn``; what
    the call carried is lost, and the next is tried.
    """

    def __init__(self, name: str, open: Callable[[], Logger], warn: Callable[[str], object]):
        self._name, self._open, self._warn = name, open, warn
        self._calls: queue.Queue[Callable[[Logger], object] | None] = queue.Queue(QUEUED)
        self._said: set[str] = set()
        self._thread = threading.Thread(target=self._run, name=f"logger {name}", daemon=True)
        self._thread.start()

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        self._put(lambda logger: logger.scalars(step, values))

    def image(self, step: int, name: str, image: Image.Image) -> None:
        self._put(lambda logger: logger.image(step, name, image))

    def flush(self) -> None:
        """Nothing: a service writes when it can."""

    def close(self, error: BaseException | None = None) -> None:
        seconds = CLOSE_SECONDS if error is None else HURRY_SECONDS
        end = time.monotonic() + seconds
        for call in (lambda logger: logger.close(error), None):
            with suppress(queue.Full):  # then the thread hangs, which is said below
                self._calls.put(call, timeout=max(0.0, end - time.monotonic()))
        self._thread.join(max(0.0, end - time.monotonic()))
        if self._thread.is_alive():
            self._warn(f"{self._name} has not taken all in {seconds:.0f} s; the run ends without it")

    def _put(self, call: Callable[[Logger], object]) -> None:
        try:
            self._calls.put_nowait(call)
        except queue.Full:
            self._say("does not keep up", "the newest points are dropped")

    def _say(self, what: str, outcome: str) -> None:
        if what not in self._said:
            self._said.add(what)
            self._warn(f"{self._name} {what}; {outcome}, and the run goes on")

    def _run(self) -> None:
        logger = None
        while (call := self._calls.get()) is not None:
            try:
                logger = logger or self._open()
                call(logger)
            except (
                BaseException
            ) as error:  # a service that fails, in whatever way, ends no run, nor this thread (SystemExit)
                text = str(error).strip().splitlines()
                self._say(f"fails: {type(error).__name__}: {text[0] if text else ''}", "some points are not in it")
