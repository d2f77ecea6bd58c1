"""Pickles of lists, dicts, integers and strings, read without the power to do anything else.

A pickle is a program; pickle.load runs it, and it may call any function. This reader knows only the opcodes that such values need:
it looks up no name, calls nothing and follows no persistent id. Time and memory are bounded by MAX_BYTES and MAX_STEPS.
"""

import pickle
import pickletools
import re
from collections.abc import Callable
from types import NoneType

from lumina_jax.errors import InputError

MAX_BYTES = 1 << 23
"""The largest pickle: some 700,000 tokens with their labels."""
MAX_STEPS = 20_000
"""The most opcodes that are no integers. pickle.dump writes three for each 1000 elements of a list."""
INTEGERS = re.compile(rb"(?:K.|M..|J....)++", re.DOTALL)
"""A run of BININT1, BININT2 and BININT, each with the 1, 2 or 4 bytes of its value. Tokens and labels are nothing else."""
SCALARS = frozenset({int, str, NoneType})
"""What a list may hold."""
CAUSE = "pickle of more than lists, dicts, integers and strings"
NAMING = frozenset(b"ci\x93")
"""GLOBAL, INST and STACK_GLOBAL, by which a pickle names a function or class."""


def loads(content: bytes) -> object:
    """The value of a pickle of protocol 2 to 5 whose lists hold integers, strings and None, and whose dicts hold these and lists.

    Raises InputError for whatever else it holds, naming the opcode and, where it names a function, that; for one that is damaged,
    larger than MAX_BYTES or longer than MAX_STEPS; never any other exception.
    """
    if len(content) > MAX_BYTES:
        raise InputError(
            f"a pickle of more than {MAX_BYTES:,} bytes; no sample takes so many", cause="a pickle too large"
        )
    return _Reader(content).value()


