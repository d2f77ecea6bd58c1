"""The frame of the corpus of records: seeded captions and dialogues, the right answer for each, and the check against a source."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from data_parts import noise

from lumina_jax.data.sources import Source
from lumina_jax.errors import UserError

SEED = 15
PICTURE = (12, 8)
"""The (width, height) in px of every picture: data_parts.noise of its seed."""
PIECES = (
    *("a dog", "ein Hündchen", "一只狗", "كلب", "🎉👩‍👩‍👧", "on the left", "e\u0301tude", "naïve", "5", "x" * 300),
    *(
        "said “no”",
        'said "no"',
        "it's",
        "a, b; c",
        "a\u2028b",
        "a\x85b",
        "a\x0cb",
        "a\x1cb",
        "tab\\t",
        "\\",
        "\\\\n",
        "\ufeff",
    ),
    *(
        "<|image|>",
        "<image>",
        "<eoss>",
        "[red]x[/red]",
        "[/]",
        "{a}",
        "%s",
        "#1",
        "a@b",
        "C:\\dir",
        "<b>bold</b>",
        "&amp;",
        "--x",
    ),
)
"""What captions are made of: scripts, quotes, separators of Unicode, names of tokens, and letters that are syntax elsewhere."""


@dataclass(frozen=True)
class Kept:
    """A record that is read: its caption or its turns, and the seeds of its pictures."""

    caption: str | None = None
    turns: tuple[tuple[str, str | None], ...] = ()
    pictures: tuple[int, ...] = ()


@dataclass(frozen=True)
class Rejected:
    """A record that is refused for a reason that matches a pattern."""

    reason: str


Answer = Kept | Rejected


def caption(rng: np.random.Generator, without: str = "") -> str:
    """A caption of one to four PIECES that holds no letter of ``without`` and is not blank at its ends."""
    pieces = [piece for piece in PIECES if not set(piece) & set(without)]
    return " ".join(rng.choice(pieces) for _ in range(rng.integers(1, 5)))


def wrong_answers(source: Source, answers: Sequence[Answer]) -> list[str]:
    """What of ``source`` is not as ``answers`` say, one line each; empty when all is right."""
    wrong = [f"{len(source)} records, not {len(answers)}"] if len(source) != len(answers) else []
    for index, answer in enumerate(answers[: len(source)]):
        given = _read(source, index)
        right = (
            re.search(answer.reason, given)
            if isinstance(answer, Rejected) and isinstance(given, str)
            else given == answer
        )
        if not right:
            wrong.append(f"record {index}: {given!r}, not {answer!r}")
    return wrong


def _read(source: Source, index: int) -> Kept | str:
    """What a source gives: the record, or the reason of its rejection. Other exceptions pass: they are bugs."""
    try:
        record = source[index]
    except UserError as error:
        return str(error)
    return Kept(record.caption, tuple(record.turns), tuple(map(_seed, record.images)))


def _seed(image) -> int:
    """The seed of a picture of data_parts.noise that was stored without loss; -1 for another picture."""
    pixels = np.asarray(image.convert("RGB"))
    return next((seed for seed in range(8) if np.array_equal(pixels, np.asarray(noise(PICTURE, seed)))), -1)
