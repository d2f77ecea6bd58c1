"""Where process 0 keeps the roll of the run, and the lines over TCP that lead there.

A process that dies closes its line, so that all others hear of it at once and by name, whatever their devices are waiting
for. JAX's own service would be of less use: before everyone has come it answers nobody, and what it knows of the dead it says
by aborting the living.
"""

import json
import selectors
import socket
import threading
import time

from lumina_jax.cluster.membership import Roll, Word
from lumina_jax.config import PodConfig
from lumina_jax.errors import StorageError

PULSE = 1.0
"""Seconds between two signs of life."""


class Desk:
    """Keeps the roll in a thread of process 0, for all processes, its own among them, that connect to ``port``."""

    def __init__(self, port: int, processes: int, limits: PodConfig):
        self._roll, self._processes = Roll(processes, limits), processes
        self._selector = selectors.DefaultSelector()
        dual = socket.has_dualstack_ipv6()
        family = socket.AF_INET6 if dual else socket.AF_INET
        try:
            self._door = socket.create_server(("", port), family=family, backlog=processes, dualstack_ipv6=dual)
        except OSError as error:
            raise StorageError(
                f"port {port} cannot be opened ({error}); end the process of an earlier run that still holds it, "
                "or give another --coordinator"
            ) from error
        self._selector.register(self._door, selectors.EVENT_READ)
        self._lines: dict[socket.socket, Lines] = {}
        self._index: dict[socket.socket, int] = {}
        self.alone = threading.Event()
        """Set while no other process is connected."""
        self.alone.set()
        threading.Thread(target=self._serve, name="roll", daemon=True).start()

    def _serve(self) -> None:
        beat = 0.0
        while True:
            for key, _ in self._selector.select(PULSE):
                if key.fileobj is self._door:
                    self._welcome()
                else:
                    self._read(key.fileobj)
            now = time.monotonic()
            if not self._roll.ended:
                self._tell(self._roll.tick(now))
            if now - beat > PULSE:
                beat = now
                self._tell([{"kind": "beat"}])

    def _welcome(self) -> None:
        line, _ = self._door.accept()
        self._lines[line] = Lines(line)
        self._selector.register(line, selectors.EVENT_READ)

    def _read(self, line: socket.socket) -> None:
        words = self._lines[line].read()
        for word in words or ():
            if line not in self._index:
                if not (word.get("kind") == "hello" and word.get("index") in range(self._processes)):
                    # Whoever looks through the open ports of a network is no process of the run.
                    words = None
                    break
                self._index[line] = word["index"]
                if word["index"] > 0:
                    self.alone.clear()
            if not self._roll.ended:
                self._tell(self._roll.hear(self._index[line], word, time.monotonic()))
        if words is None:
            self._close(line)

    def _close(self, line: socket.socket) -> None:
        self._selector.unregister(line)
        line.close()
        del self._lines[line]
        index = self._index.pop(line, None)
        if index is not None and not self._roll.ended:
            self._tell(self._roll.gone(index))
        if set(self._index.values()) <= {0}:
            self.alone.set()

    def _tell(self, words: list[Word]) -> None:
        for word in words:
            for line, index in self._index.items():
                if word["kind"] != "say" or index == 0:
                    self._lines[line].send(word)


class Lines:
    """JSON lines over a socket. One thread reads; any may send."""

    def __init__(self, line: socket.socket):
        self._line, self._rest, self._lock = line, b"", threading.Lock()

    def read(self) -> list[Word] | None:
        """What has come, waiting for something; None when the other side is gone or speaks no JSON."""
        try:
            data = self._line.recv(1 << 16)
            *whole, self._rest = (self._rest + data).split(b"\n")
            words = [json.loads(text) for text in whole]
        except (OSError, ValueError):
            return None
        return words if data and all(isinstance(word, dict) for word in words) else None

    def send(self, word: Word) -> None:
        """Sends, or does nothing when the other side is gone: that is for the reader to notice."""
        with self._lock:
            try:
                self._line.sendall(json.dumps(word).encode() + b"\n")
            except OSError:
                return
