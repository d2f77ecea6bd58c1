"""Source records -> complete shards of every stage. Each record is read and decoded once, then cropped, encoded, tokenized."""

import itertools
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from lumina_jax import layout
from lumina_jax.conversation import Turn, texts, tokenize
from lumina_jax.data.ahead import read_ahead
from lumina_jax.data.encode import BatchEncoder, GridEncoder
from lumina_jax.data.ready_tokens import ReadySample, check_sample
from lumina_jax.data.shard_writer import write_shard
from lumina_jax.data.shards import Settings
from lumina_jax.data.sources.fetch import DEFAULT_LIMITS, FetchLimits, fetching_within
from lumina_jax.data.sources.record import (
    MAX_CONSECUTIVE_REJECTS,
    Record,
    Reject,
    RejectStreak,
    Source,
    StoredRecord,
    StoredSource,
    read_record,
)
from lumina_jax.data.sources.token_record import StoredTokens, TokenRecord, TokenSource
from lumina_jax.errors import InputError
from lumina_jax.pictures import pixels
from lumina_jax.progress import ProgressDisplay
from lumina_jax.storage import StorageFolder
from lumina_jax.vocab import Vocab

FETCHERS = 128
"""Threads that fetch pictures: as many requests at once."""


@dataclass(frozen=True)
class PretokenizeStage:
    """A folder of tokens to write: the candidate crop ``sizes`` (width, height), in px, and the longest sample it keeps."""

    out: str | Path
    sizes: Sequence[tuple[int, int]]
    max_tokens: int | None = None


@dataclass(frozen=True)
class _CroppedRecord:
    """A record cropped for a stage: its turns and crops u8[Y X 3]."""

    turns: list[Turn]
    crops: list[np.ndarray]


@dataclass(frozen=True)
class _DraftedRecord:
    """A record whose images are encoded: its turns and the sizes (width, height) of its crops, or why it is rejected.

    One that was tokenized elsewhere has no turns, but its ``sample``, tokens i32[n] and learn bool[n].
    """

    index: int
    turns: list[Turn] = field(default_factory=list)
    sizes: list[tuple[int, int]] = field(default_factory=list)
    sample: tuple[np.ndarray, np.ndarray] | None = None
    reject: Reject | None = None


class _ShardDraft:
    """A shard of one stage while its images are encoded."""

    def __init__(self, encoder: BatchEncoder):
        self.grids = GridEncoder(encoder)
        self.records: list[_DraftedRecord] = []

    def add(self, index: int, record: _CroppedRecord | ReadySample | Reject) -> None:
        if isinstance(record, Reject):
            # The exception of a bug holds all that its frames do.
            self.records.append(_DraftedRecord(index, reject=record._replace(bug=None)))
            return
        if isinstance(record, ReadySample):
            sample = record.tokens, record.learn
            self.records.append(_DraftedRecord(index, sizes=record.sizes, sample=sample))
            return
        for number, crop in enumerate(record.crops):
            self.grids.add((index, number), crop)
        self.records.append(_DraftedRecord(index, record.turns, [crop.shape[1::-1] for crop in record.crops]))

    def encode(self, vocab: Vocab) -> Callable[[str], list[int]]:
        """A function from a text of the good records to its token ids."""
        good = (texts(record.turns, len(record.sizes)) for record in self.records if record.turns)
        ids = read_record(vocab.encode_all, itertools.chain.from_iterable(good))
        # A text that cannot be encoded fails all; one by one it fails its own record.
        return vocab.encode_literally if isinstance(ids, Reject) else ids.__getitem__


