"""Records -> shards of tokens: crop, VQ-encode, tokenize, once and for all, resumable after a kill at any moment."""

import hashlib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import grain
import jax
import numpy as np
from PIL import Image

from lumina_jax import layout, pixels
from lumina_jax.config import DataConfig
from lumina_jax.conversation import Turn, tokenize
from lumina_jax.data.meter import Meter
from lumina_jax.data.shards import (
    MANIFEST,
    RECORDS,
    SETTINGS,
    Manifest,
    Settings,
    read_json,
    write_json,
    write_shard,
    write_totals,
)
from lumina_jax.data.sources import Source
from lumina_jax.model.patchvq import PatchVQ
from lumina_jax.vocab import Vocab, size_name

BAD_RECORD = (ValueError, OSError)
PENDING_BATCHES = 16


class ImageTokenizer(Protocol):
    """What VQVAE and PatchVQ have in common."""

    @property
    def stride(self) -> int: ...

    @property
    def codes(self) -> int: ...

    def encode(self, pixels: np.ndarray) -> np.ndarray:
        """f32[B Y X 3] in [-1, 1] -> i32[B R C]."""


def pretokenize(
    source: Source,
    vq: ImageTokenizer,
    vocab: Vocab,
    out: str | Path,
    cfg: DataConfig,
    seed: int,
    shard_records: int = 4096,
    batch: int = 64,
    sizes: Sequence[tuple[int, int]] | None = None,
    progress: bool = True,
) -> Manifest:
    """Writes every record of ``source`` as tokens into the folder ``out`` (its format: data.shards).

    Each image is cropped at random to the best of ``sizes`` (width, height; by default the crop sizes of cfg.size,
    cfg.patch and cfg.max_ratio) and encoded with images of its size, at most ``batch`` at a time. The output is a pure
    function of these arguments: killed at any moment and called again, it redoes at most the shard it was writing and
    ends in the same bytes. A bad record is listed with its reason in rejects.jsonl, never replaced and never fatal.

    A finished folder is left as it is. Raises ValueError when ``out`` was begun with other settings, or when sizes, VQ
    model and tokenizer do not fit together.
    """
    out = Path(out)
    sizes = tuple(sizes or layout.crop_sizes(cfg.size, cfg.patch, cfg.max_ratio))
    _check_fit(sizes, vq, vocab)
    settings = Settings(
        records=len(source),
        source=source.fingerprint,
        tokenizer=vocab.fingerprint,
        vq=vq_fingerprint(vq),
        seed=seed,
        crops=tuple(f"{width}x{height}" for width, height in sizes),
        shard_records=shard_records,
    )
    _begin(out, settings)
    with Meter(f"pretokenize {out}", len(source), progress) as meter:
        if (out / MANIFEST).is_file():
            meter.say(f"{out} is finished already")
            return read_json(out / MANIFEST, Manifest)
        job = _Job(source, vq, vocab, sizes, seed, batch, cfg.threads)
        for shard in range(settings.shards):
            if settings.file(out, shard, RECORDS).is_file():
                meter.skip(len(settings.span(shard)))
            else:
                _make_shard(out, settings, shard, job, meter)
    return write_totals(out, settings)


