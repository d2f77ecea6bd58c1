"""The processes of one run: they join, meet within time limits, and end together."""

import os
import select
import socket
import threading
import time
import traceback
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Protocol

import jax

from lumina_jax.cluster.coordinator import PULSE, Desk, Lines
from lumina_jax.cluster.membership import GRACE, RETRY, Word
from lumina_jax.config import PodConfig
from lumina_jax.errors import InputError


class Group(Protocol):
    """The processes of a run, as its loop sees them."""

    def at(self, doing: str) -> None:
        """What this process does now, for others to read when it hangs."""

    def meet(self, point: str, limit: float, facts: Mapping[str, str] | None = None) -> None:
        """Waits until all processes have come to ``point`` and say the same ``facts``; ends all after ``limit`` seconds."""

    def guard(self) -> AbstractContextManager[None]:
        """A with-block whose error the others hear of at once."""


class Alone:
    """A run of one process."""

    def at(self, doing: str) -> None:
        pass

    def meet(self, point: str, limit: float, facts: Mapping[str, str] | None = None) -> None:
        pass

    @contextmanager
    def guard(self) -> Iterator[None]:
        yield


@dataclass(frozen=True)
class Place:
    """Where a process stands: process ``index`` of ``processes``, whose process 0 listens at ``coordinator`` (host:port)."""

    coordinator: str
    processes: int
    index: int

    def roll(self) -> tuple[str, int]:
        """(host, port) of the roll: the port after that of JAX."""
        host, _, port = self.coordinator.rpartition(":")
        return host.strip("[]"), int(port) + 1


def find_place(coordinator: str | None, processes: int | None, index: int | None, limit: float) -> Place:
    """Completes what is None from what the machine knows: Cloud TPU (GCE and GKE, all slices), Slurm, Open MPI.

    Raises ValueError when it knows nothing.
    """
    if None in (coordinator, processes, index):
        # JAX finds this out itself while it connects, but answers nobody before all have come; nothing public asks it earlier.
        from jax._src.clusters import ClusterEnv

        coordinator, processes, index, _ = ClusterEnv.auto_detect_unset_distributed_params(
            coordinator, processes, index, None, None, int(limit)
        )
    if None in (coordinator, processes, index):
        raise InputError(
            "no TPU pod, Slurm or MPI job is to be found here; say where this process stands: "
            "--coordinator HOST:PORT (of process 0) --processes N --process I"
        )
    if ":" not in coordinator or not 0 <= index < processes:
        raise InputError(
            f"--coordinator {coordinator} --processes {processes} --process {index}: "
            "expected HOST:PORT, and a process from 0 to one less than their number"
        )
    return Place(coordinator, processes, index)


