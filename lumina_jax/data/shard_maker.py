"""Source records -> complete shards of every stage. Each record is read and decoded once, then cropped, encoded, tokenized."""

import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from lumina_jax import layout
from lumina_jax.conversation import Turn, texts, tokenize
from lumina_jax.data.ahead import read_ahead
from lumina_jax.data.encode import BatchEncoder, GridEncoder
from lumina_jax.data.shard_writer import write_shard
from lumina_jax.data.shards import Settings
from lumina_jax.data.sources.fetch import DEFAULT_LIMITS, FetchLimits, fetching_within
from lumina_jax.data.sources.record import BAD_RECORD, Record, Source, StoredRecord, StoredSource, reason_of
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
    """A record cropped for a stage: its turns and crops u8[Y X 3], or the reason why it is rejected."""

    turns: list[Turn] = field(default_factory=list)
    crops: list[np.ndarray] = field(default_factory=list)
    reason: str | None = None


class _ShardDraft:
    """A shard of one stage while its images are encoded."""

    def __init__(self, encoder: BatchEncoder):
        self.grids = GridEncoder(encoder)
        self.records: list[tuple[int, list[Turn], list[tuple[int, int]], str | None]] = []

    def add(self, index: int, record: _CroppedRecord) -> None:
        for number, crop in enumerate(record.crops):
            self.grids.add((index, number), crop)
        self.records.append((index, record.turns, [crop.shape[1::-1] for crop in record.crops], record.reason))

    def texts(self, vocab: Vocab) -> dict[str, list[int]]:
        """Every text of the good records -> its token ids."""
        good = (texts(turns, len(sizes)) for _, turns, sizes, reason in self.records if reason is None)
        return vocab.encode_all(list(itertools.chain.from_iterable(good)))


@dataclass(frozen=True)
class ShardMaker:
    """Makes shards of all ``stages`` at once. Their ``settings`` differ only in crop sizes and token limits."""

    source: Source
    vocab: Vocab
    encoder: BatchEncoder
    stages: Sequence[PretokenizeStage]
    settings: Sequence[Settings]
    threads: int
    fetchers: int = FETCHERS
    limits: FetchLimits = DEFAULT_LIMITS

    def make(self, todo: Mapping[int, Sequence[int]], meter: ProgressDisplay) -> None:
        """Writes the shards of ``todo``: shard -> the numbers of the stages that lack it.

        A shard is a pure function of its number, its stage and this object's fields. While one is tokenized and written the
        next is read and encoded.
        """
        with ThreadPoolExecutor(1) as writer:
            writing: Future[None] = writer.submit(lambda: None)
            for shard, drafts in self._drafts(todo, meter):
                writing.result()
                writing = writer.submit(self._write, shard, drafts, meter)
            writing.result()

    def _drafts(
        self, todo: Mapping[int, Sequence[int]], meter: ProgressDisplay
    ) -> Iterator[tuple[int, dict[int, _ShardDraft]]]:
        """(shard, {stage: draft}) of each shard, with all of its images given to the devices."""
        numbers = ((shard, index) for shard in todo for index in self.settings[0].span(shard))
        ahead = read_ahead(
            numbers,
            lambda number: self._fetch(number[1]),
            lambda number, stored: self._crop(number[1], stored, todo[number[0]]),
            _bytes_of,
            self.fetchers,
            self.threads,
        )
        for shard in todo:
            drafts = {stage: _ShardDraft(self.encoder) for stage in todo[shard]}
            for (_, index), records in itertools.islice(ahead, len(self.settings[0].span(shard))):
                for draft, record in zip(drafts.values(), records, strict=True):
                    draft.add(index, record)
                meter.advance(1)
            for draft in drafts.values():
                draft.grids.flush()
            yield shard, drafts

    def _fetch(self, index: int) -> StoredRecord | str | None:
        """Record ``index`` with its image files, or why it is bad; None when the source has no files to fetch."""
        if not isinstance(self.source, StoredSource):
            return None
        try:
            with fetching_within(self.limits):
                return self.source.stored(index)
        except BAD_RECORD as error:
            return reason_of(error)

    def _crop(self, index: int, stored: StoredRecord | str | None, stages: Sequence[int]) -> list[_CroppedRecord]:
        """Record ``index`` as each of ``stages`` crops it, given what _fetch returned."""
        if isinstance(stored, str):
            return [_CroppedRecord(reason=stored)] * len(stages)
        try:
            record = stored.decode() if stored else self.source[index]
        except BAD_RECORD as error:
            return [_CroppedRecord(reason=reason_of(error))] * len(stages)
        return [self._crop_to(record, index, self.stages[stage].sizes, self.settings[stage].seed) for stage in stages]

    def _crop_to(self, record: Record, index: int, sizes: Sequence[tuple[int, int]], seed: int) -> _CroppedRecord:
        try:
            crop_sizes = [crop_size(image.size, sizes) for image in record.images]
            # Images of one size, such as a photo and its depth, share a draw, so that their pixels stay aligned.
            first: dict[tuple[int, int], int] = {}
            draws = [first.setdefault(image.size, number) for number, image in enumerate(record.images)]
            crops = [
                np.asarray(pixels.whiten(pixels.random_crop(image, size, np.random.default_rng([seed, index, draw]))))
                for image, size, draw in zip(record.images, crop_sizes, draws, strict=True)
            ]
            return _CroppedRecord(record.conversation(crop_sizes), crops)
        except BAD_RECORD as error:
            return _CroppedRecord(reason=reason_of(error))

    def _write(self, shard: int, drafts: dict[int, _ShardDraft], meter: ProgressDisplay) -> None:
        for stage, draft in drafts.items():
            samples, rejects, kinds, crops = [], [], Counter(), Counter()
            grids, encoded = draft.grids.grids(), draft.texts(self.vocab)
            for index, turns, sizes, reason in draft.records:
                try:
                    if reason is not None:
                        raise InputError(reason)
                    pictures = [grids[index, number] for number in range(len(sizes))]
                    sample = self._sample(turns, pictures, stage, encoded.__getitem__)
                except ValueError as error:
                    rejects.append({"index": index, "reason": reason_of(error)})
                    continue
                samples.append(sample)
                kinds[kind_of(*sample, self.vocab)] += 1
                crops.update(f"{width}x{height}" for width, height in sizes)
            settings, out = self.settings[stage], self.stages[stage].out
            write_shard(StorageFolder(out), settings, shard, samples, rejects, kinds, crops)
            if len(rejects) > len(samples):
                file = settings.file(shard, "*")
                meter.print_line(
                    f"{out}: {len(rejects)} of {len(rejects) + len(samples)} records of shard {shard} were rejected, the "
                    f"first because {rejects[0]['reason']}; if that has passed, delete {file} and start again"
                )

    def _sample(
        self, turns: list[Turn], grids: list[np.ndarray], stage: int, encode: Callable[[str], list[int]]
    ) -> tuple[np.ndarray, np.ndarray]:
        tokens, learn = tokenize(turns, grids, self.vocab, encode)
        if not learn[1:].any():
            raise InputError("nothing in the record is learned: it has no answer")
        limit = self.settings[stage].max_tokens
        if limit is not None and len(tokens) > limit:
            raise InputError(f"the record takes {len(tokens)} tokens, and at most {limit} were allowed")
        return tokens, learn


def _bytes_of(stored: StoredRecord | str | None) -> int:
    return sum(len(file.content) for file in stored.files) if isinstance(stored, StoredRecord) else 0


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
