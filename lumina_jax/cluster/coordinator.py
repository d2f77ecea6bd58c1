"""The coordinator of a run: one process tracks all processes over TCP.

JAX has a coordination service too, which every run starts beside this one. It was measured (jax 0.10.2; three processes, and
``python tests/bench/coordination.py``) whether it could do this work:

- Its barriers have time limits and name the missing by number; a key-value store could hold what each process does. But nobody
  can ask it anything before all processes have joined (a key that is set earlier aborts the process), so it cannot say who is
  missing at the start, or begin without a slice.
- It learns of a death by missed heartbeats alone: after 10.6 s with a limit of 10 s, where a connection that closes tells all
  others in 0.25 s. So short a limit would end runs for every process that pauses.
- It then aborts the others (exit code 134, a stack trace). The callback that would replace this takes no Python function:
  calling it throws std::bad_cast and aborts as well. With ``jax_enable_recoverability`` nothing is aborted, but a collective
  that waits for the dead process hangs on, so that ``live_devices`` never came back in the others.
- Its port asks for no token (since 0.11.2: certificates).

So of ours remain: joining, deaths that are known at once, what each process does and for how long, ends with a reason and an
exit code, and the token. Barriers go with them, because only here the missing are named with host and work. What all processes
read but for that (values that one of them shares) goes through JAX: lumina_jax/cluster/agreement.py.
"""

import hmac
import secrets
import selectors
import socket
import threading
import time
import traceback
from collections.abc import Collection

from lumina_jax.cluster.connection import Connection, allow_connections, encoded, patient, proof
from lumina_jax.cluster.membership import Membership, Message
from lumina_jax.cluster.pace import Pace
from lumina_jax.config import PodConfig
from lumina_jax.errors import StorageError
from lumina_jax.faults import EXIT_ERROR, EXIT_RESTART

HEARTBEAT_SECONDS = 1.0
"""Between two signs of life, in either direction, up to HEARTBEATS processes."""
HEARTBEATS = 512
"""The most signs of life that one coordinator takes in a second; of more processes each sends fewer."""
MAX_BACKLOG = 4096
"""Connections that may wait to be accepted."""


def heartbeat_seconds(processes: int, limits: PodConfig) -> float:
    """Between two signs of life of a process; at least four come before it counts as silent."""
    return min(HEARTBEAT_SECONDS * max(1.0, processes / HEARTBEATS), limits.heartbeat_timeout / 4)


