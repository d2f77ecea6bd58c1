"""Dialogs in which a picture is changed as told, in one turn or in several."""

import hashlib
from collections.abc import Callable, Sequence

import numpy as np

from lumina_jax.conversation import Turn, task_prompt
from lumina_jax.data.omni.sessions import Edit, Sessions
from lumina_jax.data.sources.images import ImageFile
from lumina_jax.data.sources.record import StoredRecord, StoredSource, checked_text
from lumina_jax.errors import InputError
from lumina_jax.vocab import IMAGE_SYMBOL


class EditSource(StoredSource):
    """Dialogs of at most ``most`` turns (0: any number) out of sessions of edits.

    A session with more is cut: each dialog begins with the picture that its predecessor ended with.
    """

    def __init__(self, sessions: Sessions, most: int):
        if most < 0:
            raise InputError(f"turns={most}; give the most turns of a dialog, or 0 for any number")
        self._sessions = sessions
        self._session, self._first, self._turns = cut(sessions.lengths, most or max(1, sessions.lengths.max(initial=1)))
        self.fingerprint = hashlib.sha256(f"{sessions.fingerprint} {most}".encode()).hexdigest()[:16]

    def __len__(self) -> int:
        return len(self._session)

    def stored(self, index: int) -> StoredRecord:
        if not 0 <= index < len(self):
            raise IndexError(f"record {index} of {len(self)}")
        session, first = int(self._session[index]), int(self._first[index])
        try:
            edits = self._sessions.edits(session, first, first + int(self._turns[index]))
            return dialog(edits, self._sessions.fetch)
        except ValueError as error:
            raise InputError(
                f"record {index}, {self._sessions.name(session)}, from turn {first + 1}: {error}"
            ) from error


def cut(lengths: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Sessions of ``lengths`` turns -> dialogs of at most ``most``: their session, first turn and turns, i64[n] each."""
    pieces = np.maximum(-(-lengths // most), 1)
    session = np.repeat(np.arange(len(lengths)), pieces)
    first = most * (np.arange(len(session)) - np.repeat(np.cumsum(pieces) - pieces, pieces))
    return session, first, np.minimum(lengths[session] - first, most)


def dialog(edits: Sequence[Edit], fetch: Callable[[object], ImageFile]) -> StoredRecord:
    """Edits that follow each other: the first request has the picture to change, every answer is the picture changed.

    Raises ValueError naming the turn whose instruction is none.
    """
    turns: list[Turn] = []
    for number, edit in enumerate(edits, start=1):
        told = checked_text(edit.told, f"the instruction of turn {number}").strip()
        if not told:
            raise InputError(f"the instruction of turn {number} is empty")
        # The picture to change stands in the dialog already, but for the first.
        turns.append((task_prompt("edit", told, images=1 if number == 1 else 0), IMAGE_SYMBOL))
    return StoredRecord(turns, [fetch(edits[0].before), *(fetch(edit.after) for edit in edits)])
