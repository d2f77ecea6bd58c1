"""The coordinator of a run: process 0 tracks all processes over TCP.

When a process dies its connection closes, so all others learn at once which one it was, whatever their devices are waiting
for. JAX's own coordination service does less: it answers nobody before all processes have joined, and it reports a death by
aborting the others.
"""

import json
import selectors
import socket
import threading
import time

from lumina_jax.cluster.membership import Membership, Message
from lumina_jax.config import PodConfig
from lumina_jax.errors import StorageError

HEARTBEAT_SECONDS = 1.0
"""Between two signs of life, in either direction."""


class Coordinator:
    """Runs the :class:`Membership` of a run in a thread of process 0; every process, 0 included, connects to ``port``."""

    def __init__(self, port: int, processes: int, limits: PodConfig):
        self._membership, self._processes = Membership(processes, limits), processes
        self._selector = selectors.DefaultSelector()
        dual = socket.has_dualstack_ipv6()
        family = socket.AF_INET6 if dual else socket.AF_INET
        try:
            self._server = socket.create_server(("", port), family=family, backlog=processes, dualstack_ipv6=dual)
        except OSError as error:
            raise StorageError(
                f"port {port} cannot be opened ({error}); end the process of an earlier run that still holds it, "
                "or give another --coordinator"
            ) from error
        self._selector.register(self._server, selectors.EVENT_READ)
        self._connections: dict[socket.socket, Connection] = {}
        self._index: dict[socket.socket, int] = {}
        self.others_gone = threading.Event()
        """Set while no process but this one is connected."""
        self.others_gone.set()
        threading.Thread(target=self._serve, name="coordinator", daemon=True).start()

    def _serve(self) -> None:
        last_heartbeat = 0.0
        while True:
            for key, _ in self._selector.select(HEARTBEAT_SECONDS):
                if key.fileobj is self._server:
                    self._accept()
                else:
                    self._receive(key.fileobj)
            now = time.monotonic()
            if not self._membership.ended:
                self._broadcast(self._membership.tick(now))
            if now - last_heartbeat > HEARTBEAT_SECONDS:
                last_heartbeat = now
                self._broadcast([{"kind": "heartbeat"}])

    def _accept(self) -> None:
        client, _ = self._server.accept()
        self._connections[client] = Connection(client)
        self._selector.register(client, selectors.EVENT_READ)

    def _receive(self, client: socket.socket) -> None:
        messages = self._connections[client].receive()
        for message in messages or ():
            if client not in self._index:
                if not (message.get("kind") == "hello" and message.get("index") in range(self._processes)):
                    # A port scanner, for example: not a process of the run.
                    messages = None
                    break
                self._index[client] = message["index"]
                if message["index"] > 0:
                    self.others_gone.clear()
            if not self._membership.ended:
                self._broadcast(self._membership.receive(self._index[client], message, time.monotonic()))
        if messages is None:
            self._close(client)

    def _close(self, client: socket.socket) -> None:
        self._selector.unregister(client)
        client.close()
        del self._connections[client]
        index = self._index.pop(client, None)
        if index is not None and not self._membership.ended:
            self._broadcast(self._membership.disconnected(index))
        if set(self._index.values()) <= {0}:
            self.others_gone.set()

    def _broadcast(self, messages: list[Message]) -> None:
        """Sends to all processes; notices are printed by process 0 alone."""
        for message in messages:
            for client, index in self._index.items():
                if message["kind"] != "notice" or index == 0:
                    self._connections[client].send(message)


class Connection:
    """Messages over a socket, one line of JSON each. One thread receives; any may send."""

    def __init__(self, peer: socket.socket):
        self._socket, self._incomplete, self._lock = peer, b"", threading.Lock()

    def receive(self) -> list[Message] | None:
        """Waits for data and returns the complete messages; None when the other side is gone or sends no JSON."""
        try:
            data = self._socket.recv(1 << 16)
            *lines, self._incomplete = (self._incomplete + data).split(b"\n")
            messages = [json.loads(line) for line in lines]
        except (OSError, ValueError):
            return None
        return messages if data and all(isinstance(message, dict) for message in messages) else None

    def send(self, message: Message) -> None:
        """Sends, or does nothing when the other side is gone: :meth:`receive` reports that."""
        with self._lock:
            try:
                self._socket.sendall(json.dumps(message).encode() + b"\n")
            except OSError:
                return