class _Reader:
    """One pass over a pickle: its stack, the places of its open marks, and its memo."""

    def __init__(self, content: bytes):
        self._content, self._at = content, 0
        self._stack: list[object] = []
        self._marks: list[int] = []
        self._memo: dict[int, object] = {}

    def value(self) -> object:
        for _ in range(MAX_STEPS):
            if run := INTEGERS.match(self._content, self._at):
                # Nothing but integers stands in the run, so nothing but a list of them can come of it.
                self._stack += pickle.loads(b"](" + run[0] + b"e.")
                self._at = run.end()
            opcode = self._take(1)[0]
            if opcode == ord("."):
                return self._result()
            if (step := STEPS.get(opcode)) is None:
                raise self._refusal(opcode)
            step(self)
        raise InputError(f"a pickle of more than {MAX_STEPS:,} opcodes that are no integers", cause="a pickle too long")

    def _result(self) -> object:
        if len(self._stack) != 1 or self._marks:
            raise self._damaged()
        if self._at != len(self._content):
            raise InputError("the pickle goes on after its end; is it several in one file?", cause="a damaged pickle")
        return self._stack[0]

    def _refusal(self, opcode: int) -> InputError:
        known = pickletools.code2op.get(chr(opcode))
        if known is None:
            return InputError(f"byte {self._at - 1} is no opcode of a pickle", cause="a damaged pickle")
        names = self._stack[-2:] if opcode == ord(b"\x93") else self._content[self._at :][:200].split(b"\n")[:2]
        what = f", which names {b'.'.join(map(_as_bytes, names))!r}" if opcode in NAMING else ""
        return InputError(
            f"byte {self._at - 1} is the opcode {known.name}{what}; only lists, dicts, integers and strings are read, and "
            "nothing of a pickle is run; save lists of Python integers (array.tolist())",
            cause=CAUSE,
        )

    def _damaged(self) -> InputError:
        return InputError(f"the pickle is damaged at byte {self._at}; copy the file again", cause="a damaged pickle")

    def _take(self, count: int) -> bytes:
        content = self._content[self._at : self._at + count]
        if len(content) < count:
            raise InputError(f"the pickle is cut short at byte {len(self._content)}", cause="a damaged pickle")
        self._at += count
        return content

    def _number(self, length: int) -> int:
        return int.from_bytes(self._take(length), "little")

    def _pop(self, count: int) -> list[object]:
        """The last ``count`` values, which lie above the last mark, with one more value below them."""
        bottom = self._marks[-1] if self._marks else 0
        if len(self._stack) - count <= bottom:
            raise self._damaged()
        values = self._stack[len(self._stack) - count :]
        del self._stack[len(self._stack) - count :]
        return values

    def _pop_mark(self) -> list[object]:
        """The values above the last mark, with one more value below it."""
        if not self._marks:
            raise self._damaged()
        start = self._marks.pop()
        if start <= (self._marks[-1] if self._marks else 0):
            raise self._damaged()
        values = self._stack[start:]
        del self._stack[start:]
        return values

    def mark(self) -> None:
        self._marks.append(len(self._stack))

    def append(self, values: list[object]) -> None:
        target = self._stack[-1]
        if type(target) is not list:
            raise self._damaged()
        if set(map(type, values)) - SCALARS:
            raise InputError("a list or dict inside a list; only flat lists are read", cause=CAUSE)
        target += values

    def set_items(self, values: list[object]) -> None:
        target, keys = self._stack[-1], values[::2]
        if type(target) is not dict or len(values) % 2 or set(map(type, keys)) - {str}:
            raise self._damaged()
        if set(map(type, values[1::2])) - SCALARS - {list}:
            raise InputError("a dict inside a dict; only one dict of flat lists is read", cause=CAUSE)
        if len(set(keys)) < len(keys) or not target.keys().isdisjoint(keys):
            raise InputError("a dict with a key twice", cause="a damaged pickle")
        target.update(zip(keys, values[1::2], strict=True))

    def text(self, length_bytes: int) -> None:
        try:
            self._stack.append(self._take(self._number(length_bytes)).decode())
        except UnicodeDecodeError as error:
            raise self._damaged() from error

    def long(self) -> None:
        self._stack.append(int.from_bytes(self._take(self._number(1)), "little", signed=True))

    def put(self, index: int) -> None:
        if len(self._stack) <= (self._marks[-1] if self._marks else 0):
            raise self._damaged()
        self._memo[index] = self._stack[-1]

    def get(self, index: int) -> None:
        if index not in self._memo:
            raise self._damaged()
        self._stack.append(self._memo[index])


STEPS: dict[int, Callable[[_Reader], object]] = {
    ord(b"\x80"): lambda reader: reader._take(1),  # PROTO
    ord(b"\x95"): lambda reader: reader._take(8),  # FRAME, which only tells how much to read at once
    ord("("): _Reader.mark,
    ord("]"): lambda reader: reader._stack.append([]),
    ord("}"): lambda reader: reader._stack.append({}),
    # An integer stands here only where INTEGERS found its value cut short.
    ord("K"): lambda reader: reader._take(1),
    ord("M"): lambda reader: reader._take(2),
    ord("J"): lambda reader: reader._take(4),
    ord("N"): lambda reader: reader._stack.append(None),
    ord(b"\x8a"): _Reader.long,
    ord(b"\x8c"): lambda reader: reader.text(1),
    ord("X"): lambda reader: reader.text(4),
    ord("a"): lambda reader: reader.append(reader._pop(1)),
    ord("e"): lambda reader: reader.append(reader._pop_mark()),
    ord("s"): lambda reader: reader.set_items(reader._pop(2)),
    ord("u"): lambda reader: reader.set_items(reader._pop_mark()),
    ord(b"\x94"): lambda reader: reader.put(len(reader._memo)),  # MEMOIZE
    ord("q"): lambda reader: reader.put(reader._number(1)),
    ord("r"): lambda reader: reader.put(reader._number(4)),
    ord("h"): lambda reader: reader.get(reader._number(1)),
    ord("j"): lambda reader: reader.get(reader._number(4)),
}
"""The opcodes that are read, by their bytes."""


def _as_bytes(name: object) -> bytes:
    return name if isinstance(name, bytes) else str(name).encode(errors="replace")[:100]
