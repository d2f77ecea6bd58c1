"""The paper's studies of sampling for any model: settings (Figure 8), seeds (Figure 5), written words (Figures 6 and 7).

Each part of a study is a sampling job in a folder of its own: a study that was stopped goes on, and prompt i draws from the same
random key in every part, so that pictures of two parts differ by their settings alone.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np
from PIL import Image

from lumina_jax.config import SampleConfig
from lumina_jax.errors import InputError
from lumina_jax.evaluate.variety import Distance, mean_of, variety
from lumina_jax.evaluate.written_words import WordReader, score_words
from lumina_jax.model.chameleon import Chameleon
from lumina_jax.model.image_tokenizer import ImageTokenizer
from lumina_jax.model.params import fingerprint
from lumina_jax.pictures.picture_table import PictureCell, PictureTable
from lumina_jax.places import Place
from lumina_jax.sample.job import Answer, Job, finished, opened, paint
from lumina_jax.sample.made import PictureOrigin
from lumina_jax.sample.prompt import Prompt
from lumina_jax.vocab import Vocab

NAMES = {"guidance": "guidance", "image_top_k": "top-k", "temperature": "temperature"}
"""The settings of Figure 8, and how a sheet calls them."""
TILES = 4
"""Pictures in a row of the sheet of written words."""
WRITTEN = (
    'A wooden sign above a shop door that says "BAKERY".',
    'A white mug on a desk with the words "GOOD MORNING" in red.',
    'A neon sign in a dark street that reads "OPEN 24 HOURS".',
    'A birthday card with a cake and the words "Happy Birthday, Anna".',
    "山间的小木屋，门上的木牌写着“回家”。",
    "雪地里一只戴红围巾的小狗，清晨的阳光。",
    "A 🐱 asleep on a pile of 📚 under the 🌙.",
    "🌊 🏄 🌅",
)
"""Prompts that ask for written words, in Chinese, and with emoji."""


@dataclass(frozen=True)
class StudyPart:
    """A job, and the folder of its answers."""

    folder: Place
    job: Job

    @property
    def cfg(self) -> SampleConfig:
        """The settings, which all its prompts share."""
        return self.job.prompts[0].cfg


def varied(base: SampleConfig, values: Mapping[str, Sequence[float]]) -> tuple[SampleConfig, dict[str, list]]:
    """Settings varied one at a time: (the settings around which, field of NAMES -> its several settings in rising order).

    A field with one value in ``values`` has that everywhere and is not varied. Raises InputError for a value out of range, and
    where no field has two values.
    """
    around = replace(base, **{name: numbers[0] for name, numbers in values.items() if len(numbers) == 1})
    several = {name: sorted(numbers) for name, numbers in values.items() if len(numbers) > 1}
    if not several:
        raise InputError(f"nothing varies; give two values or more for one of {', '.join(NAMES.values())}")
    return around, {name: [replace(around, **{name: n}) for n in numbers] for name, numbers in several.items()}


def parts_of(
    model: Chameleon,
    prompts: Sequence[Prompt],
    cfgs: Sequence[SampleConfig],
    folder: Place,
    seed: int,
    copies: int = 1,
    rows: int = 16,
    origin: PictureOrigin | None = None,
) -> list[StudyPart]:
    """A part for each of the different ``cfgs``, in a folder named by its settings below ``folder``.

    ``origin`` is what its pictures tell of the model.
    """
    weights, parts = fingerprint(model), []
    for cfg in dict.fromkeys(cfgs):
        asked = tuple(replace(prompt, cfg=cfg) for prompt in prompts)
        name = "-".join(f"{NAMES[field]}-{getattr(cfg, field)}" for field in NAMES)
        parts.append(StudyPart(folder / name, Job(asked, seed, copies, rows, model=weights, origin=origin)))
    return parts


def painted(
    model: Chameleon, vq: ImageTokenizer, vocab: Vocab, parts: Sequence[StudyPart], done: Sequence[Sequence[Answer]]
) -> Iterator[tuple[int, Answer]]:
    """Yields (number of the part, answer) for all answers but those ``done`` (:func:`finished_parts`), as they end."""
    for number, (part, answers) in enumerate(zip(parts, done, strict=True)):
        if len(answers) < len(part.job.items):
            for answer in paint(model, vq, vocab, part.job, part.folder, answers):
                yield number, answer


def finished_parts(parts: Sequence[StudyPart]) -> list[list[Answer]]:
    """Per part the answers that an earlier run of the same study wrote. Raises InputError for those of another."""
    return [finished(part.job, part.folder) for part in parts]


class StudyResult:
    """The answers of all parts, by (part, prompt, copy), with their first pictures. ``base``: settings not yet varied."""

    def __init__(self, parts: Sequence[StudyPart], answers: Sequence[Sequence[Answer]], base: SampleConfig):
        self.parts, self.base = list(parts), base
        self._answers = [{(answer.ask, answer.copy): answer for answer in of_part} for of_part in answers]

    @property
    def prompts(self) -> tuple[Prompt, ...]:
        return self.parts[0].job.prompts

    @property
    def copies(self) -> int:
        return self.parts[0].job.copies

    def part(self, cfg: SampleConfig) -> int:
        """The number of the part with the settings ``cfg``."""
        return next(number for number, part in enumerate(self.parts) if part.cfg == cfg)

    def picture(self, part: int, ask: int, copy: int = 0) -> Image.Image | None:
        """The first picture of an answer in RGB; None where it has none."""
        answer = self._answers[part][ask, copy]
        if not answer.files:
            return None
        return opened(self.parts[part].folder / answer.files[0])

    def record(self, out: Place) -> dict:
        """What a study.json in ``out`` says of all answers: seed, prompts, and per part its settings and answers."""
        parts = []
        for part, answers in zip(self.parts, self._answers, strict=True):
            folder = part.folder.relative_to(out).as_posix()
            lines = [asdict(answers[item]) for item in sorted(answers)]
            for line in lines:
                line["files"] = [f"{folder}/{name}" for name in line["files"]]
            parts.append({"settings": asdict(part.cfg), "answers": lines})
        return {"seed": self.parts[0].job.seed, "prompts": [prompt.text for prompt in self.prompts], "parts": parts}


def settings_tables(
    result: StudyResult, around: SampleConfig, several: Mapping[str, list[SampleConfig]]
) -> list[PictureTable]:
    """A table per varied setting: a row per prompt, a column per value."""
    tables = []
    for name, cfgs in several.items():
        held = ", ".join(f"{NAMES[other]} {getattr(around, other)}" for other in NAMES if other != name)
        columns = tuple(_value(name, cfg, around) for cfg in cfgs)
        rows = tuple(
            (prompt.text, tuple(PictureCell(result.picture(result.part(cfg), ask)) for cfg in cfgs))
            for ask, prompt in enumerate(result.prompts)
        )
        tables.append(PictureTable(f"{NAMES[name].capitalize()} ({held})", columns, rows))
    return tables


def _value(name: str, cfg: SampleConfig, around: SampleConfig) -> str:
    value = getattr(cfg, name)
    return f"{NAMES[name]} {value}" + " (default)" * (value == getattr(around, name))


def seeds_numbers(result: StudyResult, lpips: Distance | None = None) -> dict:
    """:func:`variety` of the pictures of each prompt, in order, and the mean over the prompts."""
    tables = []
    for ask in range(len(result.prompts)):
        pictures = [result.picture(0, ask, copy) for copy in range(result.copies)]
        tables.append(variety([np.asarray(picture) for picture in pictures if picture], lpips))
    return {"prompts": tables, "mean": mean_of(tables)}


def seeds_table(result: StudyResult, numbers: dict) -> PictureTable:
    """A row per prompt, a column per copy; the label of a row ends with its numbers."""
    rows = []
    for ask, (prompt, row) in enumerate(zip(result.prompts, numbers["prompts"], strict=True)):
        cells = tuple(PictureCell(result.picture(0, ask, copy)) for copy in range(result.copies))
        rows.append((f"{prompt.text} ({variety_words(row)})", cells))
    return PictureTable(
        f"{result.copies} seeds a prompt", tuple(f"copy {n + 1}" for n in range(result.copies)), tuple(rows)
    )


def variety_words(row: dict) -> str:
    """The numbers of :func:`variety` in words."""
    words = f"{row['different']:g} different of {row['pictures']:g}"
    for name, text in (("rms", "RMS {:.1f}"), ("one_minus_ssim", "1-SSIM {:.2f}"), ("lpips", "LPIPS {:.3f}")):
        words += ", " + text.format(row[name]) if row.get(name) is not None else ""
    return words


def words_numbers(result: StudyResult, reader: WordReader | None) -> dict:
    """:func:`score_words` of each answer in order (empty where no words are quoted, or nothing reads), and their means."""
    scores = []
    for ask, prompt in enumerate(result.prompts):
        for copy in range(result.copies):
            image = result.picture(0, ask, copy)
            read = reader.read(image) if reader and image else ""
            scores.append(score_words(prompt.text, read) if reader else {})
    kept = [score for score in scores if score]
    means = {
        name: float(np.mean([score[name] for score in kept])) for name in ("exact", "character_error_rate") if kept
    }
    return {"reader": reader.name if reader else None, "answers": scores, "mean": means}


def words_table(result: StudyResult, numbers: dict) -> PictureTable:
    """Below each picture its prompt and what was read in it: a row per prompt, or where each has one picture TILES in a row."""
    cells, scores = [], iter(numbers["answers"])
    for ask, prompt in enumerate(result.prompts):
        for copy in range(result.copies):
            caption = f"{prompt.text} {_read_words(next(scores))}".rstrip()
            cells.append(PictureCell(result.picture(0, ask, copy), caption))
    columns = result.copies if result.copies > 1 else min(TILES, len(cells))
    cells += [None] * (-len(cells) % columns)
    rows = tuple(("", tuple(cells[first : first + columns])) for first in range(0, len(cells), columns))
    return PictureTable("", ("",) * columns, rows)


def _read_words(score: dict) -> str:
    if not score:
        return ""
    verdict = "exact" if score["exact"] else f"character error rate {score['character_error_rate']:.2f}"
    return f"read: {score['read'] or 'nothing'} ({verdict})"
