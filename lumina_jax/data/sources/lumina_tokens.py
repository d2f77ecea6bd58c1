"""Token files of the original: one pickle a sample, lists of records that name them, and the YAML that gathers such lists.

Sources: pre_tokenize.py and concat_record.py (the files), xllmx's FinetuneConversationDataset and FinetuneDistSampler (the YAML).
"""

import bisect
import hashlib
import itertools
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import yaml

from lumina_jax.data.sources import files
from lumina_jax.data.sources.json_list import JsonSource
from lumina_jax.data.sources.options import has_suffix, parse
from lumina_jax.data.sources.record import checked_object, shortened
from lumina_jax.data.sources.relocate import Relocation
from lumina_jax.data.sources.restricted_pickle import MAX_BYTES
from lumina_jax.data.sources.token_record import StoredTokens, TokenSource
from lumina_jax.data.sources.urls import shown
from lumina_jax.errors import InputError, MissingFileError, prefixed_errors
from lumina_jax.numbers import seed_number
from lumina_jax.text import decode_text

RECORDS = "record.json"
"""What concat_record.py writes in the documented commands."""
PART = re.compile(r"(\d+)-of-(\d+)-record\.jsonl?")
"""What each process of pre_tokenize.py writes: its rank and the number of them."""
LISTS = (".json", ".jsonl")
CONFIGS = (".yaml", ".yml")
MAX_CONFIG = 1 << 20
"""Bytes of a YAML file."""
OPTIONS = {"seed": "0", "type": ""}


def open_lumina_tokens(rest: str) -> TokenSource:
    """``PATH[@seed=N,type=NAME]`` -> the samples of the original's token files.

    PATH is a record.json, a pattern of ``{rank}-of-{n}-record.jsonl``, a folder of these, or the data configuration of the
    original's trainer, a YAML file; the options are about the latter (see read_config). Raises MissingFileError, or InputError
    for what is none of these.
    """
    path, options = parse(rest, OPTIONS)
    if has_suffix(path, CONFIGS):
        return LuminaTokens(read_config(path, seed_number(options["seed"]), options["type"]))
    if options != OPTIONS:
        raise InputError(f"{rest}: seed= and type= are about a {CONFIGS[0]} file; leave them out")
    paths = files.expand(path) if has_suffix(path, LISTS) else lists_in(path)
    return LuminaTokens([TokenList(path) for path in paths])


class TokenList:
    """The samples of one list of records, of which ``ratio`` keeps a share.

    A record is ``{"file": path, "len": tokens, "id": number}`` or the sample itself, ``{"token": [...], "label": [...]}``. Of n
    samples int(n * ratio) are drawn by ``seed``, once, without repetition, and keep their order. In memory are the byte spans of
    all records and, with a ratio, the numbers of those that are kept.
    """

    def __init__(self, path: str, ratio: float = 1.0, seed: Sequence[int] = (0,)):
        if not has_suffix(path, LISTS):
            raise InputError(f"{path}: a list of records ends with {' or '.join(LISTS)}; save it as one of these")
        self._records = JsonSource(path)
        self._places = Relocation(self._records.folder)
        self._kept: np.ndarray | None = None
        if ratio != 1.0:
            count = int(len(self._records) * ratio)
            self._kept = np.sort(np.random.default_rng(seed).choice(len(self._records), count, replace=False))
        drawn = b"" if self._kept is None else self._kept.astype("<i8").tobytes()
        self.fingerprint = hashlib.sha256(self._records.fingerprint.encode() + drawn).hexdigest()[:16]

    def __len__(self) -> int:
        return len(self._records) if self._kept is None else len(self._kept)

    def stored(self, index: int) -> StoredTokens:
        number = index if self._kept is None else int(self._kept[index])
        where = f"{self._records.path}, record {number}"
        with prefixed_errors(where):
            entry = checked_object(self._records.item(number), "the record is")
            if "token" in entry and "label" in entry:
                return StoredTokens(where, entry)
            if "file" not in entry:
                raise InputError(
                    f"the record has neither 'file' nor 'token' and 'label', only {shortened(list(entry))}; "
                    "pictures and conversations are read by other kinds of --source",
                    cause="neither file nor tokens",
                )
            found, content = self._places.read(entry["file"], MAX_BYTES + 1)
            return StoredTokens(shown(found), entry, content)


