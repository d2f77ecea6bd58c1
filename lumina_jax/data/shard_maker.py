"""Source records -> whole shards of every stage: each record read and decoded once, cropped, VQ-encoded and tokenized."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import grain
import numpy as np

from lumina_jax import layout
from lumina_jax.conversation import Turn, texts, tokenize
from lumina_jax.data.encode import Encoder, GridEncoder
from lumina_jax.data.shard_writer import write_shard
from lumina_jax.data.shards import Settings
from lumina_jax.data.sources import Record, Source
from lumina_jax.errors import InputError
from lumina_jax.pictures import pixels
from lumina_jax.progress import ProgressDisplay
from lumina_jax.storage import StorageFolder
from lumina_jax.vocab import Vocab

BAD_RECORD = (ValueError, OSError)
BLOCK = 16
"""Records that a thread reads at a time."""


@dataclass(frozen=True)
class Stage:
    """A folder of tokens to write: the ``sizes`` (width, height) its images are cropped to, and its longest sample."""

    out: str | Path
    sizes: Sequence[tuple[int, int]]
    max_tokens: int | None = None


@dataclass(frozen=True)
class _View:
    """A record as a stage sees it: its turns and its crops u8[Y X 3], or the reason why it is rejected."""

    turns: list[Turn] = field(default_factory=list)
    crops: list[np.ndarray] = field(default_factory=list)
    reason: str | None = None


class _Draft:
    """A shard of one stage in the making."""

    def __init__(self, encoder: Encoder):
        self.grids = GridEncoder(encoder)
        self.records: list[tuple[int, list[Turn], list[tuple[int, int]], str | None]] = []

    def add(self, index: int, view: _View) -> None:
        for number, crop in enumerate(view.crops):
            self.grids.add((index, number), crop)
        self.records.append((index, view.turns, [crop.shape[1::-1] for crop in view.crops], view.reason))

    def texts(self, vocab: Vocab) -> dict[str, list[int]]:
        """The ids of every text of the records."""
        found: list[str] = []
        for _, turns, sizes, reason in self.records:
            if reason is None:
                found += texts(turns, len(sizes))
        return vocab.encode_all(found)


@dataclass(frozen=True)
class Maker:
    """What makes shards. ``settings`` are those of each of the ``stages``, which agree in all but their sizes and limits."""

    source: Source
    vocab: Vocab
    encoder: Encoder
    stages: Sequence[Stage]
    settings: Sequence[Settings]
    threads: int

    def make(self, todo: Mapping[int, Sequence[int]], meter: ProgressDisplay) -> None:
        """Writes each shard of ``todo`` for the stages it is wanted in (their numbers).

        A shard is a pure function of its number, its stage and what was given at the start. While it is tokenized and written
        the next is read and encoded already.
        """
        with ThreadPoolExecutor(1) as writer:
            writing: Future[None] | None = None
            for shard, drafts in self._drafts(todo, meter):
                if writing is not None:
                    writing.result()
                writing = writer.submit(self._write, shard, drafts, meter)
            if writing is not None:
                writing.result()

    def _drafts(
        self, todo: Mapping[int, Sequence[int]], meter: ProgressDisplay
    ) -> Iterator[tuple[int, dict[int, _Draft]]]:
        """(shard, {stage: draft}) of each shard, all of its images on their way to the devices."""
        shards, per_shard = list(todo), -(-self.settings[0].shard_records // BLOCK)

        def read(number: int) -> list[tuple[int, list[_View]]]:
            shard, place = shards[number // per_shard], number % per_shard * BLOCK
            return [(i, self._views(i, todo[shard])) for i in self.settings[0].span(shard)[place : place + BLOCK]]

        blocks = grain.MapDataset.range(len(shards) * per_shard).map(read)
        ahead = iter(blocks.to_iter_dataset(grain.ReadOptions(self.threads, 2 * self.threads)))
        for shard in shards:
            drafts = {stage: _Draft(self.encoder) for stage in todo[shard]}
            for _ in range(per_shard):
                block = next(ahead)
                for index, views in block:
                    for draft, view in zip(drafts.values(), views, strict=True):
                        draft.add(index, view)
                meter.advance(len(block))
            for draft in drafts.values():
                draft.grids.flush()
            yield shard, drafts

    def _views(self, index: int, stages: Sequence[int]) -> list[_View]:
        try:
            record = self.source[index]
        except BAD_RECORD as error:
            return [_View(reason=_reason(error))] * len(stages)
        return [self._view(record, index, self.stages[stage].sizes, self.settings[stage].seed) for stage in stages]

    def _view(self, record: Record, index: int, sizes: Sequence[tuple[int, int]], seed: int) -> _View:
        try:
            chosen = [crop_size(image.size, sizes) for image in record.images]
            # A photo and its depth, or a picture and its edit, are cut at the same place: their pixels stay over each other.
            first: dict[tuple[int, int], int] = {}
            draws = [first.setdefault(image.size, number) for number, image in enumerate(record.images)]
            crops = [
                np.asarray(pixels.whiten(pixels.random_crop(image, size, np.random.default_rng([seed, index, draw]))))
                for image, size, draw in zip(record.images, chosen, draws, strict=True)
            ]
            return _View(record.conversation(chosen), crops)
        except BAD_RECORD as error:
            return _View(reason=_reason(error))

    def _write(self, shard: int, drafts: dict[int, _Draft], meter: ProgressDisplay) -> None:
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
                    rejects.append({"index": index, "reason": _reason(error)})
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
        most = self.settings[stage].max_tokens
        if most is not None and len(tokens) > most:
            raise InputError(f"the record takes {len(tokens)} tokens, and at most {most} were allowed")
        return tokens, learn


def crop_size(image_size: tuple[int, int], sizes: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """The crop (width, height) of an image: none when it has one of ``sizes`` already, else layout.best_crop.

    Where sizes of several areas stand together, best_crop would enlarge a picture to the largest of its aspect ratio.
    """
    return image_size if image_size in sizes else layout.best_crop(image_size, list(sizes))


def kind_of(tokens: np.ndarray, learn: np.ndarray, vocab: Vocab) -> str:
    """What a sample teaches, by where its images stand: "text", "text to image", "image to text" or "mixed"."""
    learned = learn[tokens == vocab.boi]
    if len(learned) == 0:
        return "text"
    return "text to image" if learned.all() else "mixed" if learned.any() else "image to text"


def _reason(error: Exception) -> str:
    return str(error) or repr(error)
