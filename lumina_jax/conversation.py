"""Turns of text and images -> one token sequence and the mask of its learned tokens.

Source: FlexARItemProcessor and its base class (item_processor.py of the original).
"""

import re
import reprlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest

import numpy as np

from lumina_jax.config import SampleConfig
from lumina_jax.errors import InputError
from lumina_jax.layout import encode_grid, images_in
from lumina_jax.text import checked_text
from lumina_jax.vocab import IMAGE_SYMBOL, Vocab

Turn = tuple[str, str | None]
"""The human message and the assistant's answer; None for an answer that is to be generated."""
SPEAKERS = (("human",), ("gpt", "assistant"))
"""Who speaks in Lumina's JSON, by turns; the first name of each is the one that is written."""


@dataclass(frozen=True)
class Task:
    """A capability: the template of its request (paper Figures 12 to 16), how it is sampled, and where these numbers are from.

    ``guidance`` and ``image_top_k`` act inside pictures only, ``text_top_k`` outside of them.
    """

    request: str
    guidance: float
    image_top_k: int
    source: str
    text_top_k: int = 5
    temperature: float = 1.0


GENERATION = (
    "paper (Figure 8) and the original's README; its demo_image_generation.py has guidance 3.0 and image top-k 4000"
)
IMAGE2IMAGE = "the original's demo_image2image.py"
ADVICE = "the authors' advice (github.com/Alpha-VLLM/Lumina-mGPT/issues/25): guidance above 3, image top-k 2000 to 4000"
WORDS = "for words, which guidance does not change, 1.0 takes half the work (a picture in the answer is unguided)"

TASKS = {
    "generate": Task(
        "Generate an image of {width}x{height} according to the following prompt:\n{text}", 4.0, 2000, GENERATION
    ),
    "segmentation": Task("Semantic segmentation. <|image|>", 1.0, 200, IMAGE2IMAGE),
    "segmentation_as_served": Task(
        "Segmentic segmentation. <|image|>",
        1.0,
        200,
        f"{IMAGE2IMAGE}, sic; 'segmentation' has the paper's words: a published checkpoint may follow either",
    ),
    "depth": Task("Depth estimation. <|image|>", 1.0, 200, f"{IMAGE2IMAGE} and README"),
    "normal": Task("Surface normal estimation. <|image|>", 1.0, 200, IMAGE2IMAGE),
    "pose": Task("Human pose estimation. <|image|>", 1.0, 200, IMAGE2IMAGE),
    "detect": Task("Detect: {text}. <|image|>", 1.0, 200, IMAGE2IMAGE),
    "condition": Task(
        "Generate an image according to the provided image, and according to the following caption:\n{text} <|image|>",
        1.0,
        200,
        IMAGE2IMAGE,
    ),
    "edit": Task("{text} {images}", 4.0, 2000, f"{ADVICE}; {IMAGE2IMAGE} has 1.0 and 200"),
    "refine": Task("No edit. <|image|>", 4.0, 2000, f"{ADVICE}, given for this very request at 1.0 and 200"),
    "describe": Task(
        "Describe this image in detail.<|image|>", 1.0, 2000, f"the original's README, at guidance 4.0; {WORDS}"
    ),
    "question": Task("{text}{images}", 1.0, 2000, f"the original's demo_freeform.py; {WORDS}"),
    "text": Task("{text}", 1.0, 2000, f"the original's demo_freeform.py; {WORDS}"),
    "chat": Task(
        "{text}",
        4.0,
        2000,
        "as generate and edit, for a turn may ask for either; the original's demo_freeform.py has guidance 1.0",
    ),
}
"""All tasks by name. {text} is the user's text; {images} is one ``<|image|>`` per input image. A later turn of a dialog has
no {images}, because its images stand in the earlier turns. "text" has no picture; "chat" is any message, with ``<|image|>`` where
its pictures stand."""

OWN_SETTINGS = ("generate", "chat")
"""The tasks that a model samples by its own settings; the rows of TASKS for them are the defaults of SampleConfig."""
SENTENCE_ENDS = (".", "!", "?", "…", "。", "！", "？", "．")
"""What ends a sentence: behind it a template writes no full stop of its own."""
CLOSING = "\"'”’»)]」』"
"""What may stand behind the end of a sentence and belongs to it."""

SEAM = "\ufdd0"
"""A Unicode noncharacter, reserved for use inside programs. Messages are split at it before encoding; it is never encoded."""


