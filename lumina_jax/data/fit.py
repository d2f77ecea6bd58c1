"""Fits a PatchVQ codebook and a word tokenizer to a source, in seconds, for training without Chameleon's weights."""

from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

import numpy as np

from lumina_jax import layout
from lumina_jax.config import DataConfig, VQConfig
from lumina_jax.data.shard_maker import crop_size
from lumina_jax.data.sources.record import Reject, Source, read_record
from lumina_jax.data.word_tokenizer import build, save
from lumina_jax.model.patchvq import PatchVQ
from lumina_jax.pictures import pixels

MAX_RECORDS = 20_000
REPORT_PICTURES = 64


def fit(
    source: Source, vq: VQConfig, data: DataConfig, seed: int = 0, sizes: Sequence[tuple[int, int]] | None = None
) -> dict[str, float]:
    """Writes a PatchVQ of at most ``vq.codes`` codes to ``vq.path`` and a tokenizer.json into the folder ``data.tokenizer``.

    Reads up to MAX_RECORDS records spread evenly over ``source``: their texts, and their pictures cropped as pretokenize crops
    them, to ``sizes`` (default: those of ``data``). Returns PatchVQ.report on the first REPORT_PICTURES pictures.
    """
    sizes = sizes or layout.crop_sizes(data.size, data.patch, data.max_ratio)
    indices = np.unique(np.linspace(0, len(source) - 1, MAX_RECORDS).astype(int))
    texts: list[str] = []

    def crops() -> Iterator[np.ndarray]:
        for index in indices:
            record = read_record(source.__getitem__, int(index))
            if isinstance(record, Reject):
                continue  # pretokenize lists it among the rejects, with the reason
            texts.extend(message for turn in record.conversation([sizes[0]]) for message in turn if message)
            for number, image in enumerate(record.images):
                size = crop_size(image.size, sizes)
                rng = np.random.default_rng([seed, int(index), number])
                yield np.asarray(pixels.whiten(pixels.random_crop(image, size, rng)))

    codebook = PatchVQ.fit(crops(), vq.codes, seed=seed)
    codebook.save(vq.path)
    units = max(max(size) for size in sizes) // data.patch
    save(build(codebook.codes, texts, size_units=units), Path(data.tokenizer))
    return codebook.report(list(islice(crops(), REPORT_PICTURES)))
