"""Dialogs that edit a picture by instructions, in one turn or in several."""

import hashlib
from collections.abc import Callable, Sequence

import numpy as np

from lumina_jax.conversation import Turn, task_prompt
from lumina_jax.data.omni.sessions import SessionEdit, Sessions
from lumina_jax.data.sources.images import ImageFile
from lumina_jax.data.sources.record import StoredRecord, StoredSource
from lumina_jax.errors import InputError, prefixed_errors
from lumina_jax.text import checked_text
from lumina_jax.vocab import IMAGE_SYMBOL


class EditSource(StoredSource):
    """Dialogs of at most ``max_turns`` turns (0: no limit) from sessions of edits.

    A longer session is split into several dialogs, each beginning with the last picture of the one before.
    """

    def __init__(self, sessions: Sessions, max_turns: int):
        self._sessions = sessions
        limit = max_turns or max(1, sessions.lengths.max(initial=1))
        self._session, self._first, self._turns = split(sessions.lengths, limit)
        self.fingerprint = hashlib.sha256(f"{sessions.fingerprint} {max_turns}".encode()).hexdigest()[:16]

    def __len__(self) -> int:
        return len(self._session)

    def stored(self, index: int) -> StoredRecord:
        session, first = int(self._session[index]), int(self._first[index])
        with prefixed_errors(f"record {index}, {self._sessions.name(session)}, from turn {first + 1}"):
            edits = self._sessions.edits(session, first, first + int(self._turns[index]))
            return dialog(edits, self._sessions.fetch)


def split(lengths: np.ndarray, limit: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Sessions of ``lengths`` turns -> dialogs of at most ``limit``: session, first turn and number of turns, i64[n] each."""
    pieces = np.maximum(-(-lengths // limit), 1)
    session = np.repeat(np.arange(len(lengths)), pieces)
    first = limit * (np.arange(len(session)) - np.repeat(np.cumsum(pieces) - pieces, pieces))
    return session, first, np.minimum(lengths[session] - first, limit)


def dialog(edits: Sequence[SessionEdit], fetch: Callable[[object], ImageFile]) -> StoredRecord:
    """Consecutive edits: the first request holds the picture before, every answer is the picture after its edit.

    Raises InputError naming the turn whose instruction is empty or no text.
    """
    turns: list[Turn] = []
    for number, edit in enumerate(edits, start=1):
        instruction = checked_text(edit.instruction, f"the instruction of turn {number}").strip()
        if not instruction:
            raise InputError(f"the instruction of turn {number} is empty")
        # From the second turn on the picture to edit is the answer before.
        turns.append((task_prompt("edit", instruction, images=1 if number == 1 else 0), IMAGE_SYMBOL))
    return StoredRecord(turns, [fetch(edits[0].before), *(fetch(edit.after) for edit in edits)])