REQUESTED_SIZE = re.compile(
    re.escape(TASKS["generate"].request.partition("{height}")[0]).replace(re.escape("{width}"), "([0-9]{1,6})")
    + r"([0-9]{1,6})\b"
)


def literal(text: str) -> str:
    """Escapes ``<|image|>`` in ``text``: :func:`tokenize` then encodes its letters instead of inserting an image."""
    return text.replace(SEAM, "").replace(IMAGE_SYMBOL, f"{IMAGE_SYMBOL[0]}{SEAM}{IMAGE_SYMBOL[1:]}")


def explicit(text: str, images: int) -> str:
    """A message of a dialog: with ``images`` images ``text`` itself, behind them where it holds no ``<|image|>``; without any its
    :func:`literal`. Raises InputError when the number of symbols is neither 0 nor that of the images."""
    if not images:
        return literal(text)
    check_symbols([text], images)
    return text if IMAGE_SYMBOL in text else _with_images_first(text, images)


def plain(message: str) -> str:
    """A message for reading: without the marks that :func:`literal` leaves in it."""
    return message.replace(SEAM, "")


def image_prompt(width: int, height: int, text: str) -> str:
    """The resolution-aware request for an image of ``width`` x ``height`` pixels (paper section 3.2.2); ``text`` is escaped."""
    return TASKS["generate"].request.format(width=width, height=height, text=literal(text))


def requested_size(message: str) -> tuple[int, int] | None:
    """The (width, height) in px that a message asks for when it begins as those of :func:`image_prompt` do; else None."""
    match = REQUESTED_SIZE.match(message)
    return (int(match[1]), int(match[2])) if match else None


def task_prompt(task: str, text: str = "", images: int = 1) -> str:
    """The request for any of TASKS but "generate", for which see :func:`image_prompt`; ``text`` is escaped.

    The message holds one ``<|image|>``, ``images`` of them for a question or an edit, none for a text. A full stop of the
    template stands right behind the text, and is left out where that has its own. Raises InputError for an unknown task, and when
    the task needs a text and has none or the reverse.
    """
    names = [name for name in TASKS if name != "generate"]
    if task not in names:
        raise InputError(f"no task {task!r}; the tasks are {', '.join(names)}")
    request = TASKS[task].request
    if bool(text.strip()) != ("{text}" in request):
        raise InputError(f"the task {task!r} takes {'a' if '{text}' in request else 'no'} text, not {text!r}")
    if "{text}." in request:
        text = text.rstrip()
        if text.rstrip(CLOSING).endswith(SENTENCE_ENDS):
            request = request.replace("{text}.", "{text}")
    return request.format(text=literal(text), images=" ".join([IMAGE_SYMBOL] * images)).strip(" ")


def served(task: str, cfg: SampleConfig) -> SampleConfig:
    """How a task of TASKS is sampled by a model whose own settings are ``cfg``, those of its experiment or SampleConfig().

    "generate" and "chat" are sampled by ``cfg``. Every other task has the guidance, top-k and temperature of its row of TASKS; the
    rest is that of ``cfg``. What a person asks for stands above both.
    """
    if task in OWN_SETTINGS:
        return cfg
    row = TASKS[task]
    return replace(
        cfg,
        guidance=row.guidance,
        temperature=row.temperature,
        image_top_k=row.image_top_k,
        text_top_k=row.text_top_k,
    )


def parse_turns(messages: object) -> list[Turn]:
    """The ``conversations`` of Lumina's JSON, objects with ``from`` ("human" and "gpt" by turns) and ``value`` (a text), as turns.

    The last answer may be left out, or null. Raises InputError naming the message that is not well-formed.
    """
    if not isinstance(messages, list) or not messages:
        raise InputError("'conversations' is not a list of at least one message")
    texts: list[str | None] = []
    for number, message in enumerate(messages):
        if not isinstance(message, Mapping):
            raise InputError(f"message {number} of the conversation is not an object with 'from' and 'value'")
        if (speaker := message.get("from")) not in SPEAKERS[number % 2]:
            raise InputError(
                f"message {number} is from {reprlib.repr(speaker)}; human and gpt must take turns, human first"
            )
        value = message.get("value")
        unanswered = value is None and number % 2 == 1 and number == len(messages) - 1
        texts.append(None if unanswered else checked_text(value, f"the value of message {number}"))
    return list(zip_longest(texts[::2], texts[1::2]))


