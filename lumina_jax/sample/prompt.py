"""Prompts: what a person types and the pictures shown become tokens and settings, checked before the model is used."""

import json
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from lumina_jax.config import DataConfig, SampleConfig
from lumina_jax.conversation import (
    TASKS,
    Turn,
    check_symbols,
    image_prompt,
    in_answers,
    literal,
    messages_of,
    plain,
    requested_size,
    task_prompt,
    tokenize,
)
from lumina_jax.errors import InputError, MissingFileError, prefixed_errors
from lumina_jax.layout import CODES_PER_UNIT, best_crop, check_paints, crop_sizes, grid_tokens
from lumina_jax.model.image_tokenizer import ImageTokenizer, encode_image
from lumina_jax.numbers import pixel_size
from lumina_jax.pictures.pixels import centre_square, crop, decode, to_chameleon_pixels, to_pixels, whiten
from lumina_jax.sample.dialog import DIALOG_FIELDS, Dialog, DialogPicture, parse_dialog
from lumina_jax.text import checked_text, decode_text, parse_json, split_lines
from lumina_jax.vocab import IMAGE_SYMBOL, Vocab

Settings = Callable[[str], SampleConfig]
"""A task of conversation.TASKS -> how its answers are sampled."""
FREE_FORM = "chat"
"""The task with whose settings a message of a dialog is answered."""
CENTRE = (0.5, 0.5)
PICTURE = re.compile(r"""(?<!\S)@(?:"([^"]+)"|'([^']+)'|((?:\\.|\S)+))""")
ADDRESS = re.compile("[a-z0-9]{2,}:/")
FIELDS = {"prompt", "size", "task", "seed", *DIALOG_FIELDS}
"""The fields of a line in a prompts file."""
STRETCH = 8
"""A prompt and its picture may be this many times as long as what the model was trained on, and are refused beyond: positions that
far out mean nothing to it, and memory and time grow with the square of the length."""
CAPTION = 256
"""The tokens of a long caption, which stands before a picture."""
PAINTED = ("segmentation", "segmentation_as_served", "depth", "normal", "pose", "detect", "condition", "edit", "refine")
"""The tasks whose answer is a picture of the size of the last one in the prompt."""


@dataclass(frozen=True)
class Prompt:
    """A prompt: the person's ``text``, its tokens ``ids`` i32[P], and how its answer is sampled.

    With a ``size`` (rows, cols) of codes the answer begins with a picture of that size; None leaves both to the model. ``picture``
    is the number of tokens of the picture that is asked for, 0 for an answer in words. ``seed`` None: the job's. ``task`` is its
    name in conversation.TASKS.
    """

    text: str
    ids: np.ndarray
    size: tuple[int, int] | None
    cfg: SampleConfig
    seed: int | None = None
    picture: int = 0
    task: str = "chat"

    @property
    def length(self) -> int:
        """Its tokens and those of its picture."""
        return len(self.ids) + self.picture


