"""Turns of text and images -> one token sequence, and which of its tokens are learned.

Source: FlexARItemProcessor and its base class (item_processor.py of the original).
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from lumina_jax.config import SampleConfig
from lumina_jax.errors import InputError
from lumina_jax.layout import encode_grid, images_in
from lumina_jax.vocab import IMAGE_SYMBOL, Vocab

Turn = tuple[str, str | None]
"""What the human says and what the assistant answers; None asks for the answer."""


@dataclass(frozen=True)
class Task:
    """A capability: the words that ask for it (paper Figures 12 to 16), and how its answer is sampled by default."""

    request: str
    guidance: float
    image_top_k: int


TASKS = {
    "generate": Task("Generate an image of {width}x{height} according to the following prompt:\n{text}", 4.0, 2000),
    "segmentation": Task("Semantic segmentation. <|image|>", 1.0, 200),
    # Released checkpoints were served with this spelling (demo_image2image.py).
    "segmentation_as_served": Task("Segmentic segmentation. <|image|>", 1.0, 200),
    "depth": Task("Depth estimation. <|image|>", 1.0, 200),
    "normal": Task("Surface normal estimation. <|image|>", 1.0, 200),
    "pose": Task("Human pose estimation. <|image|>", 1.0, 200),
    "detect": Task("Detect: {text}. <|image|>", 1.0, 200),
    "condition": Task(
        "Generate an image according to the provided image, and according to the following caption:\n{text} <|image|>",
        1.0,
        200,
    ),
    "edit": Task("{text} {images}", 4.0, 2000),
    "refine": Task("No edit. <|image|>", 1.0, 200),
    "describe": Task("Describe this image in detail.<|image|>", 4.0, 2000),
    "question": Task("{images} {text}", 4.0, 2000),
}
"""Every task by name. {text} is what the user says; {images} an ``<|image|>`` for each of the images it is about, none in a
later turn of a dialog, whose images stand in the earlier ones."""

SEAM = "\ufdd0"
"""A noncharacter, which Unicode keeps for use inside programs: messages are cut at it, and it is no part of the text."""


def literal(text: str) -> str:
    """``text`` in which ``<|image|>`` gives its place to no image: tokenize reads it as the letters it is written with."""
    return text.replace(SEAM, "").replace(IMAGE_SYMBOL, f"{IMAGE_SYMBOL[0]}{SEAM}{IMAGE_SYMBOL[1:]}")


def image_prompt(width: int, height: int, text: str) -> str:
    """The resolution-aware request for an image of ``width`` x ``height`` pixels (paper section 3.1); ``text`` is literal."""
    return TASKS["generate"].request.format(width=width, height=height, text=literal(text))


def task_prompt(task: str, text: str = "", images: int = 1) -> str:
    """What to say for one of TASKS other than "generate", which also wants a size (:func:`image_prompt`); ``text`` is literal.

    The message holds an ``<|image|>`` for each image it speaks of: one, or ``images`` for a question or an edit.
    Raises ValueError for an unknown task, and for a text that is missing or has no place.
    """
    known = [name for name in TASKS if name != "generate"]
    if task not in known:
        raise InputError(f"no task {task!r}; the tasks are {', '.join(known)}")
    request = TASKS[task].request
    if bool(text.strip()) != ("{text}" in request):
        raise InputError(f"the task {task!r} takes {'a' if '{text}' in request else 'no'} text, not {text!r}")
    return request.format(text=literal(text), images=" ".join([IMAGE_SYMBOL] * images)).strip(" ")


def served(task: str, cfg: SampleConfig) -> SampleConfig:
    """``cfg`` with the guidance and the image top-k that one of TASKS is served with."""
    return replace(cfg, guidance=TASKS[task].guidance, image_top_k=TASKS[task].image_top_k)


def check_symbols(messages: Sequence[str], images: int) -> None:
    """Raises ValueError when ``messages`` hold image symbols, and not as many as there are ``images``."""
    symbols = sum(message.count(IMAGE_SYMBOL) for message in messages)
    if symbols and symbols != images:
        raise InputError(
            f"the texts hold {symbols} {IMAGE_SYMBOL}, but {images} images are given; make the numbers equal, "
            f"or leave {IMAGE_SYMBOL} out of every text to put all images first"
        )


def tokenize(
    turns: Sequence[Turn],
    grids: Sequence[np.ndarray],
    vocab: Vocab,
    encode: Callable[[str], list[int]] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """A conversation -> tokens i32[n] and learn bool[n].

    The tokens are the begin token, then each message in turn with an end-of-turn behind it; what is learned is the answers,
    their images and their ends of turn included. Each ``<|image|>`` in the texts gives its place to the next of ``grids``
    (image codes i32[R C]); where no text holds one, all images go before the first human message. After an answer of
    None, allowed in the last turn only, the sequence ends with the human message: a prompt to generate from.

    No text can forge a token: the name of a special token other than ``<|image|>`` is text like any other, and so is
    ``<|image|>`` in what went through :func:`literal`. ``encode`` knows the ids of :func:`texts` already.

    Raises ValueError when the symbols and the grids differ in number, or an answer other than the last is None.
    """
    if not turns:
        raise InputError("the conversation has no turns; it needs at least one human message")
    for number, (_, answer) in enumerate(turns[:-1], start=1):
        if answer is None:
            raise InputError(
                f"turn {number} of {len(turns)} has no answer; only the last may lack one: answer or drop it"
            )
    messages, images = _messages(turns, len(grids)), iter(grids)
    check_symbols(messages, len(grids))
    encode = encode or vocab.encode_literally
    pieces = [_encode(message, images, vocab, encode) for message in messages]
    tokens = np.concatenate([np.array([vocab.bos], np.int32), *pieces])
    # Human messages and answers alternate, so every second piece is an answer.
    learned = [np.full(len(piece), index % 2 == 1) for index, piece in enumerate(pieces)]
    return tokens, np.concatenate([np.array([False]), *learned])


def texts(turns: Sequence[Turn], images: int) -> Iterator[str]:
    """What :func:`tokenize` encodes of a conversation about so many images."""
    return (part for message in _messages(turns, images) for span in _spans(message) for part in span)


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


def _messages(turns: Sequence[Turn], images: int) -> list[str]:
    """Human messages and answers, with a symbol for each image."""
    messages = [message for turn in turns for message in turn if message is not None]
    if messages and not any(IMAGE_SYMBOL in message for message in messages):
        messages[0] = f"{IMAGE_SYMBOL} " * images + messages[0]
    return messages


def _spans(message: str) -> list[list[str]]:
    """What stands before, between and behind the images of a message, each in the pieces that are encoded by themselves."""
    return [text.split(SEAM) for text in message.split(IMAGE_SYMBOL)]


def _encode(message: str, images: Iterator[np.ndarray], vocab: Vocab, encode: Callable[[str], list[int]]) -> np.ndarray:
    """A message with its end of turn -> tokens i32[n], each image symbol replaced by the next grid of ``images``."""
    parts = []
    for number, span in enumerate(_spans(message)):
        if number:
            parts.append(encode_grid(next(images), vocab))
        parts += [np.array(encode(text), np.int32) for text in span]
    return np.concatenate([*parts, np.array([vocab.end_of_turn], np.int32)])
