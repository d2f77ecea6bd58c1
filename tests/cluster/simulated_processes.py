"""Many processes of a run, each only its connection to the coordinator: they join, meet, and one of them dies."""

import selectors
import socket
import time
from collections.abc import Sequence
from typing import NamedTuple

from lumina_jax.cluster.connection import Connection, proof
from lumina_jax.cluster.processes import JOINS_PER_SECOND


class Times(NamedTuple):
    """Readings of the clock that all processes of a machine share, in seconds: of the last of some processes."""

    hello: float
    begun: float
    released: float
    died: float
    told: float


def simulate(port: int, indices: Sequence[int], start: float, token: bytes, dies: int, rest: float = 0.0) -> Times:
    """Is the processes ``indices`` of a run that started at ``start``, of which process ``dies`` dies ``rest`` s after all met."""
    connections, sockets = {}, {}
    for index in indices:
        time.sleep(max(0.0, start + index / JOINS_PER_SECOND - time.monotonic()))
        sockets[index] = socket.create_connection(("localhost", port), timeout=60)
        connections[index] = Connection(sockets[index])
        (challenge,) = connections[index].receive()
        answer = proof(token, challenge["nonce"], index)
        connections[index].send({"kind": "hello", "index": index, "host": f"host{index}", "proof": answer})
    hello = time.monotonic()
    begun = _wait_for_all("begin", sockets, connections)
    for index in indices:
        _send(connections[index], {"kind": "barrier", "barrier": "the save", "timeout": 60, "values": {"step": "7"}})
    released = _wait_for_all("release", sockets, connections)
    pulse = 0.0
    while time.monotonic() < released + rest:
        if time.monotonic() - pulse > 8:
            pulse = time.monotonic()
            for index in indices:
                _send(connections[index], {"kind": "heartbeat"})
        time.sleep(0.05)
    died = time.monotonic()
    if dies in sockets:
        sockets.pop(dies).close()
    told = _wait_for_all("end", sockets, connections)
    for peer in sockets.values():
        peer.close()
    return Times(hello, begun, released, died, told)


def _send(connection: Connection, message: dict[str, object]) -> None:
    connection.send({**message, "doing": "step 7", "limit": 120.0, "pace": [1.0, 0.1, 0.2]})


def _wait_for_all(kind: str, sockets: dict[int, socket.socket], connections: dict[int, Connection]) -> float:
    """Waits until every connection got a message of ``kind``; when that was."""
    with selectors.DefaultSelector() as selector:
        for index, peer in sockets.items():
            selector.register(peer, selectors.EVENT_READ, index)
        missing = set(sockets)
        while missing:
            for key, _ in selector.select(60):
                messages = connections[key.data].receive()
                if messages is None or any(message["kind"] == kind for message in messages):
                    missing.discard(key.data)
                    selector.unregister(key.fileobj)
    return time.monotonic()
