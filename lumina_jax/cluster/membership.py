"""The roll of a run's processes: who came, who waits where, who fell silent, who died, and what follows. No sockets here."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from lumina_jax.config import PodConfig

GRACE = 5.0
"""Seconds that processes have to leave by themselves once one has left with an error: often all of them meet the same one."""
NAMED = 8
"""Processes named in one line."""
RETRY, MEND = 75, 2
"""Exit codes: another start goes on from the newest checkpoint; something has to be mended first."""

Word = Mapping[str, object]
"""A line on the wire, as JSON: {"kind": ..., ...}, and from a process {"doing": ...} as well."""


@dataclass
class _Member:
    host: str
    seen: float
    since: float
    doing: str = "its start"
    left: bool = False


@dataclass
class _Point:
    """A place where all wait for all: since when, how long, and what each that came says must be equal."""

    begin: float
    limit: float
    facts: dict[int, Mapping[str, str]] = field(default_factory=dict)


class Roll:
    """What is known of ``processes`` processes, and what follows from it.

    ``hear``, ``gone`` and ``tick`` are told what happens, with a clock in seconds; they return what everyone is to be told.
    After ``ended`` nothing follows any more.
    """

    def __init__(self, processes: int, limits: PodConfig):
        self._processes, self._limits = processes, limits
        self._members: dict[int, _Member] = {}
        self._points: dict[str, _Point] = {}
        self._error: tuple[float, str] | None = None
        self._noticed = 0.0
        self.ended = False

    def hear(self, index: int, word: Word, now: float) -> list[Word]:
        """A process said something; its first word is "hello"."""
        if word["kind"] == "hello":
            if index in self._members:
                first, second = self._members[index].host, word["host"]
                return self._end(f"two processes, on {first} and on {second}, both say they are process {index}", MEND)
            self._members[index] = _Member(str(word["host"]), now, now)
            return []
        member = self._members[index]
        member.seen = now
        if word["doing"] != member.doing:
            member.doing, member.since = str(word["doing"]), now
        if word["kind"] == "reach":
            return self._reach(index, word, now)
        elif word["kind"] == "left":
            member.left = True
            if word["why"] and self._error is None:
                self._error = (now, f"{self._name(index)} ended with {word['why']}")
            if len(self._members) == self._processes and all(other.left for other in self._members.values()):
                self.ended = True
                return [{"kind": "over"}]
        return []

    def gone(self, index: int) -> list[Word]:
        """The connection of a process closed."""
        if self._members[index].left:
            return []
        return self._end(f"{self._name(index)} died; it was last at {self._members[index].doing}", RETRY)

    def tick(self, now: float) -> list[Word]:
        """Time passed."""
        if self._error and now - self._error[0] > GRACE:
            return self._end(self._error[1], MEND)
        for index, member in self._members.items():
            if not member.left and now - member.seen > self._limits.silence:
                quiet = f"{self._name(index)} has not been heard of for {now - member.seen:.0f} s"
                return self._end(f"{quiet}; it was last at {member.doing}", RETRY)
        for name, point in self._points.items():
            if now - point.begin > point.limit:
                missing = [index for index in range(self._processes) if index not in point.facts]
                who = self._list(missing, now)
                return self._end(f"{name}: waited {point.limit:.0f} s for {who}", RETRY)
        return self._watch(now)

    def _reach(self, index: int, word: Word, now: float) -> list[Word]:
        name = str(word["point"])
        point = self._points.setdefault(name, _Point(now, float(word["limit"])))
        point.facts[index] = word["facts"]
        if len(point.facts) < self._processes:
            return []
        del self._points[name]
        for other in range(1, self._processes):
            ours, theirs = point.facts[0], point.facts[other]
            for fact in sorted({*ours, *theirs}):
                if (here := ours.get(fact)) != (there := theirs.get(fact)):
                    return self._end(f"{fact} is {here} in {self._name(0)} but {there} in {self._name(other)}", MEND)
        return [{"kind": "go", "point": name}]

    def _watch(self, now: float) -> list[Word]:
        moved = max((member.since for member in self._members.values()), default=now)
        if now - moved > self._limits.patience:
            return self._end(f"nothing new for {now - moved:.0f} s: {self._where_all()}", RETRY)
        if now - max(moved, self._noticed) > self._limits.wait:
            self._noticed = now
            return [{"kind": "say", "text": f"nothing new for {now - moved:.0f} s: {self._where_all()}"}]
        return []

    def _where_all(self) -> str:
        where: dict[str, list[int]] = {}
        for index, member in sorted(self._members.items()):
            where.setdefault(member.doing, []).append(index)
        # The fewest first: it is the straggler that one looks for.
        return "; ".join(map(self._group, sorted(where.values(), key=len)))

    def _group(self, indices: list[int]) -> str:
        names = ", ".join(map(self._name, indices[:NAMED]))
        return f"{names}{_more(indices)} at {self._members[indices[0]].doing}"

    def _list(self, missing: list[int], now: float) -> str:
        return "; ".join(self._where(index, now) for index in missing[:NAMED]) + _more(missing)

    def _where(self, index: int, now: float) -> str:
        member = self._members.get(index)
        if member is None:
            return f"process {index}, which never came"
        return f"{self._name(index)}, last heard of {now - member.seen:.0f} s ago, at {member.doing} for {now - member.since:.0f} s"

    def _name(self, index: int) -> str:
        return f"process {index} on {self._members[index].host}"

    def _end(self, why: str, code: int) -> list[Word]:
        self.ended = True
        return [{"kind": "end", "why": why, "code": code}]


def _more(indices: list[int]) -> str:
    return f" and {len(indices) - NAMED} more" if len(indices) > NAMED else ""
