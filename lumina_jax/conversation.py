"""Turns of text and images -> one token sequence, and which of its tokens are learned.

Source: FlexARItemProcessor and its base class (item_processor.py of the original).
"""

from collections.abc import Iterator, Sequence

import numpy as np

from lumina_jax.layout import encode_grid, images_in
from lumina_jax.vocab import END_OF_TURN, IMAGE_SYMBOL, Vocab

Turn = tuple[str, str | None]
"""What the human says and what the assistant answers; None asks for the answer."""


def image_prompt(width: int, height: int, text: str) -> str:
    """The resolution-aware request for an image of ``width`` x ``height`` pixels (paper section 3.1)."""
    return f"Generate an image of {width}x{height} according to the following prompt:\n{text}"


def tokenize(turns: Sequence[Turn], grids: Sequence[np.ndarray], vocab: Vocab) -> tuple[np.ndarray, np.ndarray]:
    """A conversation -> tokens i32[n] and learn bool[n].

    The tokens are the begin token, then each message in turn with an end-of-turn behind it; what is learned is the answers,
    their images and their ends of turn included. Each ``<|image|>`` in the texts gives its place to the next of ``grids``
    (image codes i32[R C]); where no text holds one, all images go before the first human message. After an answer of
    None, allowed in the last turn only, the sequence ends with the human message: a prompt to generate from.

    Raises ValueError when the symbols and the grids differ in number, or an answer other than the last is None.
    """
    if not turns:
        raise ValueError("the conversation has no turns; it needs at least one human message")
    for number, (_, answer) in enumerate(turns[:-1], start=1):
        if answer is None:
            raise ValueError(
                f"turn {number} of {len(turns)} has no answer; only the last may lack one: answer or drop it"
            )
    messages = [message for turn in turns for message in turn if message is not None]
    if not any(IMAGE_SYMBOL in message for message in messages):
        messages[0] = f"{IMAGE_SYMBOL} " * len(grids) + messages[0]
    pieces = [np.array(vocab.encode(message + END_OF_TURN), np.int32) for message in messages]
    symbols = sum(int((piece == vocab.image_symbol).sum()) for piece in pieces)
    if symbols != len(grids):
        raise ValueError(
            f"the texts hold {symbols} {IMAGE_SYMBOL}, but {len(grids)} images are given; make the numbers equal, "
            f"or leave {IMAGE_SYMBOL} out of every text to put all images first"
        )
    images = iter(grids)
    pieces = [_place_images(piece, images, vocab) for piece in pieces]
    tokens = np.concatenate([np.array([vocab.bos], np.int32), *pieces])
    # Human messages and answers alternate, so every second piece is an answer.
    learned = [np.full(len(piece), index % 2 == 1) for index, piece in enumerate(pieces)]
    return tokens, np.concatenate([np.array([False]), *learned])


def drop_context(tokens: np.ndarray, learn: np.ndarray, vocab: Vocab) -> tuple[np.ndarray, np.ndarray]:
    """A sample whose only image ends its answer -> that image alone, begin-image to end-image, all of it learned.

    This is the context that guidance subtracts when sampling (paper section 3.1). Any other sample comes back unchanged.
    """
    found = images_in(tokens, vocab)
    if len(found) != 1 or found[0].stop != len(tokens) - 1 or tokens[-1] != vocab.end_of_turn:
        return tokens, learn
    image = found[0]
    if not learn[image].all():
        return tokens, learn
    return tokens[image], np.ones(image.stop - image.start, bool)


def _place_images(piece: np.ndarray, images: Iterator[np.ndarray], vocab: Vocab) -> np.ndarray:
    """``piece`` with each image symbol replaced by the tokens of the next grid of the iterator ``images``."""
    texts = np.split(piece, np.flatnonzero(piece == vocab.image_symbol))
    parts = [texts[0]]
    for text in texts[1:]:
        parts += [encode_grid(next(images), vocab), text[1:]]
    return np.concatenate(parts)
