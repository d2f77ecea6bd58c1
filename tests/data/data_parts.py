"""A byte-level vocabulary, an image tokenizer and sources of records, small enough to tokenize in milliseconds."""

import numpy as np
from PIL import Image
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from lumina_jax.config import DataConfig
from lumina_jax.data.sources import Record
from lumina_jax.model.patchvq import PatchVQ
from lumina_jax.vocab import (
    BEGIN,
    BEGIN_IMAGE,
    END_IMAGE,
    END_OF_LINE,
    END_OF_TURN,
    IMAGE_SYMBOL,
    Vocab,
    image_code_name,
    size_name,
)

STRIDE, CODES, SIZES = 4, 16, [(16, 16), (24, 8), (8, 24)]
MARKERS = (BEGIN, BEGIN_IMAGE, END_IMAGE, END_OF_LINE, END_OF_TURN, IMAGE_SYMBOL)
CONFIG = DataConfig(size=16, patch=8, buckets=(96, 160), batch=8, threads=1)


def tiny_vocab(extra: str = "<extra>") -> Vocab:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    names = [
        *MARKERS,
        *(image_code_name(code) for code in range(CODES)),
        *(size_name(n) for n in range(1, 9)),
        extra,
    ]
    tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in names])
    return Vocab(tokenizer, "tiny")


def tiny_vq(seed: int = 0) -> PatchVQ:
    return PatchVQ(np.random.default_rng(seed).integers(0, 256, (CODES, STRIDE, STRIDE, 3), np.uint8))


def noise(size: tuple[int, int], seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8))


class NoiseSource:
    """Captioned noise at several aspect ratios, text without images, and a bad record wherever ``bad`` says."""

    fingerprint = "noise"

    def __init__(self, records: int = 50, bad: tuple[int, ...] = ()):
        self.records, self.bad, self.reads = records, bad, 0

    def __len__(self) -> int:
        return self.records

    def __getitem__(self, index: int) -> Record:
        self.reads += 1
        if index in self.bad:
            raise OSError(f"record {index} is bad")
        if index % 5 == 4:
            return Record([(f"question {index}", "answer " * (index % 4 + 1))], [])
        size = [(20, 20), (40, 14), (10, 30)][index % 3]
        return Record([], [noise(size, index)], caption=f"noise {index}")