class Coordinator:
    """Runs the :class:`Membership` of a run in a thread of one process; every process, this one included, connects to ``port``.

    ``token`` is what processes must know to be heard; ``own`` is the number of the process that it runs in. Raises StorageError
    when the port, or as many files as there are processes, cannot be opened.
    """

    def __init__(
        self,
        port: int,
        processes: int,
        limits: PodConfig,
        token: bytes,
        slice_counts: Collection[int] = (),
        own: int = 0,
    ):
        allow_connections(processes)
        self._membership = Membership(processes, limits, time.monotonic(), slice_counts)
        self._processes, self._token, self._own = processes, token, own
        self._heartbeat_seconds = heartbeat_seconds(processes, limits)
        self._selector = selectors.DefaultSelector()
        dual = socket.has_dualstack_ipv6()
        family = socket.AF_INET6 if dual else socket.AF_INET
        backlog = min(processes, MAX_BACKLOG)
        try:
            self._server = socket.create_server(("", port), family=family, backlog=backlog, dualstack_ipv6=dual)
        except OSError as error:
            raise StorageError(
                f"port {port} cannot be opened ({error}); end the process of an earlier run that still holds it, "
                "or give another --coordinator"
            ) from error
        self._server.settimeout(HEARTBEAT_SECONDS)
        self._selector.register(self._server, selectors.EVENT_READ)
        self._connections: dict[socket.socket, Connection] = {}
        self._nonces: dict[socket.socket, str] = {}
        self._index: dict[socket.socket, int] = {}
        self._clients: dict[int, socket.socket] = {}
        self.others_gone = threading.Event()
        """Set while no process but one is connected."""
        self.others_gone.set()
        threading.Thread(target=self._serve, name="coordinator", daemon=True).start()

    def paces(self) -> dict[str, Pace]:
        """How fast each process steps that said so, by its name."""
        return self._membership.paces()

    def _serve(self) -> None:
        try:
            self._serve_until_it_fails()
        except Exception as error:
            # Without a word the others would wait for this thread until their heartbeats time out.
            traceback.print_exception(error)
            self._membership.ended = True
            reason = f"the coordinator failed with {type(error).__name__}: {error}; its traceback stands in the log of process 0"
            self._send([{"kind": "end", "reason": reason, "exit_code": EXIT_RESTART}])

    def _serve_until_it_fails(self) -> None:
        last_heartbeat = last_tick = 0.0
        while True:
            for key, _ in self._selector.select(HEARTBEAT_SECONDS):
                if key.fileobj is self._server:
                    self._accept()
                else:
                    self._receive(key.fileobj)
            now = time.monotonic()
            if not self._membership.ended and now - last_tick > HEARTBEAT_SECONDS / 4:
                last_tick = now
                self._send(self._membership.tick(now))
            if now - last_heartbeat > self._heartbeat_seconds:
                last_heartbeat = now
                self._send([{"kind": "heartbeat"}])

    def _accept(self) -> None:
        try:
            client = patient(self._server.accept()[0])
        except OSError:  # gone again, or no file is free for a stranger
            return
        self._connections[client], self._nonces[client] = Connection(client), secrets.token_hex(16)
        self._selector.register(client, selectors.EVENT_READ)
        self._connections[client].send({"kind": "challenge", "nonce": self._nonces[client]})

    def _receive(self, client: socket.socket) -> None:
        if client not in self._connections:  # closed while others were served
            return
        messages = self._connections[client].receive()
        for message in messages or ():
            if client not in self._index and not self._admit(client, message):
                messages = None
                break
            if not self._membership.ended:
                self._send(self._membership.receive(self._index[client], message, time.monotonic()))
        if messages is None:
            self._close(client)

    def _admit(self, client: socket.socket, message: Message) -> bool:
        """Whether a connection whose first message is ``message`` is one of the run; tells a process of another one why not."""
        index = message.get("index")
        if self._membership.ended:
            return False
        if message.get("kind") != "hello" or not isinstance(index, int) or index not in range(self._processes):
            return False  # a port scanner, for example
        if not hmac.compare_digest(str(message.get("proof", "")), proof(self._token, self._nonces[client], index)):
            reason, code = (
                "the run at this port has another name or LUMINA_RUN_TOKEN; give another --coordinator",
                EXIT_ERROR,
            )
        elif reason := self._membership.refusal(index, str(message.get("host"))):
            code = EXIT_RESTART
        else:
            self._index[client] = index
            self._clients.setdefault(index, client)
            if len(self._clients) > 1:
                self.others_gone.clear()
            return True
        self._connections[client].send({"kind": "end", "reason": reason, "exit_code": code})
        return False

    def _close(self, client: socket.socket) -> None:
        self._selector.unregister(client)
        client.close()
        del self._connections[client], self._nonces[client]
        index = self._index.pop(client, None)
        if index is not None and self._clients.get(index) is client:
            del self._clients[index]
            if not self._membership.ended:
                self._send(self._membership.disconnected(index))
        if len(self._clients) <= 1:
            self.others_gone.set()

    def _send(self, messages: list[Message]) -> None:
        """Sends each message to the processes that it is for, or to all; to its own last, which may end by it."""
        for message in messages:
            line = encoded(message)
            chosen = map(self._clients.get, message["to"]) if "to" in message else self._index
            there = filter(self._connections.__contains__, chosen)
            for client in sorted(there, key=lambda client: self._index.get(client) == self._own):
                self._connections[client].send_line(line)
