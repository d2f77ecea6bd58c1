"""When a chip computes and when it waits for its collectives, from the order in which its program runs them.

A compiled program is scheduled: its instructions run one after another. An asynchronous collective runs beside those between its
start and its done, and what is left of it then is waited for. All asynchronous collectives of a chip share its links, so they
queue; only permutes over different links do not meet. A blocking one gets half of the links while others move.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from lumina_jax.pods.links import EVERY_LINK

BETWEEN_SLICES = frozenset({"the network between slices"})
"""What transfers between slices keep busy; all others keep inter-chip links busy."""


@dataclass(frozen=True)
class Event:
    """One step of a schedule: "run" computes for ``seconds``, "block" is a transfer that is waited for at once, "start" queues
    one, "done" waits for all that started with one of its ``handles``.

    ``key`` names the transfer in the result of :func:`waits`.
    """

    action: str
    key: int = 0
    seconds: float = 0.0
    busy: frozenset = frozenset()
    handles: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Loop:
    """Events that run ``trips`` times."""

    trips: int
    events: tuple["Event | Loop", ...]


@dataclass(eq=False)
class _Transfer:
    event: Event
    begin: float
    end: float


def _meet(one: Event, other: Event) -> bool:
    """Whether two transfers need the same links."""
    if BETWEEN_SLICES in (one.busy, other.busy) or EVERY_LINK not in (one.busy, other.busy):
        return bool(one.busy & other.busy)
    return True


def waits(events: Sequence[Event | Loop]) -> tuple[float, Counter[int]]:
    """(seconds, key -> seconds that the chip waits for this transfer) of a schedule; keys that are never waited for are absent.

    Of a loop two trips are walked, and those after them are taken to be like the second. A wait counts for the transfer that
    moves meanwhile, which may be one queued before that which is waited for.
    """
    clock = _Clock()
    clock.run(events)
    for transfers in list(clock.pending.values()):
        clock.wait(transfers)
    return clock.now, clock.waited


class _Clock:
    def __init__(self) -> None:
        self.now = 0.0
        self.waited: Counter[int] = Counter()
        self.pending: dict[str, list[_Transfer]] = {}
        self._queued: list[_Transfer] = []

    def run(self, events: Sequence[Event | Loop]) -> None:
        for event in events:
            if isinstance(event, Loop):
                self._loop(event)
            elif event.action == "run":
                self.now += event.seconds
            elif event.action == "block":
                self._block(event)
            elif event.action == "start":
                for handle in event.handles:
                    self.pending.setdefault(handle, []).append(self._queue(event))
            else:
                for handle in event.handles & {*self.pending}:
                    self.wait(self.pending.pop(handle))

    def _queue(self, event: Event) -> _Transfer:
        self._queued = [transfer for transfer in self._queued if transfer.end > self.now]
        begin = max([self.now, *(other.end for other in self._queued if _meet(other.event, event))])
        transfer = _Transfer(event, begin, begin + event.seconds)
        self._queued.append(transfer)
        return transfer

    def wait(self, transfers: list[_Transfer]) -> None:
        """Advances to the end of ``transfers``, and counts the time for those that move meanwhile."""
        for transfer in sorted(transfers, key=lambda transfer: transfer.end):
            self._advance(transfer.end, [other for other in self._queued if _meet(other.event, transfer.event)])

    def _advance(self, end: float, moving: list[_Transfer]) -> None:
        for transfer in sorted(moving, key=lambda transfer: transfer.end):
            if until := max(0.0, min(transfer.end, end) - self.now):
                self.waited[transfer.event.key] += until
                self.now += until

    def _block(self, event: Event) -> None:
        """A transfer of the TensorCore shares its links with those in progress, half and half, and so delays them."""
        moving = [other for other in self._queued if other.end > self.now and _meet(other.event, event)]
        busy = max((other.end for other in moving), default=self.now) - self.now
        self._advance(self.now + min(busy, event.seconds), moving)
        for other in moving:
            other.begin += event.seconds * (other.begin > self.now)
            other.end += event.seconds * (other.end > self.now)
        self.waited[event.key] += event.seconds
        self.now += event.seconds

    def _loop(self, loop: Loop) -> None:
        if loop.trips:
            self.run(loop.events)
        if loop.trips < 2:
            return
        start, waited = self.now, self.waited.copy()
        self.run(loop.events)
        rest, trip = loop.trips - 2, self.now - start
        for key, seconds in self.waited.items():
            self.waited[key] += rest * (seconds - waited[key])
        self.now += rest * trip
        for transfer in self._queued:
            transfer.begin += rest * trip
            transfer.end += rest * trip
