"""Which processes of a run have joined, what each is doing, and when the run must end. Pure bookkeeping, without sockets."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from lumina_jax.cluster.pace import Pace
from lumina_jax.cluster.slices import chosen_slices, complete_slices
from lumina_jax.config import PodConfig
from lumina_jax.faults import EXIT_ERROR, EXIT_RESTART

GRACE_SECONDS = 5.0
"""How long the others may leave by themselves after one process left with an error: often all of them meet the same one."""
MAX_NAMED = 8
"""Processes named in one message; of the rest only the number is given."""

Message = Mapping[str, object]
"""What coordinator and processes send each other, as JSON: {"kind": ..., ...}; a process also sends its "doing". With "to" it is
for those processes alone, else for all."""


@dataclass
class _Member:
    """A process that has joined; times are clock readings in seconds. ``limit`` is the most seconds that ``doing`` may take."""

    host: str
    last_heard: float
    doing_since: float
    doing: str = "its start"
    limit: float = 0.0
    pace: Pace | None = None
    left: bool = False


@dataclass
class _Barrier:
    """A point where all processes wait for each other, and the ``values`` that each one brought, which must be equal."""

    start: float
    timeout: float
    values: dict[int, Mapping[str, str]] = field(default_factory=dict)


class Membership:
    """The state of a run of ``processes`` processes, which begins to wait for them at the time ``start``.

    ``receive``, ``disconnected`` and ``tick`` report an event and return the messages that processes must get; ``now`` is the
    reading of one clock in seconds. Once ``ended`` is true there are no more messages.

    The run begins when all have joined; with ``limits.elastic`` also without the slices that are missing, if their number is then
    one of ``slice_counts``. Processes that come later wait until their slices can be taken in, which barriers report.
    """

    def __init__(self, processes: int, limits: PodConfig, start: float = 0.0, slice_counts: Collection[int] = ()):
        self._processes, self._limits, self._start = processes, limits, start
        self._slice_counts = {*slice_counts, limits.slices}
        self._members: dict[int, _Member] = {}
        self._waiting: dict[int, _Member] = {}
        self._slices: tuple[int, ...] = ()
        self._barriers: dict[str, _Barrier] = {}
        self._error: tuple[float, str, int] | None = None
        self._last_notice = 0.0
        self.ended = False

    @property
    def begun(self) -> bool:
        """Whether the run has begun, so that no process can join it any more."""
        return bool(self._slices)

    def refusal(self, index: int, host: str) -> str:
        """Why a process that says it is ``index`` on ``host`` cannot even wait here; empty when it can."""
        there = self._members.get(index) or self._waiting.get(index)
        if not self.begun or there is None:
            return ""
        return (
            f"process {index} on {host} came to a run of the same name and port that goes on already with process {index} on "
            f"{there.host}; wait for its end, or end it first"
        )

    def paces(self) -> dict[str, Pace]:
        """How fast each process steps that said so, by its name."""
        return {self._name(index): member.pace for index, member in self._members.items() if member.pace is not None}

    def receive(self, index: int, message: Message, now: float) -> list[Message]:
        """Process ``index`` sent ``message``; its first one is of kind "hello"."""
        if message["kind"] == "hello":
            return self._hello(index, str(message["host"]), now)
        if index in self._waiting:
            self._waiting[index].last_heard = now
            return []
        if (member := self._members.get(index)) is None:  # one that waited in silence for too long
            return []
        member.last_heard = now
        if message["doing"] != member.doing:
            member.doing, member.doing_since = str(message["doing"]), now
        member.limit = float(message.get("limit", 0))
        if pace := message.get("pace"):
            member.pace = Pace(*pace)
        if message["kind"] == "barrier":
            return self._enter_barrier(index, message, now)
        if message["kind"] == "leave":
            return self._leave(index, message, now)
        return []

    def disconnected(self, index: int) -> list[Message]:
        """The connection of process ``index`` closed."""
        if self._waiting.pop(index, None) or index not in self._members or self._members[index].left:
            return []
        if not self.begun and self._limits.elastic:
            del self._members[index]
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
        if not self.begun:
            return self._begin_without_missing(now)
        heard = {index: now - member.last_heard for index, member in self._waiting.items()}
        self._waiting = {
            index: self._waiting[index] for index in heard if heard[index] <= self._limits.heartbeat_timeout
        }
        for name, barrier in self._barriers.items():
            if now - barrier.start > barrier.timeout:
                missing = [index for index in self._members if index not in barrier.values]
                return self._end(
                    f"{name}: waited {barrier.timeout:.0f} s for {self._last_signs(missing, now)}", EXIT_RESTART
                )
        return self._check_stall(now)

    def _hello(self, index: int, host: str, now: float) -> list[Message]:
        if index in self._members:
            hosts = f"on {self._members[index].host} and on {host}"
            reason = f"two processes, {hosts}, both say they are process {index}; give each its own --process"
            return self._end(reason, EXIT_ERROR)
        if self.begun:
            self._waiting[index] = _Member(host, now, now)
            return [{"kind": "wait", "to": [index], "slices": list(self._slices)}]
        self._members[index] = _Member(host, now, now)
        return self._begin(range(self._limits.slices)) if len(self._members) == self._processes else []

    def _begin_without_missing(self, now: float) -> list[Message]:
        """Begins with the slices that are complete where that may be, or ends when nobody has come for too long."""
        waited = now - self._start
        if self._limits.elastic and waited > self._limits.elastic_wait:
            complete = complete_slices(self._members, self._processes, self._limits.slices)
            if chosen := chosen_slices(complete, self._slice_counts):
                return self._begin(chosen)
        if waited > self._limits.join_timeout:
            missing = [index for index in range(self._processes) if index not in self._members]
            return self._end(
                f"joining: waited {self._limits.join_timeout:.0f} s for {self._last_signs(missing, now)}", EXIT_RESTART
            )
        return []

    def _begin(self, slices: Collection[int]) -> list[Message]:
        self._slices, size = tuple(slices), self._processes // self._limits.slices
        run = [index for index in sorted(self._members) if index // size in self._slices]
        others = [index for index in self._members if index not in run]
        self._waiting |= {index: self._members.pop(index) for index in others}
        messages = [{"kind": "begin", "to": run, "slices": list(self._slices)}]
        return messages + [{"kind": "wait", "to": others, "slices": list(self._slices)}] * bool(others)

    def _enter_barrier(self, index: int, message: Message, now: float) -> list[Message]:
        name = str(message["barrier"])
        barrier = self._barriers.setdefault(name, _Barrier(now, float(message["timeout"])))
        barrier.values[index] = message["values"]
        first_index = min(self._members)
        if len(barrier.values) < len(self._members):
            return []
        del self._barriers[name]
        first = barrier.values[first_index]
        for other in sorted(self._members):
            values = barrier.values[other]
            for key in sorted({*first, *values}) if values != first else ():
                if (value := first.get(key)) != (other_value := values.get(key)):
                    difference = f"{value} in {self._name(first_index)} but {other_value} in {self._name(other)}"
                    return self._end(f"{key} is {difference}", EXIT_ERROR)
        return [{"kind": "release", "to": list(self._members), "barrier": name, "returned": self._returned()}]

    def _returned(self) -> list[int]:
        """The slices that a new start would take in; empty when there are none."""
        here = {*self._members, *self._waiting}
        slices = chosen_slices(complete_slices(here, self._processes, self._limits.slices), self._slice_counts)
        return [number for number in slices if number not in self._slices] if len(slices) > len(self._slices) else []

    def _leave(self, index: int, message: Message, now: float) -> list[Message]:
        member, code = self._members[index], int(message["exit_code"])
        member.left = True
        if message["error"] and self._error is None:
            self._error = (now, f"{self._name(index)} ended with {message['error']}", code)
        if not (self.begun and all(other.left for other in self._members.values())):
            return []
        self.ended = True
        reason = "the run of the other slices ended" if code == 0 else "the other slices left, to start anew or to stop"
        end = {"kind": "end", "to": list(self._waiting), "reason": reason, "exit_code": code}
        return [{"kind": "all_left", "to": list(self._members)}, *[end] * bool(self._waiting)]

    def _check_stall(self, now: float) -> list[Message]:
        members = [member for member in self._members.values() if not member.left]
        last_change = max((member.doing_since for member in members), default=now)
        # While one still compiles, the others may wait for it.
        limit = max(
            (member.limit or self._limits.stall_timeout for member in members), default=self._limits.stall_timeout
        )
        text = f"nothing new for {now - last_change:.0f} s: {self._describe_all()}"
        if now - last_change > limit:
            return self._end(text, EXIT_RESTART)
        if now - max(last_change, self._last_notice) > min(self._limits.join_timeout, limit / 2):
            self._last_notice = now
            return [{"kind": "notice", "to": [min(self._members)], "text": text}]
        return []

    def _describe_all(self) -> str:
        by_doing: dict[str, list[str]] = {}
        for index, member in sorted(self._members.items()):
            by_doing.setdefault(member.doing, []).append(self._name(index))
        # The smallest group first: it is the straggler that a reader looks for.
        groups = sorted(by_doing.items(), key=lambda group: len(group[1]))
        return "; ".join(f"{_listed(names, ', ')} at {doing}" for doing, names in groups)

    def _last_signs(self, indices: list[int], now: float) -> str:
        return _listed([self._last_sign(index, now) for index in indices], "; ")

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
