"""Patterns of file names: the braces of a shell, and ``*?[`` below folders whose names are no patterns."""

import glob
import itertools
import math
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeAlias

from lumina_jax.errors import InputError

MAX_WORDS = 1_000_000
"""The most words that the braces of a pattern may stand for."""
MAX_DEPTH = 50
"""The most braces within braces."""
NUMBERS = re.compile(r"(-?\d{1,1000})\.\.(-?\d{1,1000})(?:\.\.(-?\d{1,1000}))?", re.ASCII)
LETTERS = re.compile(r"([a-z])\.\.([a-z])|([A-Z])\.\.([A-Z])", re.ASCII)
TOKEN = re.compile(r"\[[{},]\]|[{},]")
"""A letter of the syntax of braces, or one that stands for itself."""


def expand_braces(pattern: str) -> list[str]:
    """The words of ``{a,b}``, ``{008..011}``, ``{3..1}``, ``{0..100..10}`` and ``{a..e}``, in the order written, as a shell does.

    Braces without a comma or a range, or without their other half, are letters, and so is ``[{]``. Raises InputError when there
    are too many words, before they take any memory.
    """
    parts = _parse(pattern)
    if _count(parts) > MAX_WORDS:
        raise InputError(
            f"the braces of {pattern[:200]} stand for more than {MAX_WORDS:,} files; shorten the range",
            cause="too many files in braces",
        )
    return _words(parts)


def glob_local(head: str, pattern: str) -> list[str]:
    """The files of ``pattern`` below the folder ``head`` (empty, or with a slash at its end), sorted.

    A name of the pattern that exists as it stands is that name. ``**`` is any number of folders; names that begin with a point
    match no ``*``.
    """
    *folders, last = pattern.split("/")
    found = [head]
    for name in folders:
        found = [below for folder in found for below in _folders(folder, name)]
    return sorted({path for folder in found for path in _files(folder, last)})


def _folders(folder: str, name: str) -> Iterator[str]:
    if name == "**":
        yield from _tree(folder, ())
    else:
        yield from (f"{path}/" for path in _matches(folder, name) if os.path.isdir(path))


def _files(folder: str, name: str) -> Iterator[str]:
    # A link that leads nowhere is a file, so that its reader can say so.
    folders, name = (_tree(folder, ()), "*") if name == "**" else ([folder], name)
    yield from (path for below in folders for path in _matches(below, name) if not os.path.isdir(path))


def _matches(folder: str, name: str) -> list[str]:
    if os.path.lexists(folder + name):
        return [folder + name]
    return glob.glob(glob.escape(folder) + name) if glob.has_magic(name) else []


def _tree(folder: str, above: tuple[tuple[int, int], ...]) -> Iterator[str]:
    """``folder`` and the folders below it, linked ones too, but not one that it lies in."""
    status = os.stat(folder or ".")
    identity = status.st_dev, status.st_ino
    if identity in above:
        return
    yield folder
    with os.scandir(folder or ".") as entries:
        names = [entry.name for entry in entries if entry.is_dir() and not entry.name.startswith(".")]
    for name in names:
        yield from _tree(f"{folder}{name}/", (*above, identity))


@dataclass(frozen=True)
class _Range:
    """``{first..last..step}`` of numbers with at least ``width`` letters, or of letters."""

    first: int
    last: int
    step: int = 1
    width: int = 0
    letters: bool = False

    @property
    def count(self) -> int:
        return abs(self.last - self.first) // self.step + 1

    def words(self) -> list[str]:
        sign = 1 if self.first <= self.last else -1
        numbers = range(self.first, self.last + sign, sign * self.step)
        return [chr(number) if self.letters else f"{number:0{self.width}d}" for number in numbers]


Part: TypeAlias = "str | _Range | list[list[Part]]"
"""A text, a range, or the patterns that braces choose from."""


def _parse(pattern: str, depth: int = 0) -> list[Part]:
    if depth > MAX_DEPTH:
        raise InputError(f"{pattern[:200]} lies within more than {MAX_DEPTH} braces; write it with fewer")
    parts: list[Part] = []
    start, pairs = 0, _pairs(pattern)
    for opening, (closing, commas) in pairs.items():
        if opening < start:
            continue
        parts.append(pattern[start:opening])
        start, inner = closing + 1, pattern[opening + 1 : closing]
        if commas:
            edges = [opening, *commas, closing]
            parts.append([_parse(pattern[a + 1 : b], depth + 1) for a, b in itertools.pairwise(edges)])
        elif span := _range(inner):
            parts.append(span)
        else:
            parts += ["{", *_parse(inner, depth + 1), "}"]
    return [*parts, pattern[start:]]


def _pairs(pattern: str) -> dict[int, tuple[int, list[int]]]:
    """The place of each brace that is closed -> the place of the other, and of the commas between them, from left to right."""
    pairs, open_braces = {}, []
    for token in TOKEN.finditer(pattern):
        if token[0] == "{":
            open_braces.append((token.start(), []))
        elif token[0] == "," and open_braces:
            open_braces[-1][1].append(token.start())
        elif token[0] == "}" and open_braces:
            opening, commas = open_braces.pop()
            pairs[opening] = token.start(), commas
    return dict(sorted(pairs.items()))


def _range(text: str) -> _Range | None:
    if match := NUMBERS.fullmatch(text):
        padded = any(re.match("-?0.", number) for number in match.groups()[:2])
        width = max(map(len, match.groups()[:2])) if padded else 0
        return _Range(int(match[1]), int(match[2]), abs(int(match[3] or 1)) or 1, width)
    if match := LETTERS.fullmatch(text):
        first, last = filter(None, match.groups())
        return _Range(ord(first), ord(last), letters=True)
    return None


def _count(parts: list[Part]) -> int:
    return math.prod(
        part.count if isinstance(part, _Range) else sum(map(_count, part))
        for part in parts
        if not isinstance(part, str)
    )


def _words(parts: list[Part]) -> list[str]:
    words = [""]
    for part in parts:
        if isinstance(part, str):
            options = [part]
        else:
            options = part.words() if isinstance(part, _Range) else [word for option in part for word in _words(option)]
        words = [word + option for word in words for option in options]
    return words
