"""Which processes of a run have joined, what each is doing, and when the run must end. Pure bookkeeping, without sockets."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from lumina_jax.config import PodConfig
from lumina_jax.faults import EXIT_ERROR, EXIT_RESTART

GRACE_SECONDS = 5.0
"""How long the others may leave by themselves after one process left with an error: often all of them meet the same one."""
MAX_NAMED = 8
"""Processes named in one message; of the rest only the number is given."""

Message = Mapping[str, object]
"""What coordinator and processes send each other, as JSON: {"kind": ..., ...}; a process also sends its "doing"."""


@dataclass
class _Member:
    """A process that has joined; times are clock readings in seconds."""

    host: str
    last_heard: float
    doing_since: float
    doing: str = "its start"
    left: bool = False


@dataclass
class _Barrier:
    """A point where all processes wait for each other, and the ``values`` that each one brought, which must be equal."""

    start: float
    timeout: float
    values: dict[int, Mapping[str, str]] = field(default_factory=dict)


class Membership:
    """The state of a run of ``processes`` processes.

    ``receive``, ``disconnected`` and ``tick`` report an event and return the messages that all processes must get; ``now`` is the
    reading of one clock in seconds. Once ``ended`` is true there are no more messages.
    """

    def __init__(self, processes: int, limits: PodConfig):
        self._processes, self._limits = processes, limits
        self._members: dict[int, _Member] = {}
        self._barriers: dict[str, _Barrier] = {}
        self._error: tuple[float, str, int] | None = None
        self._last_notice = 0.0
        self.ended = False

    def receive(self, index: int, message: Message, now: float) -> list[Message]:
        """Process ``index`` sent ``message``; its first one is of kind "hello"."""
        if message["kind"] == "hello":
            if index in self._members:
                hosts = f"on {self._members[index].host} and on {message['host']}"
                return self._end(f"two processes, {hosts}, both say they are process {index}", EXIT_ERROR)
            self._members[index] = _Member(str(message["host"]), now, now)
            return []
        member = self._members[index]
        member.last_heard = now
        if message["doing"] != member.doing:
            member.doing, member.doing_since = str(message["doing"]), now
        if message["kind"] == "barrier":
            return self._enter_barrier(index, message, now)
        if message["kind"] == "leave":
            member.left = True
            if message["error"] and self._error is None:
                self._error = (now, f"{self._name(index)} ended with {message['error']}", int(message["exit_code"]))
            if len(self._members) == self._processes and all(other.left for other in self._members.values()):
                self.ended = True
                return [{"kind": "all_left"}]
        return []

    def disconnected(self, index: int) -> list[Message]:
        """The connection of process ``index`` closed."""
        if self._members[index].left:
            return []
        return self._end(f"{self._name(index)} died; it was last at {self._members[index].doing}", EXIT_RESTART)

    def tick(self, now: float) -> list[Message]:
        """Time has passed: checks every time limit."""
        if self._error and now - self._error[0] > GRACE_SECONDS:
            return self._end(*self._error[1:])
        for index, member in self._members.items():
            silence = now - member.last_heard
            if not member.left and silence > self._limits.heartbeat_timeout:
                silent = f"{self._name(index)} has not been heard of for {silence:.0f} s"
                return self._end(f"{silent}; it was last at {member.doing}", EXIT_RESTART)
        for name, barrier in self._barriers.items():
            if now - barrier.start > barrier.timeout:
                missing = [index for index in range(self._processes) if index not in barrier.values]
                names = _listed([self._last_sign(index, now) for index in missing], "; ")
                return self._end(f"{name}: waited {barrier.timeout:.0f} s for {names}", EXIT_RESTART)
        return self._check_stall(now)

    def _enter_barrier(self, index: int, message: Message, now: float) -> list[Message]:
        name = str(message["barrier"])
        barrier = self._barriers.setdefault(name, _Barrier(now, float(message["timeout"])))
        barrier.values[index] = message["values"]
        if len(barrier.values) < self._processes:
            return []
        del self._barriers[name]
        first = barrier.values[0]
        for other in range(1, self._processes):
            values = barrier.values[other]
            for key in sorted({*first, *values}):
                if (value := first.get(key)) != (other_value := values.get(key)):
                    difference = f"{value} in {self._name(0)} but {other_value} in {self._name(other)}"
                    return self._end(f"{key} is {difference}", EXIT_ERROR)
        return [{"kind": "release", "barrier": name}]

    def _check_stall(self, now: float) -> list[Message]:
        last_change = max((member.doing_since for member in self._members.values()), default=now)
        text = f"nothing new for {now - last_change:.0f} s: {self._describe_all()}"
        if now - last_change > self._limits.stall_timeout:
            return self._end(text, EXIT_RESTART)
        if now - max(last_change, self._last_notice) > self._limits.join_timeout:
            self._last_notice = now
            return [{"kind": "notice", "text": text}]
        return []

    def _describe_all(self) -> str:
        by_doing: dict[str, list[str]] = {}
        for index, member in sorted(self._members.items()):
            by_doing.setdefault(member.doing, []).append(self._name(index))
        # The smallest group first: it is the straggler that a reader looks for.
        groups = sorted(by_doing.items(), key=lambda group: len(group[1]))
        return "; ".join(f"{_listed(names, ', ')} at {doing}" for doing, names in groups)

    def _last_sign(self, index: int, now: float) -> str:
        member = self._members.get(index)
        if member is None:
            return f"process {index}, which never came"
        heard = f"last heard of {now - member.last_heard:.0f} s ago"
        return f"{self._name(index)}, {heard}, at {member.doing} for {now - member.doing_since:.0f} s"

    def _name(self, index: int) -> str:
        return f"process {index} on {self._members[index].host}"

    def _end(self, reason: str, exit_code: int) -> list[Message]:
        self.ended = True
        return [{"kind": "end", "reason": reason, "exit_code": exit_code}]


def _listed(names: list[str], separator: str) -> str:
    more = f" and {len(names) - MAX_NAMED} more" if len(names) > MAX_NAMED else ""
    return separator.join(names[:MAX_NAMED]) + more
