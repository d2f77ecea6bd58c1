"""Prompts: what a person types and the pictures shown become tokens and settings, checked before the model is used."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

from lumina_jax.config import DataConfig, SampleConfig
from lumina_jax.conversation import TASKS, Turn, image_prompt, literal, task_prompt, tokenize
from lumina_jax.errors import InputError, MissingFileError, prefixed_errors
from lumina_jax.layout import CODES_PER_UNIT, best_crop, crop_sizes
from lumina_jax.model.image_tokenizer import ImageTokenizer, encode_image
from lumina_jax.pictures.pixels import crop, decode, whiten
from lumina_jax.vocab import Vocab

CENTRE = (0.5, 0.5)
FIELDS = {"prompt", "size", "task", "image", "images", "seed"}
"""The fields of a line in a prompts file."""
PAINTED = ("segmentation", "segmentation_as_served", "depth", "normal", "pose", "detect", "condition", "edit", "refine")
"""The tasks whose answer is a picture of the size of the last one in the prompt."""


@dataclass(frozen=True)
class Prompt:
    """A prompt: the person's ``text``, its tokens ``ids`` i32[P], and how its answer is sampled.

    ``size`` (rows, cols) of codes is forced on pictures of the answer, None leaves it to the model. ``seed`` None: the job's.
    """

    text: str
    ids: np.ndarray
    size: tuple[int, int] | None
    cfg: SampleConfig
    seed: int | None = None


@dataclass(frozen=True)
class PromptBuilder:
    """Makes prompts for one model. ``data`` says which sizes it was trained on; without it those of 512 px are assumed.

    ``forced``: the size of a picture is forced token by token; else the prompt's words alone ask for it. With ``as_is``, pictures
    whose size the size tokens can express are not resized, whatever their area: a codebook of patches holds no resized pictures.
    """

    vq: ImageTokenizer
    vocab: Vocab
    data: DataConfig | None = None
    forced: bool = True
    as_is: bool = False

    @property
    def sizes(self) -> list[tuple[int, int]]:
        """The (width, height) in px that the model was trained on."""
        unit = self.vq.stride * CODES_PER_UNIT
        return crop_sizes(self.data.size, self.data.patch, self.data.max_ratio) if self.data else crop_sizes(512, unit)

    def generate(self, text: str, size: tuple[int, int] | None, cfg: SampleConfig) -> Prompt:
        """Asks for a picture of ``size`` (width, height) in px (default: the square of the model's area) after a text."""
        size = size or ((self.data.size, self.data.size) if self.data else (512, 512))
        check_size(size, self.vq.stride, self.vocab, self.sizes)
        return self._prompt(text, (image_prompt(*size, text), None), [], size, cfg)

    def task(self, task: str, text: str, images: Sequence[Image.Image], cfg: SampleConfig) -> Prompt:
        """Asks for one of conversation.TASKS other than "generate", about ``images``."""
        if task in TASKS and not images:
            raise InputError(f"the task {task!r} is about a picture; give it one")
        if task not in ("edit", "question") and len(images) > 1:
            raise InputError(f"the task {task!r} is about one picture, not {len(images)}")
        turn = (task_prompt(task, text, len(images)), None)
        cropped = [self.cropped(image) for image in images]
        return self._prompt(text or task, turn, cropped, cropped[-1].size if task in PAINTED else None, cfg)

    def message(self, text: str, images: Sequence[Image.Image], cfg: SampleConfig) -> Prompt:
        """A message as it is; its pictures replace the ``<|image|>`` in it, or stand before it when there is none."""
        turn = (text if images else literal(text), None)
        return self._prompt(text, turn, [self.cropped(image) for image in images], None, cfg)

    def cropped(self, image: Image.Image) -> Image.Image:
        """RGB, the centre of ``image`` at the best of the sizes that the model was trained on."""
        if self.as_is and has_size_tokens(image.size, self.vq.stride, self.vocab):
            return whiten(image)
        return whiten(crop(image, best_crop(image.size, self.sizes), CENTRE))

    def from_record(self, record: dict, folder: Path, settings: Callable[[str], SampleConfig]) -> Prompt:
        """A line of a prompts file: ``prompt``, and optionally ``size`` "WIDTHxHEIGHT", ``task``, ``image`` or ``images`` (files,
        relative to ``folder``) and ``seed``; ``settings`` maps a task to its own. Raises InputError naming what is wrong."""
        if unknown := sorted(set(record) - FIELDS):
            raise InputError(f"unknown field {unknown[0]!r}; the fields are {', '.join(sorted(FIELDS))}")
        task, text, seed = record.get("task", "generate"), record.get("prompt", ""), record.get("seed")
        files = [record["image"]] if "image" in record else record.get("images", [])
        if task not in TASKS:
            raise InputError(f"no task {task!r}; the tasks are {', '.join(TASKS)}")
        if not isinstance(text, str) or not isinstance(files, list) or not isinstance(seed, int | None):
            raise InputError("prompt must be a text, images a list of files, seed a whole number")
        if task == "generate":
            if files or not text.strip():
                raise InputError("the task 'generate' takes a prompt and no picture")
            size = parse_size(record["size"]) if "size" in record else None
            return replace(self.generate(text, size, settings(task)), seed=seed)
        images = [open_image(folder / file) for file in files]
        return replace(self.task(task, text, images, settings(task)), seed=seed)

    def _prompt(
        self, text: str, turn: Turn, images: Sequence[Image.Image], size: tuple[int, int] | None, cfg: SampleConfig
    ) -> Prompt:
        """``size`` (width, height) in px."""
        grids = [encode_image(self.vq, image) for image in images]
        ids, _ = tokenize([turn], grids, self.vocab)
        grid = (size[1] // self.vq.stride, size[0] // self.vq.stride) if size and self.forced else None
        return Prompt(text, ids, grid, cfg)


def read_lines(path: Path) -> list[dict]:
    """The records of a prompts file: in .jsonl files a JSON object per line; else ``{"prompt": line}`` for each line.

    Raises InputError naming a wrong line, MissingFileError or InputError where the file cannot be read as text.
    """
    try:
        content = path.read_text()
    except FileNotFoundError as error:
        raise MissingFileError(f"{path}: no such file of prompts") from error
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not a text file that can be read: {error}") from error
    lines = [(number, line) for number, line in enumerate(content.splitlines(), start=1) if line.strip()]
    if path.suffix != ".jsonl":
        return [{"prompt": line} for _, line in lines]
    records = []
    for number, line in lines:
        with prefixed_errors(f"{path}, line {number}", json.JSONDecodeError):
            records.append(json.loads(line))
        if not isinstance(records[-1], dict):
            raise InputError(f'{path}, line {number}: expected an object such as {{"prompt": "A cat."}}')
    return records


def open_image(path: Path) -> Image.Image:
    """The picture in a file (pixels.decode). Raises InputError naming the file when it is missing or no picture."""
    message = f"{path} is not a picture that can be read"
    with prefixed_errors(message, OSError):
        content = path.read_bytes()
    return decode(content, message)


def parse_size(text: str) -> tuple[int, int]:
    """ "128x96" -> (128, 96). Raises InputError for anything else."""
    width, _, height = str(text).partition("x")
    if not (width.isdigit() and height.isdigit()):
        raise InputError(f"{text!r} is not WIDTHxHEIGHT in pixels, such as 96x64")
    return int(width), int(height)


def has_size_tokens(size: tuple[int, int], stride: int, vocab: Vocab) -> bool:
    """Whether size tokens can express ``size`` (width, height) in px."""
    unit, limit = stride * CODES_PER_UNIT, int(vocab.size_of.max())
    return all(side % unit == 0 and unit <= side <= unit * limit for side in size)


def check_size(size: tuple[int, int], stride: int, vocab: Vocab, trained: list[tuple[int, int]]) -> None:
    """Raises InputError, offering the nearest of the ``trained`` sizes, when size tokens cannot express ``size`` (both in px)."""
    if not has_size_tokens(size, stride, vocab):
        unit, limit = stride * CODES_PER_UNIT, int(vocab.size_of.max())
        nearest = best_crop((max(size[0], 1), max(size[1], 1)), trained)
        raise InputError(
            f"size {size[0]}x{size[1]}: both sides must be multiples of {unit} px, from {unit} to {unit * limit}; "
            f"the nearest that the model was trained on is {nearest[0]}x{nearest[1]}"
        )
