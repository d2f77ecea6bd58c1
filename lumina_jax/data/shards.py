"""The folder of tokens that pretokenize writes and training reads. This module is the one home of its format.

::

    settings.json           what the tokens were made from, written first
    00003-of-00010.json     of one range of the source: lengths, counts and rejects
    00003-of-00010.tokens   the kept records of that range, one after another, written last: then the shard is complete
    lengths.npy             i32[N]: the number of tokens of each record of all shards, in order
    checksums.npy           u32[N]: the CRC-32 of each record's bytes, compared whenever it is read
    rejects.jsonl           {"index", "reason", "cause"} of each source record that was not kept
    manifest.json           the counts, written last: then the folder is complete

A record of n tokens is n little-endian int32: a token that is learned as it is, one that is not as its bitwise complement,
which is negative. A record's offset follows from the lengths, so readers hold nothing per record but one memory-mapped array.
"""

import hashlib
import json
import os
import re
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, fields
from tokenize import TokenError
from typing import TypeVar

import numpy as np

from lumina_jax.config import from_dict, to_dict
from lumina_jax.data.token_files import RecordSpan, StoreReading, token_files
from lumina_jax.errors import InputError, MissingFileError, StorageError, cause_of
from lumina_jax.places import Place, is_url, place
from lumina_jax.storage import StorageFolder
from lumina_jax.vocab import Vocab

SETTINGS = "settings.json"
MANIFEST = "manifest.json"
LENGTHS = "lengths.npy"
CHECKSUMS = "checksums.npy"
REJECTS = "rejects.jsonl"
REPORT = "json"
TOKENS = "tokens"
OURS = re.compile(rf"{MANIFEST}|{LENGTHS}|{CHECKSUMS}|{REJECTS}|\d{{5,}}-of-\d{{5,}}\.({REPORT}|{TOKENS})")
"""The names of all files but the settings."""
TOKEN_BYTES = 4
MAX_CAUSES = 50
"""Causes of rejection that a manifest lists."""