def crop_size(image_size: tuple[int, int], sizes: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """The crop (width, height) of an image: none when it has one of ``sizes`` already, else layout.best_crop.

    Where sizes of several areas stand together, best_crop would enlarge a picture to the largest of its aspect ratio.
    """
    return image_size if image_size in sizes else layout.best_crop(image_size, list(sizes))


def vq_fingerprint(vq: ImageTokenizer) -> str:
    """16 hex digits that differ between any two VQ models: of the SHA-256 of their weights."""
    arrays = [vq.codebook] if isinstance(vq, PatchVQ) else jax.tree.leaves(vq)
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(np.asarray(array).tobytes())
    return digest.hexdigest()[:16]


def _check_fit(sizes: Sequence[tuple[int, int]], vq: ImageTokenizer, vocab: Vocab) -> None:
    if vq.codes > len(vocab.code_ids):
        raise ValueError(
            f"the VQ model has {vq.codes} codes, but {vocab.source} has tokens for {len(vocab.code_ids)}; "
            "use a tokenizer made for this VQ model"
        )
    unit = layout.CODES_PER_UNIT * vq.stride
    for edge in sorted({edge for size in sizes for edge in size}):
        if edge < unit or edge % unit:
            raise ValueError(
                f"crops with an edge of {edge} px, but a size token of this VQ model stands for {unit} px; "
                f"set data.patch to a multiple of {unit}"
            )
        if not vocab.has(size_name(edge // unit)):
            raise ValueError(
                f"crops with an edge of {edge} px need the token {size_name(edge // unit)}, which {vocab.source} lacks; "
                "choose a smaller data.size or data.max_ratio"
            )


def _begin(out: Path, settings: Settings) -> None:
    """Claims the folder for ``settings``; ValueError when it belongs to others."""
    if settings.records == 0:
        raise ValueError("the source has no records; there is nothing to pretokenize")
    if (out / SETTINGS).is_file():
        if differences := read_json(out / SETTINGS, Settings).differences(settings):
            raise ValueError(
                f"{out} was begun with {', '.join(differences)}; choose another folder, or delete this one to make it anew"
            )
        return
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / SETTINGS, settings)


@dataclass(frozen=True)
class _Cropped:
    """A record on its way: its turns and its crops, or the reason why it is rejected."""

    index: int
    turns: list[Turn] = field(default_factory=list)
    crops: list[Image.Image] = field(default_factory=list)
    reason: str | None = None


@dataclass(frozen=True)
class _Job:
    """What turns source records into samples."""

    source: Source
    vq: ImageTokenizer
    vocab: Vocab
    sizes: Sequence[tuple[int, int]]
    seed: int
    batch: int
    threads: int

    def crop(self, index: int) -> _Cropped:
        try:
            record = self.source[index]
            sizes = [crop_size(image.size, self.sizes) for image in record.images]
            crops = [
                pixels.whiten(pixels.random_crop(image, size, np.random.default_rng([self.seed, index, number])))
                for number, (image, size) in enumerate(zip(record.images, sizes, strict=True))
            ]
            return _Cropped(index, record.conversation(sizes), crops)
        except BAD_RECORD as error:
            return _Cropped(index, reason=str(error) or repr(error))

    def crop_all(self, span: range) -> Iterator[list[_Cropped]]:
        """The records of ``span`` in order, in blocks read ahead by ``threads`` threads."""
        blocks = grain.MapDataset.range(span.start, span.stop, self.batch)
        read = blocks.map(lambda first: [self.crop(i) for i in range(first, min(first + self.batch, span.stop))])
        return iter(read.to_iter_dataset(grain.ReadOptions(self.threads, 2 * self.threads)))

    def sample(self, turns: list[Turn], grids: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        tokens, learn = tokenize(turns, grids, self.vocab)
        if not learn[1:].any():
            raise ValueError("nothing in the record is learned: it has no answer")
        return tokens, learn


class _GridEncoder:
    """Encodes images in batches of one size, whatever order the sizes come in.

    Which images share a batch depends on their order alone: redoing a shard gives the same codes to the last bit.
    """

    def __init__(self, vq: ImageTokenizer, batch: int):
        self.vq, self.batch = vq, batch
        self.grids: dict[tuple[int, int], np.ndarray] = {}
        self._pending: dict[tuple[int, int], list[tuple[tuple[int, int], Image.Image]]] = defaultdict(list)

    def add(self, key: tuple[int, int], image: Image.Image) -> None:
        """Takes an image; its grid i32[R C] will stand under ``key``, after :meth:`finish` at the latest."""
        self._pending[image.size].append((key, image))
        if len(self._pending[image.size]) == self.batch:
            self._encode(image.size)
        elif sum(map(len, self._pending.values())) > PENDING_BATCHES * self.batch:
            self._encode(max(self._pending, key=lambda size: len(self._pending[size])))

    def finish(self) -> dict[tuple[int, int], np.ndarray]:
        """All grids by key."""
        for size in list(self._pending):
            self._encode(size)
        return self.grids

    def _encode(self, size: tuple[int, int]) -> None:
        group = self._pending.pop(size)
        while group:
            # Powers of two: what is left over compiles a handful of shapes per size, not one for every number.
            count = self.batch if len(group) == self.batch else 1 << (len(group).bit_length() - 1)
            now, group = group[:count], group[count:]
            codes = self.vq.encode(np.stack([pixels.to_pixels(image) for _, image in now]))
            self.grids.update(zip([key for key, _ in now], np.asarray(codes), strict=True))


def _make_shard(out: Path, settings: Settings, shard: int, job: _Job, meter: Meter) -> None:
    encoder, read = _GridEncoder(job.vq, job.batch), []
    for block in job.crop_all(settings.span(shard)):
        for record in block:
            for number, image in enumerate(record.crops):
                encoder.add((record.index, number), image)
            read.append((record.index, record.turns, len(record.crops), record.reason))
        meter.advance(len(block))
    grids = encoder.finish()

    kept, rejects = [], []
    for index, turns, images, reason in read:
        try:
            if reason is not None:
                raise ValueError(reason)
            kept.append(job.sample(turns, [grids[index, number] for number in range(images)]))
        except ValueError as error:
            rejects.append((index, str(error)))

    write_shard(out, settings, shard, kept, rejects)
