"""Our folders of tokens -> the token files of the original: one pickle a sample and the list of them."""

import json
import pickle

import numpy as np

from lumina_jax.data.shards import SETTINGS, Shards
from lumina_jax.data.sources.lumina_tokens import RECORDS
from lumina_jax.data.sources.token_record import NOT_LEARNED
from lumina_jax.errors import ExistingFileError, interrupted
from lumina_jax.places import Place, absolute
from lumina_jax.progress import ProgressDisplay
from lumina_jax.storage import atomic_write

PROTOCOL = 4
"""Of the pickles: what the original's Python (3.8 to 3.13) writes."""
PER_FOLDER = 10_000
"""Samples that share a folder of out/files."""


def export_tokens(shards: Shards, out: str | Place, progress: bool = True) -> Place:
    """Writes every sample as a pickle below ``out``/files, then ``out``/record.json, the list of them, whose path it returns.

    A pickle is ``{"token": [...], "label": [...], "id": number}``, a line of the list ``{"file": absolute path, "len": tokens,
    "id": number}``; the number is that of the sample in ``shards`` (original: pre_tokenize.py, concat_record.py). An interrupted
    export leaves no record.json and starts again from the beginning. Raises ExistingFileError when there is one, or when ``out``
    is a folder of tokens itself.
    """
    out = absolute(out)
    if (out / RECORDS).exists():
        raise ExistingFileError(f"{out / RECORDS} exists already; choose another folder, or delete it to make it anew")
    if (out / SETTINGS).exists():
        raise ExistingFileError(f"{out} is a folder that run.py pretokenize wrote; choose another")
    keeps = f"{out / RECORDS} was not made; give the same command again, and it starts from the beginning"
    with (
        interrupted(keeps),
        ProgressDisplay("export", len(shards), progress) as meter,
        atomic_write(out / RECORDS, new=True) as temporary,
        open(temporary, "w", encoding="utf-8") as records,
    ):
        for number in range(len(shards)):
            tokens, learn = shards[number]
            path = out / "files" / f"{number // PER_FOLDER:06d}" / f"{number}.pkl"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(sample_pickle(tokens, learn, number))
            record = {"file": str(path), "len": len(tokens), "id": number}
            records.write(("[" if number == 0 else ",\n") + json.dumps(record))
            meter.advance(1)
        records.write("]\n")
    return out / RECORDS


def sample_pickle(tokens: np.ndarray, learn: np.ndarray, number: int) -> bytes:
    """A sample, tokens i32[n] and learn bool[n], as the original pickles it."""
    labels = np.where(learn, tokens, NOT_LEARNED)
    return pickle.dumps({"token": tokens.tolist(), "label": labels.tolist(), "id": number}, PROTOCOL)
