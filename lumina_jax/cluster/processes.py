"""The processes of one run: they join, wait for each other within time limits, and end together."""

import os
import select
import socket
import threading
import time
import traceback
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager

from lumina_jax.cluster.address import Address
from lumina_jax.cluster.connection import Connection, patient, proof, run_token
from lumina_jax.cluster.coordinator import Coordinator, heartbeat_seconds
from lumina_jax.cluster.membership import GRACE_SECONDS, Message
from lumina_jax.cluster.pace import Pace, slowest
from lumina_jax.cluster.single_process import CURES, SingleProcess, say_at_once
from lumina_jax.cluster.slices import check_slices
from lumina_jax.config import PodConfig
from lumina_jax.faults import EXIT_ERROR, EXIT_RESTART, exit_code, is_device_failure, note_progress

JOINS_PER_SECOND = 1000
"""Processes wait before they connect, so that no more come in a second."""


class ProcessGroup:
    """A run of several processes, of which this is one. Connects to the coordinator within ``limits.join_timeout`` seconds.

    A thread sends heartbeats and listens. When the coordinator ends the run, or is silent for ``limits.heartbeat_timeout`` seconds,
    the thread prints the reason as one line and ends this process with exit code 75 (restart) or 2 (mend something first),
    wherever the main thread hangs. ``run`` names the run, so that others are not let in; ``slice_counts`` are the numbers of
    slices with which it can go on (``limits.elastic``). Waits in the constructor until the run begins, or takes this process in.
    """

    def __init__(self, address: Address, limits: PodConfig, run: str = "", slice_counts: Collection[int] = ()):
        check_slices(address.processes, limits.slices)
        self._address, self._limits, self._slice_counts = address, limits, slice_counts
        self._token = run_token(run)
        self._activity, self._limit, self._pace = "its start", 0.0, None
        self._error: BaseException | None = None
        self._exit_code = 0
        self._barriers: dict[str, threading.Event] = {}
        self._returned: dict[str, tuple[int, ...]] = {}
        self._begun, self._all_left = threading.Event(), threading.Event()
        self._slices: tuple[int, ...] = ()
        self._coordinator: Coordinator | None = None
        self._candidates = address.of_coordinators()
        self._heartbeat_seconds = heartbeat_seconds(address.processes, limits)
        time.sleep(address.index / JOINS_PER_SECOND)
        self._connection, self._socket, self._peer = self._connect()
        threading.Thread(target=self._listen, name="process group", daemon=True).start()
        self._begun.wait()

    @property
    def present(self) -> int:
        """How many slices the run has; fewer than ``limits.slices`` when it goes on without some."""
        return len(self._slices)

    def jax_address(self) -> Address:
        """Where the processes of this run, those of the present slices, find JAX's service, and which of them this one is."""
        size = self._address.processes // self._limits.slices
        number, inside = divmod(self._address.index, size)
        addresses = self._address.coordinator.split(",")
        if self._slices[0] >= len(addresses):
            self._end(
                f"slice {self._slices[0]} goes on without those before it, but --coordinator names no host of it; give the address "
                "of each slice's first process, with commas between them",
                EXIT_ERROR,
            )
        rank = self._slices.index(number) * size + inside
        return Address(addresses[self._slices[0]], len(self._slices) * size, rank)

    def doing(self, activity: str, limit: float = 0.0) -> None:
        """Says what this process does from now on, and how many seconds that may take (0: ``limits.stall_timeout``).

        The messages about missing processes and hangs show it.
        """
        self._activity, self._limit = activity, limit

    def pace(self, pace: Pace | None) -> None:
        """Says how fast this process steps."""
        self._pace = pace

    def slowest(self) -> str:
        """In the process that has the coordinator: a line on the process that holds the others up; empty where none does."""
        return slowest(self.paces())

    def paces(self) -> Mapping[str, Pace]:
        """In the process that has the coordinator: how fast each process steps, by its name; empty elsewhere."""
        return self._coordinator.paces() if self._coordinator else {}

    def barrier(self, name: str, timeout: float, values: Mapping[str, str] | None = None) -> tuple[int, ...]:
        """Waits until all processes are at the barrier ``name`` with equal ``values``. Returns the slices that came back.

        Ends all processes after ``timeout`` seconds, naming the missing ones, or when values differ, naming both.
        """
        released = self._barriers[name] = threading.Event()
        self._send({"kind": "barrier", "barrier": name, "timeout": timeout, "values": dict(values or {})})
        released.wait()
        del self._barriers[name]
        return self._returned.pop(name)

    @contextmanager
    def guard(self) -> Iterator[None]:
        """A with-block whose error is sent to the other processes, which then end too."""
        try:
            yield
        except SystemExit as stop:
            self._exit_code = stop.code if isinstance(stop.code, int) else EXIT_ERROR
            raise
        except (Exception, KeyboardInterrupt) as error:
            if self._error is None:
                if is_device_failure(error):
                    # A collective fails when another process dies: the coordinator is about to name that process.
                    self._all_left.wait(GRACE_SECONDS)
                self._error = error
                self._leave(f"{type(error).__name__}: {error}", exit_code(error))
            raise

    def close(self) -> None:
        """Leaves and waits until all processes have left: process 0 must outlive the others, who need its coordinator."""
        if self._error is None:
            self._leave("", self._exit_code)
        self._all_left.wait(2 * GRACE_SECONDS if self._error else self._limits.stall_timeout)

    def _connect(self) -> tuple[Connection, socket.socket, str]:
        """Connects to the first coordinator that answers, opening one where it is this process's turn."""
        start, wait = time.monotonic(), self._limits.elastic_wait * self._limits.elastic
        number, inside = divmod(self._address.index, self._address.processes // self._limits.slices)
        may_open = inside == 0 and number < (len(self._candidates) if self._limits.elastic else 1)
        own = number if may_open else None
        error: OSError | None = None
        while True:
            waited = time.monotonic() - start
            for candidate, (host, port) in enumerate(self._candidates):
                if candidate == own and self._coordinator is None:
                    continue
                try:
                    return self._greet(host, port)
                except OSError as refused:
                    error = refused
            if own is not None and self._coordinator is None and waited >= own * wait:
                port = self._candidates[own][1]
                places = (port, self._address.processes, self._limits, self._token, self._slice_counts)
                self._coordinator = Coordinator(*places, self._address.index)
            elif waited > self._limits.join_timeout + (self._limits.slices - 1) * wait:
                where = " or ".join(f"{host}, port {port}" for host, port in self._candidates)
                cure = "see that it was started and that hosts may reach each other there"
                self._end(f"joining: process 0 was not at {where}, for {waited:.0f} s ({error}); {cure}", EXIT_RESTART)
            else:
                time.sleep(0.2)

    def _greet(self, host: str, port: int) -> tuple[Connection, socket.socket, str]:
        """Connects and says hello. Raises OSError when there is no coordinator."""
        connected = patient(socket.create_connection((host, port), timeout=GRACE_SECONDS))
        connection = Connection(connected)
        messages = connection.receive()
        if not messages or messages[0].get("kind") != "challenge":
            connected.close()
            raise ConnectionError("no coordinator of a run answers there")
        index = self._address.index
        answer = proof(self._token, str(messages[0]["nonce"]), index)
        connection.send({"kind": "hello", "index": index, "host": socket.gethostname(), "proof": answer})
        return connection, connected, f"{host}:{port - 1}"

    def _leave(self, error: str, code: int) -> None:
        self._send({"kind": "leave", "error": " ".join(error.split()), "exit_code": code})

    def _send(self, message: Message) -> None:
        self._connection.send({**message, "doing": self._activity, "limit": self._limit, "pace": self._pace})

    def _listen(self) -> None:
        try:
            self._listen_until_all_left()
        except Exception as error:
            # Without its heartbeats the others would wait for this process, and it for ever.
            traceback.print_exception(error)
            self._end(f"the thread that listens to process 0 failed with {type(error).__name__}: {error}", EXIT_RESTART)

    def _listen_until_all_left(self) -> None:
        last_received, last_sent = time.monotonic(), 0.0
        ready = select.poll()  # select itself takes no more than 1,024 open files
        ready.register(self._socket, select.POLLIN)
        while not self._all_left.is_set():
            now = time.monotonic()
            if now - last_sent > self._heartbeat_seconds:
                last_sent = now
                self._send({"kind": "heartbeat"})
            if ready.poll(1e3 * min(self._heartbeat_seconds, 1.0)):
                last_received, messages = now, self._connection.receive()
                if messages is None:
                    self._end(f"process 0 at {self._peer} died", EXIT_RESTART)
                for message in messages:
                    self._handle(message)
            elif now - last_received > self._limits.heartbeat_timeout:
                silence = f"has not been heard of for {now - last_received:.0f} s"
                self._end(f"process 0 at {self._peer} {silence}", EXIT_RESTART)

    def _handle(self, message: Message) -> None:
        if message["kind"] == "begin":
            self._slices = tuple(message["slices"])
            missing = ", ".join(str(number) for number in range(self._limits.slices) if number not in self._slices)
            if missing and self._coordinator:
                self._print(
                    f"the run begins without slice {missing}; a slice that is complete is taken in after a save"
                )
            self._begun.set()
        elif message["kind"] == "wait":
            present = ", ".join(map(str, message["slices"]))
            self._print(f"the run goes on with slice {present}; this process is taken in after the next save")
            note_progress(f"waited as {os.getpid()}")
        elif message["kind"] == "release":
            self._returned[message["barrier"]] = tuple(message["returned"])
            self._barriers[message["barrier"]].set()
        elif message["kind"] == "notice":
            self._print(str(message["text"]))
        elif message["kind"] == "all_left":
            self._all_left.set()
        elif message["kind"] == "end":
            self._end(str(message["reason"]), int(message["exit_code"]))

    def _end(self, reason: str, code: int) -> None:
        if self._error is not None:
            traceback.print_exception(self._error)
        self._print(f"the run ends: {reason}{CURES.get(code, '')}")
        if self._coordinator is not None:
            # JAX aborts the processes that still live when process 0 ends.
            self._coordinator.others_gone.wait(GRACE_SECONDS)
        os._exit(code)

    def _print(self, text: str) -> None:
        say_at_once(f"process {self._address.index} of {self._address.processes}: {text}")


Group = SingleProcess | ProcessGroup
