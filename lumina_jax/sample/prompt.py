"""Prompts: what a person types and the pictures shown become tokens and settings, checked before the model is used."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

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
from lumina_jax.errors import InputError, prefixed_errors
from lumina_jax.layout import CODES_PER_UNIT, best_crop, check_paints, crop_sizes, encode_grid, grid_tokens
from lumina_jax.model.image_tokenizer import ImageTokenizer, encode_image
from lumina_jax.numbers import pixel_size
from lumina_jax.pictures.pixels import centre_square, crop, to_chameleon_pixels, to_pixels, whiten
from lumina_jax.places import Place, beside
from lumina_jax.sample.dialog import DIALOG_FIELDS, Dialog, DialogPicture, parse_dialog
from lumina_jax.sample.files import open_image
from lumina_jax.text import checked_text
from lumina_jax.vocab import Vocab

Settings = Callable[[str], SampleConfig]
"""A task of conversation.TASKS -> how its answers are sampled."""
FREE_FORM = "chat"
"""The task with whose settings a message of a dialog is answered."""
CENTRE = (0.5, 0.5)
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
    name in conversation.TASKS. ``place`` is the (index, copy) that its random key is that of; None: its own in the job.
    """

    text: str
    ids: np.ndarray
    size: tuple[int, int] | None
    cfg: SampleConfig
    seed: int | None = None
    picture: int = 0
    task: str = "chat"
    place: tuple[int, int] | None = None

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
        request = task_request(task, text, len(images))
        if task in PAINTED:
            check_paints(self.vocab)
        cropped = [self.cropped(image) for image in images]
        grids = [self.codes(image) for image in cropped]
        size = cropped[-1].size if task in PAINTED else None
        return replace(self._prompt(text or task, [(request, None)], grids, size, cfg), task=task)

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

    def dialog(self, record: dict, folder: Place) -> Dialog:
        """The dialog of a line in Lumina's form (dialog.parse_dialog), its pictures relative to ``folder``.

        Raises InputError naming what is wrong.
        """
        turns, files, codes = parse_dialog(record)
        pictures = []
        for file, grid, is_answer in zip(files, codes, in_answers(turns, len(files)), strict=True):
            image = open_image(beside(folder, file))
            pictures.append(self.shown(image, is_answer) if grid is None else DialogPicture(whiten(image), grid))
            if grid is not None:
                with prefixed_errors(f"the codes of {file}"):
                    encode_grid(grid, self.vocab)
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

    def from_record(self, record: dict, folder: Place, settings: Settings) -> Prompt:
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
        self, record: dict, folder: Place, task: str | None, size: tuple[int, int] | None, settings: Settings
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
        return self.task(task, text, [open_image(beside(folder, file)) for file in files], settings(task))

    def _from_dialog(
        self, record: dict, folder: Place, task: str | None, size: tuple[int, int] | None, settings: Settings
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


def task_request(task: str, text: str, images: int) -> str:
    """The message that asks for one of conversation.TASKS other than "generate" and "chat", about so many ``images``.

    Raises InputError where the task is about more or fewer, and as conversation.task_prompt does.
    """
    if task == "text" and images:
        raise InputError("the task 'text' is about words alone, without a picture; ask about one with 'question'")
    if task in TASKS and task != "text" and not images:
        raise InputError(f"the task {task!r} is about a picture; give it one")
    if task not in ("edit", "question") and images > 1:
        raise InputError(f"the task {task!r} is about one picture, not {images}")
    return task_prompt(task, text, images)


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
