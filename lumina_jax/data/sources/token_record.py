"""What a source of ready tokens yields: samples that were tokenized elsewhere, as stored and as arrays."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from lumina_jax.data.sources import restricted_pickle
from lumina_jax.data.sources.record import shortened
from lumina_jax.errors import InputError, prefixed_errors

NOT_LEARNED = -100
"""The label of a token that is not learned (torch's cross_entropy ignores it)."""
MAX_ID = np.iinfo(np.int32).max


@dataclass(frozen=True)
class TokenRecord:
    """A sample: tokens i32[n] and learn bool[n]. Which tokenizer and VQ model made it is not known."""

    tokens: np.ndarray
    learn: np.ndarray


@dataclass(frozen=True)
class StoredTokens:
    """A sample as it lies in a file ``name``: the ``entry`` of the list of records, and the pickle that it names.

    ``content`` is None when the entry holds the sample itself.
    """

    name: str
    entry: Mapping
    content: bytes | None = None

    @property
    def size(self) -> int:
        """Bytes in memory."""
        return len(self.content or b"")

    def decode(self) -> TokenRecord:
        """The sample; InputError naming the file when it is none, or not the one that the list of records means."""
        with prefixed_errors(self.name):
            if self.content is None:
                return to_record(self.entry)
            sample = restricted_pickle.loads(self.content)
            if not isinstance(sample, dict):
                raise InputError(f"the pickle is a {type(sample).__name__}, not a dict of 'token' and 'label'")
            record = to_record(sample)
            counted, number = self.entry.get("len"), self.entry.get("id")
            if counted is not None and counted != len(record.tokens):
                raise InputError(
                    f"the file has {len(record.tokens)} tokens, its list says {shortened(counted)}; is it another run's?",
                    cause="another length than the list says",
                )
            if number is not None and sample.get("id", number) != number:
                raise InputError(
                    f"the file is sample {shortened(sample['id'])}, its list says {shortened(number)}; is it another run's?",
                    cause="another id than the list says",
                )
            return record


class TokenSource:
    """A numbered collection of samples that are tokens already, safe to read from several threads."""

    fingerprint: str
    """Changes when the samples do."""

    def __len__(self) -> int:
        raise NotImplementedError

    def stored(self, index: int) -> StoredTokens:
        """Raises an InputError or the like for a bad sample (see record.read_record)."""
        raise NotImplementedError

    def __getitem__(self, index: int) -> TokenRecord:
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        return self.stored(index).decode()


def to_record(sample: Mapping) -> TokenRecord:
    """``{"token": [...], "label": [...]}`` -> TokenRecord, as the original's trainer reads it (finetune_solver.py, ItemProcessor).

    A label is its token, or NOT_LEARNED; label 0 is learned like others, as by the original's loss. Raises InputError for anything
    else.
    """
    tokens, labels = _ids(sample, "token"), _ids(sample, "label")
    if len(tokens) != len(labels):
        raise InputError(f"{len(tokens)} tokens, but {len(labels)} labels", cause="tokens and labels of two lengths")
    learn = labels != NOT_LEARNED
    if len(wrong := np.flatnonzero(learn & (labels != tokens))):
        at = wrong[0]
        raise InputError(
            f"label {at} is {labels[at]}, its token {tokens[at]}; a label is its token, or {NOT_LEARNED} where nothing is learned",
            cause="a label that is not its token",
        )
    return TokenRecord(tokens.astype(np.int32), learn)


def _ids(sample: Mapping, key: str) -> np.ndarray:
    """The list of integers under ``key``, as i64[n]."""
    values = sample.get(key)
    if not isinstance(values, list) or set(map(type, values)) - {int}:
        raise InputError(
            f"{key!r} is {shortened(values)}, not a list of integers", cause=f"{key!r} is no list of integers"
        )
    if not values:
        raise InputError(f"{key!r} is an empty list", cause="an empty sample")
    lowest = 0 if key == "token" else NOT_LEARNED
    try:
        ids = np.array(values, np.int64)
        if lowest <= ids.min() and ids.max() <= MAX_ID:
            return ids
    except OverflowError:  # of a number beyond 64 bits
        pass
    raise InputError(
        f"{key!r} holds numbers from {shortened(min(values))} to {shortened(max(values))}; tokens are {lowest} to {MAX_ID}",
        cause="no token's number",
    )
