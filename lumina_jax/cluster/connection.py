"""Messages between coordinator and processes over TCP, and the token by which both know that they belong to one run."""

import hashlib
import hmac
import json
import os
import socket
import threading
from contextlib import suppress

from lumina_jax.cluster.membership import GRACE_SECONDS, Message
from lumina_jax.open_files import allow_open_files

TOKEN_VARIABLE = "LUMINA_RUN_TOKEN"
"""The environment variable of a secret that all processes of a run share. Without it the run's name is the token: other runs
are kept out, but nobody who wants to come in."""
LONGEST_LINE = 1 << 22
"""Bytes of one message; a longer one is not of this protocol."""


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
        if not data or len(self._incomplete) > LONGEST_LINE:
            return None
        return messages if all(isinstance(message, dict) for message in messages) else None

    def send(self, message: Message) -> None:
        """:meth:`send_line` of one message."""
        self.send_line(encoded(message))

    def send_line(self, line: bytes) -> None:
        """Sends, or closes the connection when the other side is gone or takes nothing any more: :meth:`receive` reports that."""
        with self._lock:
            try:
                self._socket.sendall(line)
            except OSError:
                with suppress(OSError):
                    self._socket.shutdown(socket.SHUT_RDWR)


def encoded(message: Message) -> bytes:
    """A message as one line of JSON."""
    return json.dumps(message).encode() + b"\n"


def patient(peer: socket.socket) -> socket.socket:
    """``peer`` with small packets sent at once, and sends that fail when the other side takes nothing for GRACE_SECONDS."""
    peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    peer.settimeout(GRACE_SECONDS)
    return peer


def run_token(name: str) -> bytes:
    """The token of this process: TOKEN_VARIABLE of the environment, else ``name``."""
    return os.environ.get(TOKEN_VARIABLE, name).encode()


def proof(token: bytes, nonce: str, index: int) -> str:
    """What process ``index`` answers to the coordinator's ``nonce``; the token itself never travels."""
    return hmac.new(token, f"{nonce} {index}".encode(), hashlib.sha256).hexdigest()


def allow_connections(count: int) -> None:
    """Lets this process hold ``count`` connections; StorageError when its hard limit of open files is lower."""
    what = f"process 0 holds a connection to each of {count} processes"
    allow_open_files(count, what, "raise the hard limit (ulimit -Hn) on its host")
