"""From what a person types and shows to what the model reads: one prompt of text and pictures, checked before any work."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from lumina_jax.config import DataConfig, SampleConfig
from lumina_jax.conversation import TASKS, Turn, image_prompt, literal, task_prompt, tokenize
from lumina_jax.errors import InputError
from lumina_jax.layout import CODES_PER_UNIT, best_crop, crop_sizes
from lumina_jax.model.image_tokenizer import ImageTokenizer, encode_image
from lumina_jax.pictures.pixels import crop, decode, whiten
from lumina_jax.vocab import Vocab

MIDDLE = (0.5, 0.5)
FIELDS = {"prompt", "size", "task", "image", "images", "seed"}
PAINTED = ("segmentation", "segmentation_as_served", "depth", "normal", "pose", "detect", "condition", "edit", "refine")
"""The tasks whose answer is a picture of the size of the last one shown."""


@dataclass(frozen=True)
class Ask:
    """A prompt: what the person ``said``, its tokens ``ids`` i32[P], and how it is sampled.

    ``size`` (rows, cols) is forced on pictures of the answer, None leaves it to the model. ``seed`` None: that of the job.
    """

    said: str
    ids: np.ndarray
    size: tuple[int, int] | None
    cfg: SampleConfig
    seed: int | None = None


@dataclass(frozen=True)
class Desk:
    """Makes prompts for one model. ``data`` says which sizes it was trained on; without it those of 512 px are assumed.

    ``forced`` pictures get the size they were asked for token by token; else the prompt alone says it. With ``as_is`` pictures
    whose size tokens can say are shown as they are, at whatever area: a codebook of patches knows no picture that was resized.
    """

    vq: ImageTokenizer
    vocab: Vocab
    data: DataConfig | None = None
    forced: bool = True
    as_is: bool = False

    @property
    def sizes(self) -> list[tuple[int, int]]:
        """The (width, height) in px that the model knows."""
        unit = self.vq.stride * CODES_PER_UNIT
        return crop_sizes(self.data.size, self.data.patch, self.data.max_ratio) if self.data else crop_sizes(512, unit)

    def generate(self, text: str, size: tuple[int, int] | None, cfg: SampleConfig) -> Ask:
        """A picture of ``size`` (width, height) in px (default: the square of the model's area) after a text."""
        size = size or ((self.data.size, self.data.size) if self.data else (512, 512))
        check_size(size, self.vq.stride, self.vocab, self.sizes)
        return self._ask(text, [(image_prompt(*size, text), None)], [], size, cfg)

    def task(self, task: str, text: str, images: Sequence[Image.Image], cfg: SampleConfig) -> Ask:
        """One of conversation.TASKS other than "generate", about ``images``."""
        if task in TASKS and not images:
            raise InputError(f"the task {task!r} is about a picture; give it one")
        if task not in ("edit", "question") and len(images) > 1:
            raise InputError(f"the task {task!r} is about one picture, not {len(images)}")
        message = task_prompt(task, text, len(images))
        cropped = [self.cropped(image) for image in images]
        return self._ask(text or task, [(message, None)], cropped, cropped[-1].size if task in PAINTED else None, cfg)

    def talk(self, text: str, images: Sequence[Image.Image], cfg: SampleConfig) -> Ask:
        """A message as it is, its pictures where it says ``<|image|>``, else before it."""
        return self._ask(
            text, [(text if images else literal(text), None)], [self.cropped(i) for i in images], None, cfg
        )

    def cropped(self, image: Image.Image) -> Image.Image:
        """RGB, the middle of it, at the best of the sizes that the model knows."""
        if self.as_is and can_say(image.size, self.vq.stride, self.vocab):
            return whiten(image)
        return whiten(crop(image, best_crop(image.size, self.sizes), MIDDLE))

    def line(self, line: dict, where: Path, settings: Callable[[str], SampleConfig]) -> Ask:
        """A line of a prompts file: ``prompt``, and optionally ``size`` "WIDTHxHEIGHT", ``task``, ``image`` or ``images`` (files,
        relative to ``where``) and ``seed``; ``settings`` gives those of a task. Raises ValueError naming what is wrong."""
        if unknown := sorted(set(line) - FIELDS):
            raise InputError(f"unknown field {unknown[0]!r}; the fields are {', '.join(sorted(FIELDS))}")
        task, text, seed = line.get("task", "generate"), line.get("prompt", ""), line.get("seed")
        files = [line["image"]] if "image" in line else line.get("images", [])
        if task not in TASKS:
            raise InputError(f"no task {task!r}; the tasks are {', '.join(TASKS)}")
        if not isinstance(text, str) or not isinstance(files, list) or not isinstance(seed, int | None):
            raise InputError("prompt must be a text, images a list of files, seed a whole number")
        if task == "generate":
            if files or not text.strip():
                raise InputError("the task 'generate' takes a prompt and no picture")
            made = self.generate(text, parse_size(line["size"]) if "size" in line else None, settings(task))
        else:
            made = self.task(task, text, [open_image(where / file) for file in files], settings(task))
        return Ask(made.said, made.ids, made.size, made.cfg, seed)

    def _ask(
        self,
        said: str,
        turns: list[Turn],
        images: Sequence[Image.Image],
        size: tuple[int, int] | None,
        cfg: SampleConfig,
    ) -> Ask:
        grids = [encode_image(self.vq, image) for image in images]
        ids, _ = tokenize(turns, grids, self.vocab)
        codes = (size[1] // self.vq.stride, size[0] // self.vq.stride) if size and self.forced else None
        return Ask(said, ids, codes, cfg)


def read_lines(path: Path) -> list[dict]:
    """A file of prompts: JSON objects, one a line, in .jsonl files; else a prompt a line. Raises ValueError naming a bad line."""
    lines = [(number, line) for number, line in enumerate(path.read_text().splitlines(), start=1) if line.strip()]
    if path.suffix != ".jsonl":
        return [{"prompt": line} for _, line in lines]
    found = []
    for number, line in lines:
        try:
            found.append(json.loads(line))
        except json.JSONDecodeError as error:
            raise InputError(f"{path}, line {number}: {error}") from error
        if not isinstance(found[-1], dict):
            raise InputError(f'{path}, line {number}: expected an object such as {{"prompt": "A cat."}}')
    return found


def open_image(path: Path) -> Image.Image:
    """A picture (pixels.decode). Raises ValueError naming the file when it is none or not there."""
    said = f"{path} is not a picture that can be read"
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"{said}: {error}") from error
    return decode(content, said)


def parse_size(text: str) -> tuple[int, int]:
    """ "128x96" -> (128, 96); ValueError for anything else."""
    width, _, height = str(text).partition("x")
    if not (width.isdigit() and height.isdigit()):
        raise InputError(f"{text!r} is not WIDTHxHEIGHT in pixels, such as 96x64")
    return int(width), int(height)


def can_say(size: tuple[int, int], stride: int, vocab: Vocab) -> bool:
    """Whether there are size tokens for a picture of ``size`` (width, height) in px."""
    unit, most = stride * CODES_PER_UNIT, int(vocab.size_of.max())
    return all(side % unit == 0 and unit <= side <= unit * most for side in size)


def check_size(size: tuple[int, int], stride: int, vocab: Vocab, known: list[tuple[int, int]]) -> None:
    """Raises ValueError, offering the nearest of the ``known`` sizes, when no tokens can say ``size`` (width, height)."""
    if not can_say(size, stride, vocab):
        unit, most = stride * CODES_PER_UNIT, int(vocab.size_of.max())
        nearest = best_crop((max(size[0], 1), max(size[1], 1)), known)
        raise InputError(
            f"size {size[0]}x{size[1]}: both sides must be multiples of {unit} px, from {unit} to {unit * most}; "
            f"the nearest that the model was trained on is {nearest[0]}x{nearest[1]}"
        )
