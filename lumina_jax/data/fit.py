"""A codebook and a tokenizer for pictures and words one has, in seconds, when no Chameleon weights are at hand."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from lumina_jax import layout
from lumina_jax.config import DataConfig, VQConfig
from lumina_jax.data.shard_maker import crop_size
from lumina_jax.data.sources import Source
from lumina_jax.data.word_tokenizer import build, save
from lumina_jax.model.patchvq import PatchVQ
from lumina_jax.pictures import pixels

MOST_PICTURES = 20_000


def fit(
    source: Source, vq: VQConfig, data: DataConfig, seed: int = 0, sizes: Sequence[tuple[int, int]] | None = None
) -> dict[str, float]:
    """Writes ``vq.path`` (a PatchVQ of at most ``vq.codes`` codes) and tokenizer.json into ``data.tokenizer``.

    Looks at up to MOST_PICTURES records spread over ``source``, cropped as pretokenizing will crop them, and at their
    texts. Returns the codebook's report on the first of them.
    """
    sizes = sizes or layout.crop_sizes(data.size, data.patch, data.max_ratio)
    indices = np.unique(np.linspace(0, len(source) - 1, MOST_PICTURES).astype(int))
    texts: list[str] = []

    def crops() -> Iterator[np.ndarray]:
        for index in indices:
            try:
                record = source[int(index)]
            except (ValueError, OSError):
                continue  # pretokenize lists it among the rejects, with the reason
            texts.extend(part for turn in record.conversation([sizes[0]]) for part in turn if part)
            for number, image in enumerate(record.images):
                size = crop_size(image.size, sizes)
                rng = np.random.default_rng([seed, int(index), number])
                yield np.asarray(pixels.whiten(pixels.random_crop(image, size, rng)))

    codebook = PatchVQ.fit(crops(), vq.codes, seed=seed)
    codebook.save(vq.path)
    units = max(max(size) for size in sizes) // data.patch
    save(build(codebook.codes, texts, size_units=units), Path(data.tokenizer))
    texts.clear()
    return codebook.report(list(_some(crops())))


def _some(pictures: Iterator[np.ndarray], most: int = 64) -> Iterator[np.ndarray]:
    for _, picture in zip(range(most), pictures, strict=False):
        yield picture