@dataclass(frozen=True)
class ShardMaker:
    """Makes shards of all ``stages`` at once. Their ``settings`` differ only in crop sizes and token limits."""

    source: Source | TokenSource
    vocab: Vocab
    encoder: BatchEncoder
    stages: Sequence[PretokenizeStage]
    settings: Sequence[Settings]
    threads: int
    max_consecutive_rejects: int = MAX_CONSECUTIVE_REJECTS
    fetchers: int = FETCHERS
    limits: FetchLimits = DEFAULT_LIMITS

    def make(self, todo: Mapping[int, Sequence[int]], meter: ProgressDisplay) -> None:
        """Writes the shards of ``todo``: shard -> the numbers of the stages that lack it.

        A shard is a pure function of its number, its stage and this object's fields. While one is tokenized and written the
        next is read and encoded. Raises SourceError, or the exception of a bug, when too many records in a row are rejected.
        """
        read, written = self._streaks(), self._streaks()
        with ThreadPoolExecutor(1) as writer:
            writing: Future[None] = writer.submit(lambda: None)
            for shard, drafts in self._drafts(todo, read, meter):
                writing.result()
                writing = writer.submit(self._write, shard, drafts, written, meter)
            writing.result()

    def _streaks(self) -> list[RejectStreak]:
        return [RejectStreak(self.max_consecutive_rejects) for _ in self.stages]

    def _drafts(
        self, todo: Mapping[int, Sequence[int]], streaks: Sequence[RejectStreak], meter: ProgressDisplay
    ) -> Iterator[tuple[int, dict[int, _ShardDraft]]]:
        """(shard, {stage: draft}) of each shard, with all of its images given to the devices.

        ``streaks`` of each stage count the records that cannot be read: they end a run at once, not with the shard.
        """
        numbers = ((shard, index) for shard in todo for index in self.settings[0].span(shard))
        ahead = read_ahead(
            numbers,
            lambda number: read_record(self._fetch, number[1]),
            lambda number, stored: self._crop(number[1], stored, todo[number[0]]),
            _bytes_of,
            self.fetchers,
            self.threads,
        )
        for shard in todo:
            drafts = {stage: _ShardDraft(self.encoder) for stage in todo[shard]}
            for (_, index), records in itertools.islice(ahead, len(self.settings[0].span(shard))):
                for (stage, draft), record in zip(drafts.items(), records, strict=True):
                    streaks[stage].add(index, record if isinstance(record, Reject) else None)
                    draft.add(index, record)
                meter.advance(1)
            for draft in drafts.values():
                draft.grids.flush()
            yield shard, drafts

    def _fetch(self, index: int) -> StoredRecord | StoredTokens | None:
        """Record ``index`` with its files; None when the source has no files to fetch."""
        if not isinstance(self.source, StoredSource | TokenSource):
            return None
        with fetching_within(self.limits):
            return self.source.stored(index)

    def _crop(
        self, index: int, stored: StoredRecord | StoredTokens | Reject | None, stages: Sequence[int]
    ) -> list[_CroppedRecord | ReadySample | Reject]:
        """Record ``index`` as each of ``stages`` crops it, given what was fetched."""
        if isinstance(stored, Reject):
            return [stored] * len(stages)
        record = read_record(stored.decode) if stored else read_record(self.source.__getitem__, index)
        if isinstance(record, Reject):
            return [record] * len(stages)
        if isinstance(record, TokenRecord):
            vq = self.encoder.vq
            return [read_record(check_sample, record, self.vocab, vq.codes, vq.stride)] * len(stages)
        return [read_record(self._crop_to, record, index, stage) for stage in stages]

    def _crop_to(self, record: Record, index: int, stage: int) -> _CroppedRecord:
        sizes, seed = self.stages[stage].sizes, self.settings[stage].seed
        crop_sizes = [crop_size(image.size, sizes) for image in record.images]
        # Images of one size, such as a photo and its depth, share a draw, so that their pixels stay aligned.
        first: dict[tuple[int, int], int] = {}
        draws = [first.setdefault(image.size, number) for number, image in enumerate(record.images)]
        crops = [
            np.asarray(pixels.whiten(pixels.random_crop(image, size, np.random.default_rng([seed, index, draw]))))
            for image, size, draw in zip(record.images, crop_sizes, draws, strict=True)
        ]
        for (width, height), crop in zip(crop_sizes, crops, strict=True):
            # The encoder takes whole batches: one crop of another form would fail all.
            if crop.shape != (height, width, 3) or crop.dtype != np.uint8:
                raise InputError(f"a crop of {width}x{height} pixels in RGB became {crop.dtype}{list(crop.shape)}")
        return _CroppedRecord(record.conversation(crop_sizes), crops)

    def _write(
        self, shard: int, drafts: dict[int, _ShardDraft], streaks: Sequence[RejectStreak], meter: ProgressDisplay
    ) -> None:
        for stage, draft in drafts.items():
            samples, rejects, kinds, crops = [], [], Counter(), Counter()
            grids, encode = draft.grids.grids(), draft.encode(self.vocab)
            for record in draft.records:
                sample = record.reject or read_record(self._sample, record, grids, stage, encode)
                if isinstance(sample, Reject):
                    streaks[stage].add(record.index, sample)
                    rejects.append(sample.line(record.index))
                    continue
                streaks[stage].add(record.index, None)
                samples.append(sample)
                kinds[kind_of(*sample, self.vocab)] += 1
                crops.update(f"{width}x{height}" for width, height in record.sizes)
            settings, out = self.settings[stage], self.stages[stage].out
            if (counted := len(samples) + len(rejects)) != len(settings.span(shard)):
                raise AssertionError(
                    f"{out}: {counted} of the {len(settings.span(shard))} records of shard {shard} were counted"
                )
            write_shard(StorageFolder(out), settings, shard, samples, rejects, kinds, crops)
            if len(rejects) > len(samples) and settings.shards > 1:
                file = settings.file(shard, "*")
                meter.print_line(
                    f"{out}: {len(rejects)} of {counted} records of shard {shard} were rejected, the first because "
                    f"{rejects[0]['reason']}; if that has passed, delete {file} and start again"
                )

    def _sample(
        self,
        record: _DraftedRecord,
        grids: Mapping[Hashable, np.ndarray],
        stage: int,
        encode: Callable[[str], list[int]],
    ) -> tuple[np.ndarray, np.ndarray]:
        if record.sample is None:
            pictures = [grids[record.index, number] for number in range(len(record.sizes))]
            tokens, learn = tokenize(record.turns, pictures, self.vocab, encode)
        else:
            tokens, learn = record.sample
        if not learn[1:].any():
            raise InputError("nothing in the record is learned: it has no answer")
        limit = self.settings[stage].max_tokens
        if limit is not None and len(tokens) > limit:
            raise InputError(f"the record takes {len(tokens)} tokens, and at most {limit} were allowed")
        return tokens, learn


def _bytes_of(stored: StoredRecord | StoredTokens | Reject | None) -> int:
    return stored.size if isinstance(stored, StoredRecord | StoredTokens) else 0


def crop_size(image_size: tuple[int, int], sizes: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """The crop (width, height), in px, of an image: its own size when that is one of ``sizes``, else layout.best_crop.

    With sizes of several areas best_crop alone would enlarge the image to the largest size of its aspect ratio.
    """
    return image_size if image_size in sizes else layout.best_crop(image_size, list(sizes))


def kind_of(tokens: np.ndarray, learn: np.ndarray, vocab: Vocab) -> str:
    """What a sample teaches: "text" without images, "text to image" if all are learned, "image to text" if none is, or "mixed"."""
    learned = learn[tokens == vocab.boi]
    if len(learned) == 0:
        return "text"
    return "text to image" if learned.all() else "mixed" if learned.any() else "image to text"
