"""A folder of pictures: prompts in, PNGs and one line of JSON per answer out, as they end; what stands is not painted again."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import jax
import numpy as np
from PIL import Image

from lumina_jax.config import SampleConfig
from lumina_jax.errors import InputError
from lumina_jax.layout import TOKENS_AROUND, grid_tokens
from lumina_jax.model.chameleon import Chameleon
from lumina_jax.model.image_tokenizer import ImageTokenizer, decode_image
from lumina_jax.sample.picture import Broken, grid, split
from lumina_jax.sample.prompt import Ask
from lumina_jax.sample.stream import stream
from lumina_jax.vocab import Vocab


@dataclass(frozen=True)
class Job:
    """What to paint into a folder: each of ``asks`` so many times (``copies``), ``rows`` at once; the share of worker ``own[0]``
    of ``own[1]``. ``model`` is the fingerprint (model.params) of the weights that answer.

    Copy 0 of ask i draws from ``fold_in(key(seed), i)``, copy c from that folded with c, whatever is painted beside it.
    """

    asks: tuple[Ask, ...]
    seed: int = 0
    copies: int = 1
    rows: int = 16
    own: tuple[int, int] = (0, 1)
    model: str = ""

    @property
    def places(self) -> list[tuple[int, int]]:
        """The (ask, copy) of this worker."""
        every = [(ask, copy) for ask in range(len(self.asks)) for copy in range(self.copies)]
        return every[self.own[0] :: self.own[1]]

    @property
    def record(self) -> str:
        """The file of this worker's lines."""
        worker, workers = self.own
        return "samples.jsonl" if workers == 1 else f"samples-{worker}-of-{workers}.jsonl"

    def key(self, place: tuple[int, int]) -> jax.Array:
        ask, copy = place
        seed = self.seed if self.asks[ask].seed is None else self.asks[ask].seed
        key = jax.random.fold_in(jax.random.key(seed), ask)
        return jax.random.fold_in(key, copy) if copy else key

    def stem(self, place: tuple[int, int]) -> str:
        """The beginning of a picture's file name."""
        digits = max(3, len(str(len(self.asks) - 1)))
        ask, copy = place
        return f"{ask:0{digits}d}" + (f"-{copy:0{len(str(self.copies - 1))}d}" if self.copies > 1 else "")

    @property
    def fingerprint(self) -> str:
        """16 hex digits that change with anything that changes an answer."""
        digest = hashlib.sha256(repr((self.seed, self.copies, self.own, self.model)).encode())
        for ask in self.asks:
            digest.update(repr((ask.said, ask.ids.tolist(), ask.size, ask.seed, asdict(ask.cfg))).encode())
        return digest.hexdigest()[:16]


@dataclass(frozen=True)
class Answer:
    """The answer to copy ``copy`` of ask ``ask``: pictures by name, text, and why any picture in it could not be read."""

    ask: int
    copy: int
    prompt: str
    files: tuple[str, ...]
    text: str
    passes: int
    broken: tuple[str, ...] = ()


def finished(job: Job, out: Path) -> list[Answer]:
    """What an earlier run of the same job has written into ``out``.

    Raises ValueError when the folder holds another job's. A line that a killed run did not end is dropped.
    """
    file = out / job.record
    lines = file.read_bytes().split(b"\n")[:-1] if file.is_file() else []
    answers = [json.loads(line) for line in lines]
    if any(answer.pop("job", None) != job.fingerprint for answer in answers):
        raise InputError(
            f"{file} holds answers of another model or to other prompts, seeds or settings; "
            "to go on give the same, else another folder"
        )
    return [Answer(**{**line, "files": tuple(line["files"]), "broken": tuple(line["broken"])}) for line in answers]


def paint(
    model: Chameleon, vq: ImageTokenizer, vocab: Vocab, job: Job, out: Path, done: Sequence[Answer] = ()
) -> Iterator[Answer]:
    """Yields each answer when it has ended and its files are written; those ``done`` (:func:`finished`) are not asked again.

    Writes ``out``/NNN-K.png (picture K of prompt NNN; NNN-C-K.png for copy C where there are several) and a line of samples.jsonl
    each: a folder may be left at any moment. Once all have ended the lines are put in order.
    """
    out.mkdir(parents=True, exist_ok=True)
    stands = {(answer.ask, answer.copy) for answer in done}
    with (out / job.record).open("w") as record:
        record.writelines(_line(job, answer) for answer in done)
        record.flush()
        every = list(done)
        for answer in _answers(model, vq, vocab, job, out, [place for place in job.places if place not in stands]):
            record.write(_line(job, answer))
            record.flush()
            every.append(answer)
            yield answer
    every.sort(key=lambda answer: (answer.ask, answer.copy))
    whole = out / f"{job.record}.whole"
    whole.write_text("".join(_line(job, answer) for answer in every))
    whole.replace(out / job.record)


def sheet(job: Job, out: Path, answers: Sequence[Answer]) -> Path:
    """All pictures of a job on one sheet, grid.png. Raises ValueError when there are none."""
    files = [
        (name, answer.prompt) for answer in sorted(answers, key=lambda a: (a.ask, a.copy)) for name in answer.files
    ]
    images = [Image.open(out / name) for name, _ in files]
    grid(images, columns=min(4, len(images)), captions=[said for _, said in files]).save(out / "grid.png")
    return out / "grid.png"


def _line(job: Job, answer: Answer) -> str:
    return json.dumps({"job": job.fingerprint} | asdict(answer)) + "\n"


def _answers(
    model: Chameleon, vq: ImageTokenizer, vocab: Vocab, job: Job, out: Path, places: Sequence[tuple[int, int]]
) -> Iterator[Answer]:
    """In one stream for all that are sampled with the same settings."""
    groups: dict[SampleConfig, list[tuple[int, int]]] = {}
    for place in places:
        groups.setdefault(job.asks[place[0]].cfg, []).append(place)
    for cfg, mine in groups.items():
        asks = [job.asks[ask] for ask, _ in mine]
        keys = [job.key(place) for place in mine]
        sizes = [ask.size for ask in asks]
        if None not in sizes:
            longest = max(grid_tokens(*size) for size in sizes) + TOKENS_AROUND
            cfg = replace(cfg, max_new_tokens=min(cfg.max_new_tokens, longest))
        prompts = [ask.ids for ask in asks]
        for news in stream(model, prompts, keys[0], cfg, vocab, sizes=sizes, keys=keys, rows=job.rows):
            ask, copy = mine[news.index]
            painted, text, broken = read(news.tokens, vq, vocab)
            files = tuple(f"{job.stem((ask, copy))}-{number}.png" for number in range(len(painted)))
            for image, name in zip(painted, files, strict=True):
                image.save(out / name)
            yield Answer(ask, copy, job.asks[ask].said, files, text, news.passes, tuple(broken))


def read(answer: np.ndarray, vq: ImageTokenizer, vocab: Vocab) -> tuple[list[Image.Image], str, list[str]]:
    """An answer's pictures, its text, and why any picture in it could not be read."""
    pieces = split(answer, vocab)
    codes = [piece for piece in pieces if isinstance(piece, np.ndarray)]
    said = " ".join(piece.strip() for piece in pieces if isinstance(piece, str)).strip()
    broken = [piece.reason for piece in pieces if isinstance(piece, Broken)]
    return [decode_image(vq, c) for c in codes], said, broken