class LuminaTokens(TokenSource):
    """The samples of several lists of records, one list after the other."""

    def __init__(self, lists: Sequence[TokenList]):
        self._lists, self._ends = lists, list(itertools.accumulate(map(len, lists)))
        self.fingerprint = hashlib.sha256(" ".join(part.fingerprint for part in lists).encode()).hexdigest()[:16]

    def __len__(self) -> int:
        return self._ends[-1]

    def stored(self, index: int) -> StoredTokens:
        number = bisect.bisect_right(self._ends, index)
        return self._lists[number].stored(index - (self._ends[number - 1] if number else 0))


def lists_in(folder: str) -> list[str]:
    """The lists of records of a folder: those of the processes, by rank, as concat_record.py joins them; else its record.json.

    Subfolders, where the token files are, are not read.
    """
    if not files.is_remote(folder) and not os.path.isdir(folder):
        raise MissingFileError(f"{folder} is neither a folder nor a file {', '.join(LISTS + CONFIGS)}; check the path")
    try:
        found = files.expand(files.join(folder, "*-of-*-record.json*"))
    except MissingFileError:
        found = []
    parts = sorted((int(match[1]), int(match[2]), path) for path in found if (match := PART.fullmatch(_name(path))))
    if len(counts := sorted({count for _, count, _ in parts})) > 1:
        raise InputError(
            f"{folder} holds records of {counts[0]} and of {counts[1]} processes, which may be the same samples; give the "
            f"files of one run: '{folder}/*-of-{counts[0]}-record.jsonl'"
        )
    return [path for *_, path in parts] or [files.join(folder, RECORDS)]


@dataclass(frozen=True)
class _Entry:
    """An entry of META: the list of records, the share of its samples, and the kind of batches they go into."""

    path: str
    ratio: float = 1.0
    type: str = "default"


def read_config(path: str, seed: int = 0, only: str = "") -> list[TokenList]:
    """The lists of a data configuration: ``META: [{path: record.json, ratio: 0.4, type: text}, ...]``.

    A path may be relative to the working folder, as the original has it, or to the YAML file. ``ratio``, at most 1, keeps a share
    of a list; it is drawn by ``seed`` once, where the original draws anew in each epoch. ``type`` there keeps kinds out of each
    other's batches; here ``only`` names the one to read (empty: all). Raises InputError naming the entry that is wrong.
    """
    with prefixed_errors(path):
        entries = [_entry(number, entry) for number, entry in enumerate(_meta(path))]
    kinds = sorted({entry.type for entry in entries})
    if only and only not in kinds:
        raise InputError(f"{path} has no entry of type {only!r}; there are {', '.join(kinds)}")
    places = Relocation(files.folder_of(path))
    return [
        TokenList(places.find(entry.path), entry.ratio, (seed, number))
        for number, entry in enumerate(entries)
        if only in ("", entry.type)
    ]


def _meta(path: str) -> list[object]:
    content = files.read(path, 0, MAX_CONFIG + 1)
    if len(content) > MAX_CONFIG:
        raise InputError(f"more than {MAX_CONFIG:,} bytes; that is no data configuration")
    try:
        config = yaml.safe_load(decode_text(content, path))
    except (yaml.YAMLError, RecursionError) as error:
        raise InputError(f"no YAML: {error}", cause="no YAML") from error
    meta = config.get("META") if isinstance(config, Mapping) else None
    if not isinstance(meta, list) or not meta:
        raise InputError("no list under META; write META: and below it - path: record.json")
    return meta


def _entry(number: int, entry: object) -> _Entry:
    if not isinstance(entry, Mapping) or not isinstance(entry.get("path"), str):
        raise InputError(f"entry {number} of META is {shortened(entry)}; it needs a path")
    if unknown := sorted(map(str, set(entry) - {"path", "ratio", "type"})):
        raise InputError(f"entry {number} of META has {unknown[0]!r}; there are path, ratio and type")
    ratio = entry.get("ratio", 1.0)
    if type(ratio) not in (int, float) or not 0 <= ratio <= 1:
        raise InputError(
            f"entry {number} of META has the ratio {shortened(ratio)}; it is a share from 0 to 1. To see samples more often, "
            "pretokenize the lists into folders and weigh these by data.weights"
        )
    return _Entry(entry["path"], float(ratio), str(entry.get("type", "default")))


def _name(path: str) -> str:
    return path.rpartition("/")[2]
