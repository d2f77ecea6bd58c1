"""A sampling job: prompts in, a folder of PNGs and one line of JSON per answer out; a run that was stopped can be resumed."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import jax
import numpy as np
from PIL import Image

from lumina_jax.config import SampleConfig
from lumina_jax.errors import InputError
from lumina_jax.layout import answer_tokens
from lumina_jax.model.chameleon import Chameleon
from lumina_jax.model.image_tokenizer import ImageTokenizer, decode_image
from lumina_jax.sample.picture import Broken, grid, split
from lumina_jax.sample.prompt import Prompt
from lumina_jax.sample.stream import stream
from lumina_jax.storage import atomic_write_text
from lumina_jax.vocab import Vocab


@dataclass(frozen=True)
class Job:
    """Answers each of ``prompts`` ``copies`` times, ``rows`` answers at once; ``share`` (i, n) is the part of worker i of n.

    ``model`` is the fingerprint (model.params) of the weights. Copy 0 of prompt i draws from ``fold_in(key(seed), i)`` and copy c
    from that key folded with c, so an answer does not depend on what else the job holds.
    """

    prompts: tuple[Prompt, ...]
    seed: int = 0
    copies: int = 1
    rows: int = 16
    share: tuple[int, int] = (0, 1)
    model: str = ""

    @property
    def items(self) -> list[tuple[int, int]]:
        """The (prompt, copy) indices of this worker."""
        every = [(prompt, copy) for prompt in range(len(self.prompts)) for copy in range(self.copies)]
        return every[self.share[0] :: self.share[1]]

    @property
    def record(self) -> str:
        """The name of this worker's file of answers."""
        worker, workers = self.share
        return "samples.jsonl" if workers == 1 else f"samples-{worker}-of-{workers}.jsonl"

    def key(self, item: tuple[int, int]) -> jax.Array:
        """The random key of a (prompt, copy)."""
        index, copy = item
        seed = self.seed if self.prompts[index].seed is None else self.prompts[index].seed
        key = jax.random.fold_in(jax.random.key(seed), index)
        return jax.random.fold_in(key, copy) if copy else key

    def stem(self, item: tuple[int, int]) -> str:
        """The beginning of the file names of a (prompt, copy)."""
        digits = max(3, len(str(len(self.prompts) - 1)))
        index, copy = item
        return f"{index:0{digits}d}" + (f"-{copy:0{len(str(self.copies - 1))}d}" if self.copies > 1 else "")

    @property
    def fingerprint(self) -> str:
        """16 hex digits that change with anything that changes an answer."""
        digest = hashlib.sha256(repr((self.seed, self.copies, self.share, self.model)).encode())
        for prompt in self.prompts:
            settings = asdict(prompt.cfg)
            digest.update(repr((prompt.text, prompt.ids.tolist(), prompt.size, prompt.seed, settings)).encode())
        return digest.hexdigest()[:16]


@dataclass(frozen=True)
class Answer:
    """A line of the record: the answer to copy ``copy`` of prompt number ``ask``, whose text is ``prompt``.

    ``files`` are the names of its pictures; ``broken`` says why others could not be read.
    """

    ask: int
    copy: int
    prompt: str
    files: tuple[str, ...]
    text: str
    passes: int
    broken: tuple[str, ...] = ()


def finished(job: Job, out: Path) -> list[Answer]:
    """The answers that an earlier run of the same job wrote into ``out``.

    Raises InputError when the folder holds another job's. An unfinished last line, of a run that was killed, is dropped.
    """
    file = out / job.record
    lines = file.read_bytes().split(b"\n")[:-1] if file.is_file() else []
    try:
        answers = [json.loads(line) for line in lines]
    except ValueError as error:
        raise InputError(f"{file} holds a line that is not JSON: {error}; remove it, or give another folder") from error
    if any(answer.pop("job", None) != job.fingerprint for answer in answers):
        raise InputError(
            f"{file} holds answers of another model or to other prompts, seeds or settings; "
            "to go on give the same, else another folder"
        )
    return [Answer(**{**line, "files": tuple(line["files"]), "broken": tuple(line["broken"])}) for line in answers]


