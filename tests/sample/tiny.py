"""A vocabulary of 40 tokens and a random model of it, for the laws of sampling."""

import numpy as np
from flax import nnx
from tokenizers import Tokenizer, models

from lumina_jax.config import ModelConfig
from lumina_jax.model.chameleon import Chameleon
from lumina_jax.sample import decode
from lumina_jax.sample.request import lay_out
from lumina_jax.vocab import BEGIN, BEGIN_IMAGE, END_IMAGE, END_OF_LINE, END_OF_TURN, Vocab, image_code_name, size_name

CODES, SIZES, WORDS = 12, 3, 14
MARKERS = (BEGIN, BEGIN_IMAGE, END_IMAGE, END_OF_LINE, END_OF_TURN)


def tiny_vocab() -> Vocab:
    names = [
        *MARKERS,
        *(image_code_name(code) for code in range(CODES)),
        *(size_name(units) for units in range(1, SIZES + 1)),
        *(f"w{number}" for number in range(WORDS)),
    ]
    return Vocab(Tokenizer(models.WordLevel({name: index for index, name in enumerate(names)}, unk_token=BEGIN)))


def tiny_model(vocab: int = 40) -> Chameleon:
    """``vocab`` may differ from the tokenizer's 35: a model may know more tokens or fewer."""
    cfg = ModelConfig(vocab=vocab, width=16, layers=2, heads=4, kv_heads=2, head_dim=8, mlp=24, dropout=0.0)
    return Chameleon(cfg, nnx.Rngs(0))


def answers(model, prompts, key, cfg, vocab, sizes=None, keys=None) -> tuple[list[np.ndarray], np.ndarray]:
    """What generate returns, and the number of passes each answer took."""
    return decode.answers(model, lay_out(prompts, key, vocab, model.cfg.vocab, sizes, keys), cfg, vocab)