@dataclass(frozen=True)
class PromptBuilder:
    """Makes prompts for one model. ``data`` says which sizes and lengths it was trained on (:func:`data_of` a target size); without
    it sequences of ``positions`` tokens are assumed, and nothing that needs the model's sizes is made: no picture is shown, and one
    is asked for at a given size only.

    ``forced``: a picture and its size are forced token by token; else the prompt's words alone ask for it. With ``as_is``, pictures
    whose size the size tokens can express are not resized, whatever their area: a codebook of patches holds no resized pictures.

    All methods that make prompts raise InputError for a text without letters, with half a surrogate pair or a NUL, and for a prompt
    of more than ``longest`` tokens with its picture.
    """

    vq: ImageTokenizer
    vocab: Vocab
    data: DataConfig | None = None
    forced: bool = True
    as_is: bool = False
    positions: int = 4096

    @property
    def trained(self) -> int:
        """The longest sequence that the model was trained on, in tokens."""
        return self.data.buckets[-1] if self.data else self.positions

    @property
    def longest(self) -> int:
        """The longest sequence that is sampled, in tokens."""
        return STRETCH * self.trained

    @property
    def only_size(self) -> tuple[int, int] | None:
        """The (width, height) in px of all pictures of a model with Chameleon's own layout; None where sizes differ."""
        shape = self.vocab.image_layout.shape
        return shape and (shape[1] * self.vq.stride, shape[0] * self.vq.stride)

    @property
    def sizes(self) -> list[tuple[int, int]]:
        """The (width, height) in px that the model was trained on. Raises InputError where they are unknown."""
        if self.only_size:
            return [self.only_size]
        if self.data is None:
            raise InputError(
                "at which sizes this model knows pictures is unknown; give its target size (--target-size 512, 768, 1024 ...)",
                cause="an unknown target size",
            )
        return crop_sizes(self.data.size, self.data.patch, self.data.max_ratio)

    @property
    def square(self) -> tuple[int, int]:
        """The (width, height) in px of a picture whose size is not asked for."""
        return best_crop((1, 1), self.sizes)

    def check_paintable(self, size: tuple[int, int]) -> None:
        """Raises InputError when the model does not paint, or no picture can have ``size`` (width, height) in px."""
        check_paints(self.vocab)
        check_size(size, self.vq.stride, self.vocab, self.sizes if self.data or self.only_size else [])

    def generate(self, text: str, size: tuple[int, int] | None, cfg: SampleConfig) -> Prompt:
        """Asks for a picture of ``size`` (width, height) in px (default: the square of the model's area) after a text.

        In Chameleon's own layout the request is the text alone, for no size is asked for.
        """
        check_paints(self.vocab)
        size = size or self.square
        self.check_paintable(size)
        prompt = self._prompt(_words(text), [(self.request(text, size), None)], [], size, cfg)
        return replace(prompt, task="generate")

    def request(self, text: str, size: tuple[int, int]) -> str:
        """The message that asks for a picture of ``size`` (width, height) in px."""
        return literal(text) if self.only_size else image_prompt(*size, text)

    def task(self, task: str, text: str, images: Sequence[Image.Image], cfg: SampleConfig) -> Prompt:
        """Asks for one of conversation.TASKS other than "generate", about ``images``."""
        if task == "chat":
            return self.message(text, images, cfg)
        if task == "text" and images:
            raise InputError("the task 'text' is about words alone, without a picture; ask about one with 'question'")
        if task in TASKS and task != "text" and not images:
            raise InputError(f"the task {task!r} is about a picture; give it one")
        if task not in ("edit", "question") and len(images) > 1:
            raise InputError(f"the task {task!r} is about one picture, not {len(images)}")
        if task in PAINTED:
            check_paints(self.vocab)
        turn = (task_prompt(task, text, len(images)), None)
        cropped = [self.cropped(image) for image in images]
        grids = [self.codes(image) for image in cropped]
        size = cropped[-1].size if task in PAINTED else None
        return replace(self._prompt(text or task, [turn], grids, size, cfg), task=task)

    def message(self, text: str, images: Sequence[Image.Image], cfg: SampleConfig) -> Prompt:
        """A message as it is; its pictures replace the ``<|image|>`` in it, or stand before it when there is none."""
        return self.history([(text if images else literal(text), None)], images, cfg)

    def history(
        self,
        turns: Sequence[Turn],
        pictures: Sequence[Image.Image | np.ndarray],
        cfg: SampleConfig,
        size: tuple[int, int] | None = None,
    ) -> Prompt:
        """Asks for the next answer of a dialog: ``turns`` and ``pictures`` as tokenize takes them, the last answer None.

        A picture may be given by its codes i32[R C]. ``size`` (width, height) in px: of a picture that the answer begins with.
        """
        if not turns or turns[-1][1] is not None:
            raise InputError(
                "the conversation ends with an answer; end it with the human message that is to be answered",
                cause="the conversation ends with an answer",
            )
        if size:
            self.check_paintable(size)
        text = _words(plain(turns[-1][0]))
        for message in messages_of(turns):
            checked_text(message, "the prompt")
        check_symbols(messages_of(turns), len(pictures))
        painted = in_answers(turns, len(pictures))
        shown = [
            picture if isinstance(picture, np.ndarray) else self.shown(picture, is_answer).codes
            for picture, is_answer in zip(pictures, painted, strict=True)
        ]
        return self._prompt(text, turns, shown, size, cfg)

    def shown(self, image: Image.Image, is_answer: bool = False) -> DialogPicture:
        """A picture as a dialog shows it to the model: :meth:`cropped`, but one in an answer keeps a size that could be painted."""
        width, height = image.size
        area = max(trained[0] * trained[1] for trained in self.sizes)
        if is_answer and width * height <= area and has_size_tokens(image.size, self.vq.stride, self.vocab):
            image = whiten(image)
        else:
            image = self.cropped(image)
        return DialogPicture(image, self.codes(image))

    def dialog(self, record: dict, folder: Path) -> Dialog:
        """The dialog of a line in Lumina's form (dialog.parse_dialog), its pictures relative to ``folder``.

        Raises InputError naming what is wrong.
        """
        turns, files, codes = parse_dialog(record)
        pictures = []
        for file, grid, is_answer in zip(files, codes, in_answers(turns, len(files)), strict=True):
            image = open_image(folder / file)
            pictures.append(self.shown(image, is_answer) if grid is None else DialogPicture(whiten(image), grid))
            if grid is not None and image.size != (
                painted := tuple(self.vq.stride * side for side in grid.shape[::-1])
            ):
                raise InputError(
                    f"{file} has {image.width}x{image.height} px, but its codes are those of {painted[0]}x{painted[1]}; where a "
                    "picture was changed, write null for its codes",
                    cause="codes of another size",
                )
        return Dialog(tuple(turns), tuple(pictures))

    def cropped(self, image: Image.Image) -> Image.Image:
        """RGB, the centre of ``image`` at the best of the sizes that the model was trained on."""
        if self.only_size:
            return centre_square(image, self.only_size[0])
        if self.as_is and has_size_tokens(image.size, self.vq.stride, self.vocab):
            return whiten(image)
        return whiten(crop(image, best_crop(image.size, self.sizes), CENTRE))

    def codes(self, cropped: Image.Image) -> np.ndarray:
        """The codes i32[R C] of a picture of :meth:`cropped`."""
        return encode_image(self.vq, cropped, to_chameleon_pixels if self.only_size else to_pixels)

    def from_record(self, record: dict, folder: Path, settings: Settings) -> Prompt:
        """A line of a prompts file: ``prompt``, and optionally ``size`` "WIDTHxHEIGHT", ``task``, ``image`` or ``images`` (files,
        relative to ``folder``) and ``seed``; ``settings`` maps a task to its own. In place of the prompt ``conversations`` is a
        dialog (:meth:`dialog`) whose last message is answered. Raises InputError naming what is wrong."""
        record = {name: value for name, value in record.items() if value is not None}
        if unknown := sorted(set(record) - FIELDS):
            raise InputError(
                f"unknown field {unknown[0]!r}; the fields are {', '.join(sorted(FIELDS))}", cause="unknown field"
            )
        task, seed = record.get("task"), record.get("seed")
        if task is not None and (not isinstance(task, str) or task not in TASKS):
            raise InputError(f"no task {task!r}; the tasks are {', '.join(TASKS)}", cause="no such task")
        if seed is not None and type(seed) is not int:
            raise InputError(
                f"seed is {seed!r}; it must be a whole number, of any size", cause="seed is no whole number"
            )
        size = pixel_size(str(record["size"])) if "size" in record else None
        if size and task not in (None, "generate"):
            raise InputError(
                f"size goes with the task 'generate'; {task!r} answers at the size of its picture",
                cause="size and task",
            )
        ask = self._from_dialog if "conversations" in record else self._from_prompt
        return replace(ask(record, folder, task, size, settings), seed=seed)

    def _from_prompt(
        self, record: dict, folder: Path, task: str | None, size: tuple[int, int] | None, settings: Settings
    ) -> Prompt:
        text = record.get("prompt", "")
        files = [record["image"]] if "image" in record else record.get("images", [])
        if not isinstance(text, str) or not isinstance(files, list) or not all(isinstance(file, str) for file in files):
            raise InputError(
                "prompt must be a text, image a file, images a list of files", cause="field of a wrong type"
            )
        if {"image", "images"} <= set(record):
            raise InputError("image and images are both given; give one of them", cause="image and images")
        if "codes" in record:
            raise InputError("codes go with conversations; leave them out", cause="codes without conversations")
        if task in (None, "generate"):
            if files or not text.strip():
                raise InputError("the task 'generate' takes a prompt and no picture", cause="no prompt, or a picture")
            return self.generate(text, size, settings("generate"))
        return self.task(task, text, [open_image(folder / file) for file in files], settings(task))

    def _from_dialog(
        self, record: dict, folder: Path, task: str | None, size: tuple[int, int] | None, settings: Settings
    ) -> Prompt:
        """The words are those of the dialog; ``task`` gives the settings of the answer, and whether it begins with a picture."""
        if "prompt" in record:
            raise InputError(
                "prompt and conversations are both given; make the prompt the last message of the conversation",
                cause="prompt and conversations",
            )
        dialog = self.dialog(record, folder)
        asked = requested_size(dialog.turns[-1][0])
        if size and asked and size != asked:
            raise InputError(
                f"size is {size[0]}x{size[1]}, but the last message asks for {asked[0]}x{asked[1]}; make them equal",
                cause="two sizes",
            )
        task = task or ("generate" if size or asked else FREE_FORM)
        if task == "generate":
            size = size or asked or self.square
        elif task in PAINTED:
            if not dialog.pictures:
                raise InputError(f"the task {task!r} is about a picture; give it one")
            rows, cols = dialog.grids[-1].shape
            size = (cols * self.vq.stride, rows * self.vq.stride)
        return replace(self.history(dialog.turns, dialog.grids, settings(task), size), task=task)

    def _prompt(
        self,
        text: str,
        turns: Sequence[Turn],
        grids: Sequence[np.ndarray],
        size: tuple[int, int] | None,
        cfg: SampleConfig,
    ) -> Prompt:
        """``grids``: the codes of the pictures in ``turns``; ``size`` (width, height) in px of the picture that is asked for."""
        checked_text(text, "the prompt")
        ids, _ = tokenize(turns, grids, self.vocab)
        grid = (size[1] // self.vq.stride, size[0] // self.vq.stride) if size else None
        picture = grid_tokens(*grid, self.vocab.image_layout) if grid else 0
        prompt = Prompt(text, ids, grid if self.forced else None, cfg, picture=picture)
        cure = "leave earlier turns out" if len(turns) > 1 else "shorten it"
        self.check_length(prompt.length, cure + ", or make the picture smaller" * bool(grid))
        return prompt

    def check_length(self, tokens: int, cure: str) -> None:
        """Raises InputError for a prompt of more than ``longest`` tokens with its picture."""
        if tokens > self.longest:
            raise InputError(
                f"a prompt of {tokens:,} tokens with its picture; the model was trained on {self.trained:,} and is given up to "
                f"{self.longest:,}: {cure}",
                cause="a prompt too long",
            )


class Line(NamedTuple):
    """An entry of a prompts file: its ``number``, from 1, and its ``text``, which ``is_json`` or the prompt itself."""

    number: int
    text: str
    is_json: bool

    def record(self) -> dict:
        """The fields of the prompt (:meth:`PromptBuilder.from_record`). Raises InputError when it is neither object nor text."""
        record = parse_json(self.text) if self.is_json else self.text
        if not isinstance(record, dict | str):
            raise InputError('expected an object such as {"prompt": "A cat."}', cause="no JSON object")
        return {"prompt": record} if isinstance(record, str) else record

    @property
    def needs_sizes(self) -> bool:
        """Whether its prompt shows a picture, or asks for one without a size. False for a line that is no record."""
        try:
            record = self.record()
        except InputError:
            return False
        given = {name for name, value in record.items() if value is not None}
        paints = record["task"] == "generate" if "task" in given else "conversations" not in given
        return bool(given & {"image", "images"}) or (paints and "size" not in given)


def read_lines(path: Path) -> list[Line]:
    """The entries of a prompts file, without blank lines: in .jsonl a JSON object or text per line, in .json a list of them; in any
    other file each line is a prompt.

    Raises MissingFileError or InputError where the file cannot be read as text, or a .json file is no list.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise MissingFileError(f"{path}: no such file of prompts") from error
    except (OSError, ValueError) as error:
        raise InputError(f"{path} is not a text file that can be read: {_reason(error)}") from error
    with prefixed_errors(f"{path} is not a text file that can be read"):
        text = decode_text(content, path.name)
    kind = path.suffix.lower()
    if kind == ".json":
        with prefixed_errors(
            f"{path}: a .json file is one list of prompts (with a prompt per line it is called .jsonl)"
        ):
            entries = parse_json(text)
            if not isinstance(entries, list):
                raise InputError(f"found {type(entries).__name__}")
        return [Line(number, json.dumps(entry), True) for number, entry in enumerate(entries, start=1)]
    lines = enumerate(split_lines(text), start=1)
    return [Line(number, line, kind in (".jsonl", ".ndjson")) for number, line in lines if line.strip()]


def pictures_in(line: str) -> tuple[str, list[Path]]:
    """A line of a dialog -> (the message, with ``<|image|>`` for each picture; the pictures' files).

    A picture is a word that begins with @: @cat.png, @"my cat.png", @'my cat.png' or @my\\ cat.png. Punctuation behind the name
    of a file is text. @@ at the beginning of a word is one @; elsewhere in a word, as in a@b.com, it means nothing.
    """
    pieces, files, end = [], [], 0
    for match in PICTURE.finditer(line):
        quoted, word = match[1] or match[2], match[3]
        name, behind = (quoted, "") if quoted else _file_name(word)
        if word and word.startswith("@"):
            pieces.append(literal(line[end : match.start()] + word))
        else:
            pieces += [literal(line[end : match.start()]), IMAGE_SYMBOL, literal(behind)]
            files.append(Path(name).expanduser())
        end = match.end()
    return "".join([*pieces, literal(line[end:])]), files


def _file_name(word: str) -> tuple[str, str]:
    """(the name of a file, the punctuation behind it) of a word with \\ before spaces, as terminals write dropped files."""
    name = re.sub(r"\\(\W)", r"\1", word)
    bare = name.rstrip(".,;:!?)")
    return (bare, name[len(bare) :]) if bare and not os.path.exists(name) and os.path.exists(bare) else (name, "")


def open_image(path: Path) -> Image.Image:
    """The picture in a file (pixels.decode). Raises InputError naming the file when it is missing or no picture."""
    message = f"{path} is not a picture that can be read"
    if not os.path.exists(path) and ADDRESS.search(str(path)):
        raise InputError(
            f"{message}: pictures are files on this machine; download it first", cause="an address, not a file"
        )
    if os.path.exists(path) and not path.is_file() and not path.is_dir():
        raise InputError(f"{message}: it is a pipe or a device; give a file", cause="no file")
    try:
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise InputError(f"{message}: there is no such file", cause="file not found") from error
    except (OSError, ValueError) as error:
        raise InputError(f"{message}: {_reason(error)}", cause=_reason(error)) from error
    return decode(content, message)


def _reason(error: OSError | ValueError) -> str:
    """Why a file could not be read, without its name. A ValueError is that of a name with a NUL."""
    return getattr(error, "strerror", None) or "no file has such a name"


def _words(text: str) -> str:
    """``text``; InputError where it has no letters."""
    if not text.strip():
        raise InputError("the prompt is empty; say what to paint or to do", cause="an empty prompt")
    return text


def data_of(target: int, stride: int, positions: int) -> DataConfig:
    """What is known of the training of a model by its ``target`` size in px: the sizes of pictures, and the length of sequences.

    The length is ``positions`` tokens, as a checkpoint's config tells, or that of the largest picture behind a caption if it is
    more. ``stride`` is the image tokenizer's, px a code.
    """
    unit = stride * CODES_PER_UNIT
    largest = max(grid_tokens(height // stride, width // stride) for width, height in crop_sizes(target, unit))
    return DataConfig(size=target, patch=unit, buckets=(max(positions, largest + CAPTION),))


def has_size_tokens(size: tuple[int, int], stride: int, vocab: Vocab) -> bool:
    """Whether a picture can have ``size`` (width, height) in px: size tokens can express it, or all have it."""
    if vocab.image_layout.shape is not None:
        return size == tuple(side * stride for side in reversed(vocab.image_layout.shape))
    unit, limit = stride * CODES_PER_UNIT, int(vocab.size_of.max())
    return all(side % unit == 0 and unit <= side <= unit * limit for side in size)


def check_size(size: tuple[int, int], stride: int, vocab: Vocab, trained: list[tuple[int, int]]) -> None:
    """Raises InputError, offering the nearest of the ``trained`` sizes if any, when no picture can have ``size`` (in px)."""
    if not has_size_tokens(size, stride, vocab):
        if vocab.image_layout.shape is not None:
            raise InputError(
                f"size {size[0]}x{size[1]}: all pictures of this model have {trained[0][0]}x{trained[0][1]}; leave the size out",
                cause="a size that the model cannot paint",
            )
        unit, limit = stride * CODES_PER_UNIT, int(vocab.size_of.max())
        message = f"size {size[0]}x{size[1]}: both sides must be multiples of {unit} px, from {unit} to {unit * limit}"
        if trained:
            nearest = best_crop((max(size[0], 1), max(size[1], 1)), trained)
            message += f"; the nearest that the model was trained on is {nearest[0]}x{nearest[1]}"
        raise InputError(
            message,
            cause="a size that the model cannot paint",
        )
