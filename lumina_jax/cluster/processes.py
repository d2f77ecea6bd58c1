"""The processes of one run: they join, wait for each other within time limits, and end together."""

import os
import select
import socket
import threading
import time
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple

import jax

from lumina_jax.cluster.coordinator import HEARTBEAT_SECONDS, Connection, Coordinator
from lumina_jax.cluster.membership import GRACE_SECONDS, Message
from lumina_jax.config import PodConfig
from lumina_jax.errors import InputError
from lumina_jax.faults import EXIT_RESTART, exit_code


class SingleProcess:
    """A run of one process, with the methods of :class:`ProcessGroup`; there is no other process to wait for or to inform."""

    def doing(self, activity: str) -> None:
        """Does nothing."""

    def barrier(self, name: str, timeout: float, values: Mapping[str, str] | None = None) -> None:
        """Does nothing."""

    @contextmanager
    def guard(self) -> Iterator[None]:
        """Does nothing."""
        yield


class Address(NamedTuple):
    """Process ``index`` of ``processes``; JAX's service in process 0 listens at ``coordinator`` (host:port)."""

    coordinator: str
    processes: int
    index: int

    def of_coordinator(self) -> tuple[str, int]:
        """(host, port) of our own :class:`Coordinator`: one port above JAX's service."""
        host, _, port = self.coordinator.rpartition(":")
        return host.strip("[]"), int(port) + 1


def find_address(coordinator: str | None, processes: int | None, index: int | None, timeout: float) -> Address:
    """Completes what is None from the environment: Cloud TPU (GCE and GKE, all slices), Slurm or Open MPI.

    Raises InputError when there is none of them.
    """
    if None in (coordinator, processes, index):
        # jax.distributed.initialize detects this too, but only while it connects, and there is no public way to ask earlier.
        from jax._src.clusters import ClusterEnv

        coordinator, processes, index, _ = ClusterEnv.auto_detect_unset_distributed_params(
            coordinator, processes, index, None, None, int(timeout)
        )
    if None in (coordinator, processes, index):
        raise InputError(
            "no TPU pod, Slurm or MPI job was found here; say which process this is: "
            "--coordinator HOST:PORT (of process 0) --processes N --process I"
        )
    host, _, port = coordinator.rpartition(":")
    if not (host and port.isdigit() and 0 <= index < processes):
        raise InputError(
            f"--coordinator {coordinator} --processes {processes} --process {index}: "
            "expected HOST:PORT, and a process from 0 to one less than their number"
        )
    return Address(coordinator, processes, index)