def paint(
    model: Chameleon, vq: ImageTokenizer, vocab: Vocab, job: Job, out: Path, done: Sequence[Answer] = ()
) -> Iterator[Answer]:
    """Yields each answer when it has ended and its files are written; ``done`` (:func:`finished`) are not sampled again.

    Writes ``out``/NNN-K.png (picture K of prompt NNN; NNN-C-K.png for copy C where there are several) and a line of samples.jsonl
    per answer; a run may be stopped at any moment. When all answers have ended their lines are sorted.
    """
    skipped = {(answer.ask, answer.copy) for answer in done}
    every = list(done)
    _write(job, out, every)
    with (out / job.record).open("a") as record:
        for answer in _answers(model, vq, vocab, job, out, [item for item in job.items if item not in skipped]):
            record.write(_line(job, answer))
            record.flush()
            every.append(answer)
            yield answer
    _write(job, out, _sorted(every))


def sheet(job: Job, out: Path, answers: Sequence[Answer]) -> Path:
    """Writes all pictures of a job on one sheet, grid.png. Raises InputError when there are none."""
    files = [(name, answer.prompt) for answer in _sorted(answers) for name in answer.files]
    images = [Image.open(out / name) for name, _ in files]
    grid(images, columns=min(4, len(images)), captions=[text for _, text in files]).save(out / "grid.png")
    return out / "grid.png"


def _sorted(answers: Sequence[Answer]) -> list[Answer]:
    return sorted(answers, key=lambda answer: (answer.ask, answer.copy))


def _write(job: Job, out: Path, answers: Sequence[Answer]) -> None:
    """Replaces the file of answers."""
    atomic_write_text(out / job.record, "".join(_line(job, answer) for answer in answers))


def _line(job: Job, answer: Answer) -> str:
    return json.dumps({"job": job.fingerprint} | asdict(answer)) + "\n"


def _answers(
    model: Chameleon, vq: ImageTokenizer, vocab: Vocab, job: Job, out: Path, items: Sequence[tuple[int, int]]
) -> Iterator[Answer]:
    """Samples ``items`` (prompt, copy), in one stream for all that have the same settings, and writes their pictures."""
    groups: dict[SampleConfig, list[tuple[int, int]]] = {}
    for item in items:
        groups.setdefault(job.prompts[item[0]].cfg, []).append(item)
    for cfg, group in groups.items():
        prompts = [job.prompts[index] for index, _ in group]
        keys = [job.key(item) for item in group]
        sizes = [prompt.size for prompt in prompts]
        if None not in sizes:
            cfg = cfg.limited(answer_tokens(sizes))
        ids = [prompt.ids for prompt in prompts]
        for partial in stream(model, ids, keys[0], cfg, vocab, sizes=sizes, keys=keys, rows=job.rows):
            item, prompt = group[partial.index], prompts[partial.index]
            images, text, broken = read(partial.tokens, vq, vocab)
            files = tuple(f"{job.stem(item)}-{number}.png" for number in range(len(images)))
            for image, name in zip(images, files, strict=True):
                image.save(out / name)
            yield Answer(*item, prompt.text, files, text, partial.passes, tuple(broken))


def read(answer: np.ndarray, vq: ImageTokenizer, vocab: Vocab) -> tuple[list[Image.Image], str, list[str]]:
    """An answer i32[n] -> (its pictures, its text, why any other picture in it could not be read)."""
    pieces = split(answer, vocab)
    codes = [piece for piece in pieces if isinstance(piece, np.ndarray)]
    text = " ".join(piece.strip() for piece in pieces if isinstance(piece, str)).strip()
    broken = [piece.reason for piece in pieces if isinstance(piece, Broken)]
    return [decode_image(vq, c) for c in codes], text, broken
