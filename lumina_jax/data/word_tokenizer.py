"""A small word-level tokenizer.json with Chameleon's token names, for training without Chameleon's tokenizer.

It splits text as Chameleon does (white space, single digits, punctuation, words), with two differences that keep prompts short:
each fixed part of a prompt and each known word is one token. Unknown words become bytes, so every text round-trips.
"""

import re
from collections import Counter
from collections.abc import Iterable

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers

from lumina_jax import vocab
from lumina_jax.conversation import TASKS, image_prompt
from lumina_jax.errors import InputError
from lumina_jax.places import Place, place
from lumina_jax.storage import atomic_write

SIZE_UNITS = 16
"""The longest side, in units of data.patch pixels, that has a size token."""

TEMPLATES = tuple(re.split(r"\d+x\d+", image_prompt(1, 1, "")))
"""The text before and after the size in a request for an image: one token each."""

TASK_TEMPLATES = (
    *TEMPLATES,
    *(
        piece
        for name, task in TASKS.items()
        if name != "generate"
        for piece in re.split(r"\{\w+\}|<\|image\|>", task.request)
        if re.search(r"\w", piece)
    ),
)
"""The fixed parts of the requests of all tasks."""


def build(
    codes: int,
    texts: Iterable[str] = (),
    limit: int = 4096,
    size_units: int = SIZE_UNITS,
    templates: tuple[str, ...] = TEMPLATES,
    words: Iterable[str] = (),
) -> Tokenizer:
    """A tokenizer for ``codes`` image codes. Each of ``templates``, the fixed parts of prompts, and of ``words`` is one token.

    So are the ``limit`` most frequent words of ``texts``. Size tokens go up to ``size_units``. Ids in order: general tokens,
    image codes, markers, sizes, the 256 bytes, templates and words, words of the texts.
    """
    if codes < 1:
        raise InputError(f"{codes} image codes; a tokenizer needs at least 1")
    special = [
        *(vocab.BEGIN, "<pad>", "</s>", "<unk>"),
        *(vocab.image_code_name(code) for code in range(codes)),
        *(vocab.END_IMAGE, vocab.BEGIN_IMAGE, vocab.END_OF_TURN, vocab.END_OF_LINE),
        *(vocab.size_name(units) for units in range(1, size_units + 1)),
    ]
    split = _pre_tokenizer(templates)
    names = (*special, *sorted(pre_tokenizers.ByteLevel.alphabet()), *_pieces(split, [*templates, *words]))
    learned = _pieces(split, texts)[:limit]
    ids = {name: number for number, name in enumerate(dict.fromkeys((*names, *learned)))}
    # Without merges a piece is one token if it is in the vocabulary, else one token per byte.
    tokenizer = Tokenizer(models.BPE(vocab=ids, merges=[], ignore_merges=True))
    tokenizer.pre_tokenizer = split
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in special])
    return tokenizer


def save(tokenizer: Tokenizer, folder: str | Place) -> Place:
    """Writes tokenizer.json into ``folder``, which is created if it is missing; returns the file's path."""
    path = place(folder) / vocab.FILE_NAMES[0]
    with atomic_write(path) as temporary:
        tokenizer.save(str(temporary))
    return path


def _pre_tokenizer(templates: tuple[str, ...]) -> pre_tokenizers.PreTokenizer:
    fixed = "|".join(re.escape(template) for template in templates)
    # One pattern instead of Chameleon's chain of splitters, which would split the templates again.
    pattern = Regex(rf"{fixed}|[\t\n]|    |  |\p{{N}}|[\p{{P}}\p{{S}}]| ?\p{{L}}+")
    return pre_tokenizers.Sequence(
        [pre_tokenizers.Split(pattern, "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )


def _pieces(split: pre_tokenizers.PreTokenizer, texts: Iterable[str]) -> list[str]:
    """The pieces of ``texts`` longer than one byte, most frequent first."""
    counts = Counter(piece for text in texts for piece, _ in split.pre_tokenize_str(text) if len(piece) > 1)
    return sorted(counts, key=lambda piece: (-counts[piece], piece))