@dataclass(frozen=True)
class Settings:
    """Everything the tokens depend on. ``source``, ``tokenizer`` and ``vq`` are fingerprints.

    ``records`` is the number of records of the source, ``shard_records`` of those of a shard. ``crops`` are the candidate sizes
    as "WxH" in pixels. Samples of more than ``max_tokens`` tokens are rejected (None: no limit). ``name`` tells people where the
    records came from; it is not compared. ``vq_assumed``: the tokens were made elsewhere, and that ``vq`` made them was only said.
    """

    records: int
    source: str
    tokenizer: str
    vq: str
    seed: int
    crops: tuple[str, ...]
    shard_records: int
    max_tokens: int | None = None
    name: str = field(default="", compare=False)
    vq_assumed: bool = False

    @property
    def shards(self) -> int:
        return -(-self.records // self.shard_records)

    def span(self, shard: int) -> range:
        """The source records of a shard."""
        return range(shard * self.shard_records, min((shard + 1) * self.shard_records, self.records))

    def file(self, shard: int, kind: str) -> str:
        """The name of a shard's file; ``kind`` is REPORT or TOKENS."""
        return f"{shard:05d}-of-{self.shards:05d}.{kind}"

    def missing(self, folder: StorageFolder) -> list[int]:
        """The shards that are not complete in ``folder``, in order."""
        names = folder.file_names()
        return [shard for shard in range(self.shards) if self.file(shard, TOKENS) not in names]

    def differences(self, other: "Settings") -> list[str]:
        """The compared fields that differ from ``other``'s, as "name=value here instead of value there"."""
        names = [field.name for field in fields(self) if field.compare]
        pairs = [(name, getattr(self, name), getattr(other, name)) for name in names]
        return [f"{name}={_short(here)} instead of {_short(there)}" for name, here, there in pairs if here != there]


@dataclass(frozen=True)
class RejectCause:
    """How many records were rejected for one ``cause``, and the first of them as an example."""

    cause: str
    count: int
    index: int
    reason: str


@dataclass(frozen=True)
class Manifest:
    """The counts of a complete folder: records kept and rejected, tokens, and those of them that are learned.

    ``histogram[i]`` counts the records with edges[i] <= tokens < edges[i + 1], ``kinds`` the records by shard_maker.kind_of,
    ``crops`` the images of each size ("WxH"), ``shard_kept`` the records kept of each shard, ``causes`` the rejected ones (see
    sum_causes; empty in a folder of an older version). ``shard_crc32`` are the CRC-32 of the file of tokens of each shard,
    ``index_crc32`` those of the lengths and of the checksums (both empty in a folder of an older version).
    """

    settings: Settings
    kept: int
    rejected: int
    tokens: int
    learned: int
    edges: tuple[int, ...]
    histogram: tuple[int, ...]
    kinds: dict[str, int]
    crops: dict[str, int]
    shard_kept: tuple[int, ...]
    causes: tuple[RejectCause, ...] = ()
    shard_crc32: tuple[int, ...] = ()
    index_crc32: tuple[int, ...] = ()

    @property
    def fingerprint(self) -> str:
        """16 hex digits of what the records are and how many there are; the same in every copy of the folder."""
        made, names = (
            self.settings,
            ("records", "source", "tokenizer", "vq", "seed", "crops", "shard_records", "max_tokens"),
        )
        content = ([getattr(made, name) for name in names], self.kept, self.tokens, self.learned, self.shard_kept)
        return hashlib.sha256(repr(content).encode()).hexdigest()[:16]


RejectLine = dict[str, int | str]
"""The "index" of a source record that was not kept, the "reason", which names the record or its file, and its "cause"."""

Stored = TypeVar("Stored")


def sum_causes(rejects: Iterable[RejectLine]) -> tuple[RejectCause, ...]:
    """Rejects summed up by their causes, the most frequent first; of more than MAX_CAUSES the rest counts as one."""
    counts, examples = Counter(), {}
    for reject in rejects:
        cause = reject.get("cause") or cause_of(InputError(reject["reason"]))  # older versions wrote none
        counts[cause] += 1
        examples.setdefault(cause, reject)
    frequent = [(cause, count, examples[cause]) for cause, count in counts.most_common(MAX_CAUSES)]
    if rest := counts.total() - sum(count for _, count, _ in frequent):
        shown = {cause for cause, *_ in frequent}
        frequent.append(("other causes", rest, next(examples[cause] for cause in counts if cause not in shown)))
    return tuple(RejectCause(cause, count, line["index"], line["reason"]) for cause, count, line in frequent)


def rejects_in_words(where: str, kept: int, causes: Sequence[RejectCause]) -> list[str]:
    """Lines that say of ``where`` what was rejected: a line for each cause, with its count and an example; none without any."""
    if not causes:
        return []
    rejected = sum(cause.count for cause in causes)
    lines = [f"{cause.count:7,}  {cause.cause}; such as record {cause.index:,}: {cause.reason}" for cause in causes]
    rest = "" if kept else "; nothing was kept: mend the source, delete this folder and start again"
    return [f"{where}: {rejected:,} of {kept + rejected:,} records were rejected{rest}", *lines]


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def pack(tokens: np.ndarray, learn: np.ndarray) -> bytes:
    """Tokens i32[n] and learn bool[n] -> the bytes of a record."""
    return np.where(learn, tokens, ~tokens).astype("<i4").tobytes()


def unpack(record: bytes) -> tuple[np.ndarray, np.ndarray]:
    """The inverse of :func:`pack`."""
    signed = np.frombuffer(record, "<i4")
    return (signed ^ (signed >> 31)).astype(np.int32), signed >= 0


def check_made_with(manifest: Manifest, vocab: Vocab, vq: str | None = None, where: str = "the token folder") -> None:
    """Raises InputError unless the tokens were made with ``vocab`` and with the VQ model of fingerprint ``vq``.

    The VQ model is not compared when ``vq`` is None or no record holds an image.
    """
    settings = manifest.settings
    if settings.tokenizer != vocab.fingerprint:
        raise InputError(
            f"{where} was made with the tokenizer {settings.tokenizer}, but {vocab.source} is {vocab.fingerprint}; "
            "set data.tokenizer to the one it was made with (evaluate: --tokenizer), or pretokenize again"
        )
    if vq is not None and manifest.crops and settings.vq != vq:
        raise InputError(
            f"{where} was made with the VQ model {settings.vq}, but that of vq.path is {vq}; "
            "set vq.path to the one it was made with (evaluate: --vq), or pretokenize again"
        )


def read_json(folder: StorageFolder, name: str, kind: type[Stored]) -> Stored:
    """Reads what :func:`write_json` wrote as a ``kind``; InputError naming the file when it is something else."""
    return parse_json(folder.read_bytes(name), f"{folder}/{name}", kind)


def parse_json(content: bytes, where: str, kind: type[Stored]) -> Stored:
    """The ``content`` of a file that :func:`write_json` wrote, as a ``kind``; InputError naming ``where`` when it is none."""
    try:
        return from_dict(kind, json.loads(content))
    except (ValueError, TypeError) as error:
        raise InputError(f"{where} was not written by this version's pretokenize: {error}") from error


def write_json(folder: StorageFolder, name: str, value: object, indent: int | None = 1) -> None:
    """Writes a dataclass of this module, the whole file or none."""
    folder.write_text(name, to_json(value, indent))


def to_json(value: object, indent: int | None = 1) -> str:
    """A dataclass of this module as it is written."""
    return json.dumps(to_dict(value), indent=indent) + "\n"


class Shards:
    """A folder written by pretokenize, on a disk or at a URL such as gs://BUCKET/FOLDER, as one list of samples.

    ``lengths`` i32[N] are their numbers of tokens, ``checksums`` u32[N] the CRC-32 of each (None in a folder of an older version),
    memory-mapped. Safe to read from several threads; pickled it is only its path, and another process opens it again. ``reading``
    says how a store is read; whether all files are in a store is found out, by a listing of it, only with ``check``, which need not
    be done on every host. Raises MissingFileError when the folder was not written, or not finished, by pretokenize, InputError when
    it holds no records, unless it ``may_be_empty``, or its files do not belong together.
    """

    def __init__(
        self,
        path: str | Place,
        may_be_empty: bool = False,
        reading: StoreReading | None = None,
        check: bool = True,
    ):
        self._arguments = (path, may_be_empty, reading, check)
        folder = StorageFolder(path)
        self.path = place(path)
        content = _manifest_of(folder)
        self.manifest = parse_json(content, f"{path}/{MANIFEST}", Manifest)
        if self.manifest.kept == 0 and not may_be_empty:
            raise InputError(f"{path} holds no records; {path}/{REJECTS} says why all were rejected")
        settings = self.manifest.settings
        self._names = [settings.file(shard, TOKENS) for shard in range(settings.shards)]
        self._starts = np.cumsum([0, *self.manifest.shard_kept])
        self._files = token_files(folder, self._names, content, reading or StoreReading())
        sizes = self._files.sizes() if check or folder.local else []
        if missing := [name for name, size in zip(self._names, sizes, strict=False) if size is None]:
            raise MissingFileError(f"{path} lacks {', '.join(missing[:3])}; copy it whole or pretokenize it again")
        self.lengths, *checksums = map(self._index, (LENGTHS, CHECKSUMS)[: len(self.manifest.index_crc32) or 1])
        self.checksums = checksums[0] if checksums else None
        self._files.open(self._check_sizes(sizes), self.checksums)

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """One sample: tokens i32[n] and learn bool[n]. Raises IndexError unless 0 <= index < N."""
        return self.read([index])[0]

    def read(self, indices: Sequence[int]) -> list[tuple[np.ndarray, np.ndarray]]:
        """The samples of ``indices``, tokens i32[n] and learn bool[n] of each; from a store all at once.

        Raises IndexError unless 0 <= index < N of each, InputError or StorageError when a record is damaged or cut short.
        """
        spans = [self._span(index) for index in indices]
        records = self._files.read(spans)
        for span, record in zip(spans, records, strict=True):
            self._check(span, record)
        return [unpack(record) for record in records]

    def blocks(self, shard: int) -> Iterator[bytes]:
        """The content of the file of a shard, a part at a time."""
        return self._files.blocks(shard)

    def __reduce__(self):
        return Shards, self._arguments

    def _span(self, index: int) -> RecordSpan:
        if not 0 <= index < len(self.lengths):
            raise IndexError(f"record {index} of {len(self.lengths)} in {self.path}")
        shard = int(np.searchsorted(self._starts, index, side="right")) - 1
        start = TOKEN_BYTES * int(self.lengths[self._starts[shard] : index].sum(dtype=np.int64))
        return RecordSpan(index, shard, start, start + TOKEN_BYTES * int(self.lengths[index]))

    def _check(self, span: RecordSpan, record: bytes) -> None:
        """Raises StorageError where the file of a record ended in it, InputError where its bytes are others than were written."""
        name = f"{self.path}/{self._names[span.shard]}"
        if len(record) != span.stop - span.start:
            raise StorageError(f"{name} ended in record {span.record}; it was truncated after it was opened")
        if self.checksums is not None and zlib.crc32(record) != self.checksums[span.record]:
            raise InputError(
                f"{name} is damaged: record {span.record} is not as it was written; copy the file again from where it is "
                "whole, or delete it and give the command of pretokenize again"
            )

    def _index(self, name: str) -> np.ndarray:
        """A number for each record, memory-mapped, compared to its checksum. Raises InputError, MissingFileError."""
        for anew in (False, True):  # a copy on this machine may be damaged, and that in the store whole
            try:
                file = self._files.index(name, anew)
                numbers = np.asarray(np.load(file, mmap_mode="r"))
            except FileNotFoundError as error:
                raise MissingFileError(f"{self.path} lacks {name}; copy it whole or pretokenize it again") from error
            except (ValueError, EOFError, SyntaxError, TokenError):  # whatever a damaged header makes numpy raise
                continue
            expected = dict(zip((LENGTHS, CHECKSUMS), self.manifest.index_crc32, strict=False))
            if not expected or zlib.crc32(np.ascontiguousarray(numbers).data) == expected[name]:
                return numbers
        where = f"{self.path}/{name}"
        raise InputError(f"{where} is damaged; copy it again from where it is whole, or pretokenize again")

    def _check_sizes(self, sizes: Sequence[int]) -> list[int]:
        """The bytes that each shard should have. Raises InputError unless the manifest, and ``sizes`` if there are any, agree."""
        kept, tokens = self.manifest.kept, self.manifest.tokens
        if len(self.lengths) != kept or self._starts[-1] != kept:
            raise InputError(
                f"{self.path} is damaged: {len(self.lengths)} lengths, but {MANIFEST} says {kept} records; pretokenize it again"
            )
        spans = zip(self._starts[:-1], self._starts[1:], strict=True)
        expected = [TOKEN_BYTES * int(self.lengths[start:stop].sum(dtype=np.int64)) for start, stop in spans]
        size = sum(sizes or expected)
        if size != TOKEN_BYTES * tokens:
            raise InputError(
                f"{self.path} is damaged: its .{TOKENS} files have {size} bytes, but {MANIFEST} says {tokens} tokens, which "
                f"take {TOKEN_BYTES * tokens}; copy it whole or pretokenize it again"
            )
        return expected


def _manifest_of(folder: StorageFolder) -> bytes:
    """The manifest of a folder. Raises MissingFileError when there is none."""
    try:
        return folder.read_bytes(MANIFEST)
    except MissingFileError as error:
        if folder.exists(SETTINGS):
            reason = "is an unfinished pretokenize; give its command again and it goes on where it stopped"
        elif not is_url(str(folder)) and not os.path.exists(str(folder)):
            reason = "is not there; run.py pretokenize writes such folders"
        else:
            reason = f"holds no {MANIFEST}: it is no folder written by `run.py pretokenize`; make it first"
        raise MissingFileError(f"{folder} {reason}") from error