def messages_of(turns: Sequence[Turn]) -> list[str]:
    """The messages and answers in order; one that is to be generated is left out."""
    return [message for turn in turns for message in turn if message is not None]


def check_symbols(messages: Sequence[str], images: int) -> None:
    """Raises InputError when ``messages`` hold any image symbols, but not exactly ``images`` of them."""
    symbols = sum(message.count(IMAGE_SYMBOL) for message in messages)
    if symbols and symbols != images:
        raise InputError(
            f"the texts hold {symbols} {IMAGE_SYMBOL}, but {images} images are given; make the numbers equal, "
            f"or leave {IMAGE_SYMBOL} out of every text to put all images first"
        )


def tokenize(
    turns: Sequence[Turn], grids: Sequence[np.ndarray], vocab: Vocab, encode: Callable[[str], list[int]] | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """A conversation -> tokens i32[n] and learn bool[n].

    The tokens are the begin token, then each message followed by an end-of-turn. ``learn`` is true on the answers, their
    images and ends of turn included. Each ``<|image|>`` in the texts is replaced by the next of ``grids`` (image codes
    i32[R C]); if no text holds one, all images go before the first human message. An answer of None, allowed in the last
    turn only, ends the sequence after the human message: it is a prompt to generate from.

    Text cannot forge tokens: the name of a special token other than ``<|image|>`` is encoded like any other text, and so is
    an ``<|image|>`` escaped by :func:`literal`. ``encode`` replaces vocab.encode_literally, for example by a lookup of the
    pre-computed ids of :func:`texts`.

    Raises InputError when there are no turns, an answer other than the last is None, or the number of symbols is neither 0
    nor that of the grids.
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
    masks = [np.full(len(piece), index % 2 == 1) for index, piece in enumerate(pieces)]
    return tokens, np.concatenate([np.array([False]), *masks])


def texts(turns: Sequence[Turn], images: int) -> Iterator[str]:
    """The texts that :func:`tokenize` encodes, one by one, for a conversation with ``images`` images."""
    return (text for message in _messages(turns, images) for span in _spans(message) for text in span)


def drop_context(tokens: np.ndarray, learn: np.ndarray, vocab: Vocab) -> tuple[np.ndarray, np.ndarray]:
    """A sample whose only image ends its answer -> that image alone, begin-image to end-image, all of it learned.

    It trains the unconditional model that guidance needs (paper section 3.2.2). Any other sample is returned unchanged.
    """
    images = images_in(tokens, vocab)
    if len(images) != 1 or images[0].stop != len(tokens) - 1 or tokens[-1] != vocab.end_of_turn:
        return tokens, learn
    image = images[0]
    return (tokens[image], learn[image]) if learn[image].all() else (tokens, learn)


def in_answers(turns: Sequence[Turn], images: int) -> list[bool]:
    """Per image of a conversation with ``images`` images, whether it stands in an answer."""
    messages = [message for turn in turns for message in turn]
    symbols = [0 if message is None else message.count(IMAGE_SYMBOL) for message in messages]
    return [number % 2 == 1 for number, count in enumerate(symbols) for _ in range(count)] or [False] * images


def _messages(turns: Sequence[Turn], images: int) -> list[str]:
    """The messages and answers in order, with image symbols put before the first message if there were none."""
    messages = messages_of(turns)
    if messages and not any(IMAGE_SYMBOL in message for message in messages):
        messages[0] = _with_images_first(messages[0], images)
    return messages


def _with_images_first(message: str, images: int) -> str:
    return f"{IMAGE_SYMBOL} " * images + message


def _spans(message: str) -> list[list[str]]:
    """The texts before, between and after the images of a message, each split into pieces that are encoded separately."""
    return [text.split(SEAM) for text in message.split(IMAGE_SYMBOL)]


def _encode(message: str, images: Iterator[np.ndarray], vocab: Vocab, encode: Callable[[str], list[int]]) -> np.ndarray:
    """A message and its end-of-turn -> tokens i32[n], each image symbol replaced by the next grid of ``images``."""
    pieces = []
    for number, span in enumerate(_spans(message)):
        if number:
            pieces.append(encode_grid(next(images), vocab))
        pieces += [np.array(encode(text), np.int32) for text in span]
    return np.concatenate([*pieces, np.array([vocab.end_of_turn], np.int32)])