class ProcessGroup:
    """A run of several processes, of which this is one. Connects to the coordinator within ``limits.join_timeout`` seconds.

    A thread sends heartbeats and listens. When the coordinator ends the run, or is silent for ``limits.heartbeat_timeout`` seconds,
    the thread prints the reason as one line and ends this process with exit code 75 (restart) or 2 (mend something first),
    wherever the main thread hangs.
    """

    def __init__(self, address: Address, limits: PodConfig):
        self._address, self._limits = address, limits
        self._activity = "its start"
        self._error: BaseException | None = None
        self._barriers: dict[str, threading.Event] = {}
        self._all_left = threading.Event()
        port = address.of_coordinator()[1]
        self._coordinator = Coordinator(port, address.processes, limits) if address.index == 0 else None
        self._socket = self._connect()
        self._connection = Connection(self._socket)
        self._send({"kind": "hello", "index": address.index, "host": socket.gethostname()})
        threading.Thread(target=self._listen, name="process group", daemon=True).start()
        self.barrier("joining", limits.join_timeout)

    def doing(self, activity: str) -> None:
        """Says what this process does from now on; the messages about missing processes and hangs show it."""
        self._activity = activity

    def barrier(self, name: str, timeout: float, values: Mapping[str, str] | None = None) -> None:
        """Waits until all processes are at the barrier ``name`` with equal ``values``.

        Ends all processes after ``timeout`` seconds, naming the missing ones, or when values differ, naming both.
        """
        released = self._barriers[name] = threading.Event()
        self._send({"kind": "barrier", "barrier": name, "timeout": timeout, "values": dict(values or {})})
        released.wait()
        del self._barriers[name]

    @contextmanager
    def guard(self) -> Iterator[None]:
        """A with-block whose error is sent to the other processes, which then end too."""
        try:
            yield
        except (Exception, KeyboardInterrupt) as error:
            if self._error is None:
                if isinstance(error, jax.errors.JaxRuntimeError):
                    # A collective fails when another process dies: the coordinator is about to name that process.
                    self._all_left.wait(GRACE_SECONDS)
                self._error = error
                self._leave(f"{type(error).__name__}: {error}", exit_code(error))
            raise

    def close(self) -> None:
        """Leaves and waits until all processes have left: process 0 must outlive the others, who need its coordinator."""
        if self._error is None:
            self._leave("", 0)
        self._all_left.wait(2 * GRACE_SECONDS if self._error else self._limits.stall_timeout)

    def _connect(self) -> socket.socket:
        start, (host, port) = time.monotonic(), self._address.of_coordinator()
        while True:
            try:
                connected = socket.create_connection((host, port), timeout=GRACE_SECONDS)
                connected.settimeout(None)
                return connected
            except OSError as error:
                if time.monotonic() - start > self._limits.join_timeout:
                    waited = f"for {self._limits.join_timeout:.0f} s ({error})"
                    cure = "see that it was started and that hosts may reach each other there"
                    self._end(f"joining: process 0 was not at {host}, port {port}, {waited}; {cure}", EXIT_RESTART)
            time.sleep(0.2)

    def _leave(self, error: str, code: int) -> None:
        self._send({"kind": "leave", "error": " ".join(error.split()), "exit_code": code})

    def _send(self, message: Message) -> None:
        self._connection.send({**message, "doing": self._activity})

    def _listen(self) -> None:
        last_received, last_sent = time.monotonic(), 0.0
        while not self._all_left.is_set():
            now = time.monotonic()
            if now - last_sent > HEARTBEAT_SECONDS:
                last_sent = now
                self._send({"kind": "heartbeat"})
            if select.select([self._socket], [], [], HEARTBEAT_SECONDS)[0]:
                last_received, messages = now, self._connection.receive()
                if messages is None:
                    self._end(f"process 0 at {self._address.coordinator} died", EXIT_RESTART)
                for message in messages:
                    self._handle(message)
            elif now - last_received > self._limits.heartbeat_timeout:
                silence = f"has not been heard of for {now - last_received:.0f} s"
                self._end(f"process 0 at {self._address.coordinator} {silence}", EXIT_RESTART)

    def _handle(self, message: Message) -> None:
        if message["kind"] == "release":
            self._barriers[message["barrier"]].set()
        elif message["kind"] == "notice":
            self._print(str(message["text"]))
        elif message["kind"] == "all_left":
            self._all_left.set()
        elif message["kind"] == "end":
            self._end(str(message["reason"]), int(message["exit_code"]))

    def _end(self, reason: str, exit_code: int) -> None:
        if self._error is not None:
            traceback.print_exception(self._error)
        restart = exit_code == EXIT_RESTART
        cure = "start all again to go on from the newest checkpoint" if restart else "mend that, then start again"
        self._print(f"the run ends: {reason}; {cure}")
        if self._coordinator is not None:
            # JAX aborts the processes that still live when process 0 ends.
            self._coordinator.others_gone.wait(GRACE_SECONDS)
        os._exit(exit_code)

    def _print(self, text: str) -> None:
        # Not through sys.stderr: the main thread may hang while it holds the lock of that stream.
        os.write(2, f"process {self._address.index} of {self._address.processes}: {text}\n".encode())


Group = SingleProcess | ProcessGroup


@contextmanager
def join(
    limits: PodConfig, coordinator: str | None = None, processes: int | None = None, index: int | None = None
) -> Iterator[ProcessGroup]:
    """Joins the other processes of the run, and initializes jax.distributed; arguments as in :func:`find_address`."""
    address = find_address(coordinator, processes, index, limits.join_timeout)
    group = ProcessGroup(address, limits)
    try:
        with group.guard():
            # JAX's own limits are longer than ours, which name the missing process where JAX aborts with a stack trace.
            start, heartbeat = int(limits.join_timeout) + 1, 2 * int(limits.heartbeat_timeout) + 1
            jax.distributed.initialize(*address, initialization_timeout=start, heartbeat_timeout_seconds=heartbeat)
            yield group
    finally:
        group.close()