class Together:
    """A run of several processes; see :class:`Group`. Joins the roll that process 0 keeps, within ``limits.wait`` seconds.

    A thread sends signs of life and listens. When the roll says that the run is at an end, it writes why, in one line, and
    ends this process with exit code 75 (start again) or 2 (mend something first), wherever the main thread hangs.
    """

    def __init__(self, place: Place, limits: PodConfig):
        self._place, self._limits = place, limits
        self._doing = "its start"
        self._error: BaseException | None = None
        self._passed: dict[str, threading.Event] = {}
        self._over = threading.Event()
        self._desk = Desk(place.roll()[1], place.processes, limits) if place.index == 0 else None
        self._line = self._connect()
        self._lines = Lines(self._line)
        self._send({"kind": "hello", "index": place.index, "host": socket.gethostname()})
        threading.Thread(target=self._listen, name="roll of the run", daemon=True).start()
        self.meet("joining", limits.wait)

    def at(self, doing: str) -> None:
        self._doing = doing

    def meet(self, point: str, limit: float, facts: Mapping[str, str] | None = None) -> None:
        passed = self._passed[point] = threading.Event()
        self._send({"kind": "reach", "point": point, "limit": limit, "facts": dict(facts or {})})
        passed.wait()
        del self._passed[point]

    @contextmanager
    def guard(self) -> Iterator[None]:
        try:
            yield
        except (Exception, KeyboardInterrupt) as error:
            if self._error is None:
                if isinstance(error, jax.errors.JaxRuntimeError):
                    # A collective breaks when another process dies: the roll is about to name that one.
                    self._over.wait(GRACE)
                self._error = error
                self._leave(f"{type(error).__name__}: {error}")
            raise

    def close(self) -> None:
        """Leaves, and waits until all have: nothing may end before the roll is through, least of all process 0, which keeps it."""
        if self._error is None:
            self._leave("")
        self._over.wait(2 * GRACE if self._error else self._limits.patience)

    def _connect(self) -> socket.socket:
        begin, (host, port) = time.monotonic(), self._place.roll()
        while True:
            try:
                line = socket.create_connection((host, port), timeout=GRACE)
                line.settimeout(None)
                return line
            except OSError as error:
                if time.monotonic() - begin > self._limits.wait:
                    absent = (
                        f"joining: process 0 was not at {host}, port {port}, for {self._limits.wait:.0f} s ({error})"
                    )
                    self._end(f"{absent}; see that it was started and that hosts may reach each other there", RETRY)
            time.sleep(0.2)

    def _leave(self, why: str) -> None:
        self._send({"kind": "left", "why": " ".join(why.split())})

    def _send(self, word: Word) -> None:
        self._lines.send({**word, "doing": self._doing})

    def _listen(self) -> None:
        silence = self._limits.silence
        heard, said = time.monotonic(), 0.0
        while not self._over.is_set():
            now = time.monotonic()
            if now - said > PULSE:
                said = now
                self._send({"kind": "here"})
            if select.select([self._line], [], [], PULSE)[0]:
                heard, words = now, self._lines.read()
                if words is None:
                    self._end(f"process 0 at {self._place.coordinator} died", RETRY)
                for word in words:
                    self._obey(word)
            elif now - heard > silence:
                where = self._place.coordinator
                self._end(f"process 0 at {where} has not been heard of for {now - heard:.0f} s", RETRY)

    def _obey(self, word: Word) -> None:
        if word["kind"] == "go":
            self._passed[word["point"]].set()
        elif word["kind"] == "say":
            self._write(str(word["text"]))
        elif word["kind"] == "over":
            self._over.set()
        elif word["kind"] == "end":
            self._end(str(word["why"]), int(word["code"]))

    def _end(self, why: str, code: int) -> None:
        if self._error is not None:
            traceback.print_exception(self._error)
        again = (
            "start all again to go on from the newest checkpoint" if code == RETRY else "mend that, then start again"
        )
        self._write(f"the run ends: {why}; {again}")
        if self._desk is not None:
            # JAX aborts whoever still lives when process 0 is gone.
            self._desk.alone.wait(GRACE)
        os._exit(code)

    def _write(self, text: str) -> None:
        # Straight to the file: the main thread may hang while it holds the stream.
        os.write(2, f"process {self._place.index} of {self._place.processes}: {text}\n".encode())


@contextmanager
def joined(
    limits: PodConfig, coordinator: str | None = None, processes: int | None = None, index: int | None = None
) -> Iterator[Group]:
    """The group of this process and all others of the run, with JAX's own connections made; see :func:`find_place`."""
    place = find_place(coordinator, processes, index, limits.wait)
    group = Together(place, limits)
    try:
        with group.guard():
            # Longer than the roll's own limit, which names who is missing where JAX aborts with a stack trace.
            heartbeat = 2 * int(limits.silence) + 1
            jax.distributed.initialize(
                place.coordinator,
                place.processes,
                place.index,
                initialization_timeout=int(limits.wait) + 1,
                heartbeat_timeout_seconds=heartbeat,
            )
            yield group
    finally:
        group.close()
