"""A sampling job: prompts in, a folder of PNGs and one line of JSON per answer out; a run that was stopped can be resumed."""

import hashlib
import io
import json
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

import jax
import numpy as np
from PIL import Image

from lumina_jax.config import SampleConfig
from lumina_jax.errors import ExistingFileError, InputError
from lumina_jax.layout import answer_tokens
from lumina_jax.model.chameleon import Chameleon
from lumina_jax.model.image_tokenizer import ImageTokenizer, decode_image
from lumina_jax.pictures.metadata import save_picture
from lumina_jax.places import Place, store_errors
from lumina_jax.sample.made import PictureOrigin, made, made_picture
from lumina_jax.sample.picture import Broken, grid, split
from lumina_jax.sample.prompt import Prompt
from lumina_jax.sample.stream import compile_ahead, stream
from lumina_jax.storage import atomic_write, atomic_write_text, remove_strays, storage_errors
from lumina_jax.vocab import Vocab

MAX_ANSWERS = 10**6
"""The most answers of a job: all are listed in memory."""
SHEET_PICTURES = 256
"""The most pictures on a sheet, the first ones: a larger sheet fits no screen and hardly into memory."""
UPLOAD_SECONDS = 15.0
"""On a store the file of answers is written at most so often; a killed run paints the answers since then again."""
UPLOAD_SHARE = 20
"""And at most one part in so many of the time goes into writing it."""
OF_WORKER = r"(-\d+-of-\d+)?"
RECORDS = re.compile(rf"samples{OF_WORKER}\.jsonl|grid{OF_WORKER}\.png")
SHARED = re.compile(r"\d{3,}(-\d+){1,2}\.png|rejects\.jsonl")
"""The names of files that the workers of one job write side by side."""
ANSWERED = ("ask", "copy", "prompt", "files", "text", "passes", "broken")
"""The fields of a line that are those of its Answer; the others say how it was made (sample.made)."""
OTHERS = re.compile(r"live\.png|turn\d+-(shown-)?\d+\.png|transcript\.jsonl")
"""The names of files that an answer shown live and a dialog write."""


@dataclass(frozen=True)
class Job:
    """Answers each of ``prompts`` ``copies`` times, ``rows`` answers at once; ``share`` (i, n) is the part of worker i of n.

    ``model`` is the fingerprint (model.params) of the weights, ``origin`` what files tell of it. Copy 0 of prompt i draws from
    ``fold_in(seed_key(seed), i)`` and copy c from that key folded with c, so an answer does not depend on what else the job holds.
    A prompt of None is one that was rejected: it keeps its number and is not answered. Raises InputError for more than MAX_ANSWERS
    answers.
    """

    prompts: tuple[Prompt | None, ...]
    seed: int = 0
    copies: int = 1
    rows: int = 16
    share: tuple[int, int] = (0, 1)
    model: str = ""
    origin: PictureOrigin | None = None

    def __post_init__(self):
        if len(self.prompts) * self.copies > MAX_ANSWERS:
            raise InputError(
                f"{len(self.prompts):,} prompts x {self.copies:,} answers; a job holds at most {MAX_ANSWERS:,} answers: divide it"
            )

    @property
    def items(self) -> list[tuple[int, int]]:
        """The (prompt, copy) indices of this worker."""
        asked = [index for index, prompt in enumerate(self.prompts) if prompt is not None]
        return [(index, copy) for index in asked for copy in range(self.copies) if self._is_mine(index, copy)]

    def _is_mine(self, index: int, copy: int) -> bool:
        worker, workers = self.share
        return (index * self.copies + copy) % workers == worker

    @property
    def record(self) -> str:
        """The name of this worker's file of answers."""
        return _own("samples.jsonl", self.share)

    @property
    def sheet(self) -> str:
        """The name of this worker's sheet."""
        return _own("grid.png", self.share)

    def key(self, item: tuple[int, int]) -> jax.Array:
        """The random key of a (prompt, copy)."""
        seed, (index, copy) = self.seed_of(item[0]), self.place(item)
        key = jax.random.fold_in(seed_key(seed), index)
        return jax.random.fold_in(key, copy) if copy else key

    def seed_of(self, index: int) -> int:
        """The seed of a prompt."""
        seed = self.prompts[index].seed
        return self.seed if seed is None else seed

    def place(self, item: tuple[int, int]) -> tuple[int, int]:
        """The (index, copy) whose random key a (prompt, copy) has: its own, unless the prompt has one."""
        index, copy = self.prompts[item[0]].place or (item[0], 0)
        return index, copy + item[1]

    def made(self, item: tuple[int, int]) -> dict[str, object]:
        """What decides the answer to a (prompt, copy) (made.made)."""
        return made(self.origin, self.prompts[item[0]], self.seed_of(item[0]), self.place(item))

    def stem(self, item: tuple[int, int]) -> str:
        """The beginning of the file names of a (prompt, copy)."""
        digits = max(3, len(str(len(self.prompts) - 1)))
        index, copy = item
        return f"{index:0{digits}d}" + (f"-{copy:0{len(str(self.copies - 1))}d}" if self.copies > 1 else "")

    @cached_property
    def fingerprints(self) -> tuple[str | None, ...]:
        """By prompt, 16 hex digits that change with anything that changes its answers or the names of their files."""
        return tuple(prompt and self._fingerprint(index, prompt) for index, prompt in enumerate(self.prompts))

    def _fingerprint(self, index: int, prompt: Prompt) -> str:
        settings = (self.seed_of(index), self.copies, self.stem((index, 0)), self.model, prompt.text, prompt.size)
        settings += (asdict(prompt.cfg), *[prompt.place] * bool(prompt.place))
        return hashlib.sha256(repr(settings).encode() + prompt.ids.tobytes()).hexdigest()[:16]


@dataclass(frozen=True)
class Drawn:
    """The answer to a (prompt, copy) before it is written: its ``images`` in RGB, its text, the passes of the model that it took;
    ``broken`` says why other pictures could not be read."""

    item: tuple[int, int]
    images: tuple[Image.Image, ...]
    text: str
    passes: int
    broken: tuple[str, ...] = ()


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


def _own(name: str, share: tuple[int, int]) -> str:
    """The name of a file that each worker has for itself."""
    stem, suffix = name.split(".")
    return name if share[1] == 1 else f"{stem}-{share[0]}-of-{share[1]}.{suffix}"


def _of_others(name: str, share: tuple[int, int]) -> list[str]:
    """The names that ``name`` has for the other workers."""
    return [_own(name, (worker, share[1])) for worker in range(share[1]) if worker != share[0]]


def seed_key(seed: int) -> jax.Array:
    """The random key of a whole number of any size: ``jax.random.key`` of its lowest 32 bits, folded with the higher ones.

    They are folded 32 bits at a time; after those of a negative number's absolute value comes a 0. jax.random.key itself drops all
    bits but the lowest 32.
    """
    rest, words = abs(seed), []
    while rest or not words:
        words.append(np.uint32(rest & 0xFFFFFFFF))
        rest >>= 32
    key = jax.random.key(words[0])
    for word in words[1:] + [np.uint32(0)] * (seed < 0):
        key = jax.random.fold_in(key, word)
    return key


def check_free(out: Place, share: tuple[int, int] = (0, 1)) -> None:
    """Raises ExistingFileError when ``out`` holds results of an earlier run; those of the other workers of n may be there."""
    names = sorted(path.name for path in out.iterdir()) if out.is_dir() else []
    kinds = (RECORDS, OTHERS, *[SHARED] * (share[1] == 1))
    expected = {*_of_others("samples.jsonl", share), *_of_others("grid.png", share)}
    held = [name for name in names if any(kind.fullmatch(name) for kind in kinds) and name not in expected]
    if held:
        raise ExistingFileError(
            f"{out} holds results of an earlier run ({held[0]}{' and others' * (len(held) > 1)}); continue it with --resume, or "
            "give another --out"
        )


def finished(job: Job, out: Place) -> list[Answer]:
    """The answers that an earlier run of the same job wrote into ``out``, without those of which a picture is gone or damaged.

    Raises InputError when the folder holds another job's, naming the prompt that differs. An unfinished last line, of a run that
    was killed, is dropped.
    """
    return [
        answer for answer in _recorded(job, out / job.record) if all(_is_whole(out / name) for name in answer.files)
    ]


def check_workers(job: Job, out: Place) -> None:
    """Raises InputError where other workers have written answers of another job into ``out``."""
    for name in _of_others("samples.jsonl", job.share):
        _recorded(job, out / name)


def _recorded(job: Job, file: Place) -> list[Answer]:
    """The answers in a file of the same job, in order, each once."""
    with storage_errors(file):
        lines = file.read_bytes().split(b"\n")[:-1] if file.is_file() else []
    answers = {}
    for number, line in enumerate(lines, start=1):
        try:
            fields = json.loads(line)
            fingerprint = fields.pop("job")
            fields = {name: fields[name] for name in ANSWERED}
            fields |= {"files": tuple(fields["files"]), "broken": tuple(fields["broken"])}
            answer = Answer(**fields)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise InputError(
                f"{file}, line {number}, is no line of a job: {error}; remove it, or give another folder"
            ) from error
        _check_same(job, answer, fingerprint, file)
        answers[answer.ask, answer.copy] = answer
    return list(answers.values())


def _check_same(job: Job, answer: Answer, fingerprint: str, file: Place) -> None:
    """Raises InputError where an answer of an earlier run is not one to the same prompt of ``job``."""
    number, prompt = answer.ask + 1, job.prompts[answer.ask] if answer.ask < len(job.prompts) else None
    cure = "to go on give the same, else another folder"
    if prompt is None:
        raise InputError(
            f"{file} holds an answer to prompt {number}, {answer.prompt!r}, which this job does not ask; {cure}"
        )
    if prompt.text != answer.prompt:
        raise InputError(f"{file} answers prompt {number} as {answer.prompt!r}, but now it is {prompt.text!r}; {cure}")
    if job.fingerprints[answer.ask] != fingerprint:
        raise InputError(
            f"{file} holds answers of another model or to other prompts, seeds or settings (prompt {number}, {prompt.text!r}); "
            f"{cure}"
        )


def _is_whole(file: Place) -> bool:
    """Whether a file is a PNG with all its bytes."""
    try:
        with Image.open(io.BytesIO(file.read_bytes())) as image:
            image.verify()
    except (*store_errors(), SyntaxError, ValueError):
        return False
    return True


def paint(
    model: Chameleon, vq: ImageTokenizer, vocab: Vocab, job: Job, out: Place, done: Sequence[Answer] = ()
) -> Iterator[Answer]:
    """Yields each answer when it has ended and its files are written; ``done`` (:func:`finished`) are not sampled again.

    Writes ``out``/NNN-K.png (picture K of prompt NNN; NNN-C-K.png for copy C where there are several) and a line of samples.jsonl
    per answer; a run may be stopped at any moment. When all answers have ended their lines are sorted. What is wrong with a prompt
    is raised by the call itself.
    """
    skipped = {(answer.ask, answer.copy) for answer in done}
    drawn = draw(model, vq, vocab, job, [item for item in job.items if item not in skipped])
    return _recording(job, out, list(done), (_saved(job, out, answer) for answer in drawn))


def _recording(job: Job, out: Place, every: list[Answer], answers: Iterator[Answer]) -> Iterator[Answer]:
    """Yields ``answers`` and records them behind ``every``."""
    stems = {job.stem(item) for item in job.items}
    remove_strays(out, lambda name: name in (job.record, job.sheet) or name.rpartition("-")[0] in stems)
    _write(job, out, every)
    follow = _appending if isinstance(out, Path) else _rewriting
    yield from follow(job, out, every, answers)
    _write(job, out, _sorted(every))


def _appending(job: Job, out: Path, every: list[Answer], answers: Iterator[Answer]) -> Iterator[Answer]:
    """Yields ``answers``, each behind ``every`` when its line is on the disk."""
    with storage_errors(out / job.record), (out / job.record).open("a") as record:
        for answer in answers:
            record.write(_line(job, answer))
            record.flush()
            every.append(answer)
            yield answer


def _rewriting(job: Job, out: Place, every: list[Answer], answers: Iterator[Answer]) -> Iterator[Answer]:
    """:func:`_appending` on a store, whose files are written whole: not after every answer, so that this costs little, and in the
    end however it comes."""
    due, written = time.monotonic() + UPLOAD_SECONDS, len(every)
    try:
        for answer in answers:
            every.append(answer)
            if (begun := time.monotonic()) >= due:
                _write(job, out, every)
                due = time.monotonic() + max(UPLOAD_SECONDS, UPLOAD_SHARE * (time.monotonic() - begun))
                written = len(every)
            yield answer
    finally:
        if written < len(every):
            _write(job, out, every)


def sheet(job: Job, out: Place, answers: Sequence[Answer]) -> Place:
    """Writes the pictures of a job, at most SHEET_PICTURES, on one sheet, ``job.sheet``. Raises InputError when there are none."""
    files = [(name, answer.prompt) for answer in _sorted(answers) for name in answer.files][:SHEET_PICTURES]
    images = [opened(out / name) for name, _ in files]
    picture = grid(images, columns=min(4, len(images)), captions=[text for _, text in files])
    with atomic_write(out / job.sheet) as temporary:
        picture.save(temporary, format="PNG")
    return out / job.sheet


def opened(file: Place) -> Image.Image:
    """A picture that a job wrote, in RGB."""
    with storage_errors(file), Image.open(io.BytesIO(file.read_bytes())) as image:
        return image.convert("RGB")


def _sorted(answers: Sequence[Answer]) -> list[Answer]:
    return sorted(answers, key=lambda answer: (answer.ask, answer.copy))


def _write(job: Job, out: Place, answers: Sequence[Answer]) -> None:
    """Replaces the file of answers."""
    atomic_write_text(out / job.record, "".join(_line(job, answer) for answer in answers))


def _line(job: Job, answer: Answer) -> str:
    item = (answer.ask, answer.copy)
    return json.dumps({"job": job.fingerprints[answer.ask]} | job.made(item) | asdict(answer)) + "\n"


def draw(
    model: Chameleon, vq: ImageTokenizer, vocab: Vocab, job: Job, items: Sequence[tuple[int, int]]
) -> Iterator[Drawn]:
    """Samples ``items`` (prompt, copy), in one stream for all that have the same settings; yields each answer when it has ended.

    All prompts are checked at once: what is wrong with one is raised before the first is answered.
    """
    streams = [(group, stream(model, *asked, **options)) for group, asked, options in _streams(vocab, job, items)]
    return _ended(vq, vocab, job, streams)


def compile_job(form: Chameleon, vocab: Vocab, job: Job) -> None:
    """Compiles what the first answers of ``job`` need (stream.compile_ahead), while the weights are still read."""
    _, asked, options = _streams(vocab, job, job.items)[0]
    compile_ahead(form, *asked, **options)


def _streams(vocab: Vocab, job: Job, items: Sequence[tuple[int, int]]) -> list[tuple]:
    """(items, the arguments of stream behind the model, its options) for all ``items`` that have the same settings."""
    groups: dict[SampleConfig, list[tuple[int, int]]] = {}
    for item in items:
        groups.setdefault(job.prompts[item[0]].cfg, []).append(item)
    streams = []
    for cfg, group in groups.items():
        prompts = [job.prompts[index] for index, _ in group]
        keys, sizes = [job.key(item) for item in group], [prompt.size for prompt in prompts]
        # Of all prompts, so that a resumed run repeats what an unbroken one does.
        every = [prompt.size for prompt in job.prompts if prompt is not None and prompt.cfg == cfg]
        if None not in every:
            cfg = cfg.limited(answer_tokens(every, vocab.image_layout))
        options = dict(sizes=sizes, keys=keys, rows=job.rows, opens=[size is not None for size in sizes])
        streams.append((group, ([prompt.ids for prompt in prompts], keys[0], cfg, vocab), options))
    return streams


def _ended(vq: ImageTokenizer, vocab: Vocab, job: Job, streams: Sequence[tuple]) -> Iterator[Drawn]:
    """The answers of (items, stream) pairs."""
    for group, partials in streams:
        for partial in partials:
            item = group[partial.index]
            size = job.prompts[item[0]].size
            # A larger picture in the same stream allows more tokens than this answer would get alone.
            limit = None if size is None else answer_tokens([size], vocab.image_layout)
            tokens = partial.tokens[:limit]
            images, text, broken = read(tokens, vq, vocab)
            yield Drawn(item, tuple(images), text, partial.passes, tuple(broken))


def _saved(job: Job, out: Place, drawn: Drawn) -> Answer:
    """Writes the pictures of an answer."""
    files = tuple(f"{job.stem(drawn.item)}-{number}.png" for number in range(len(drawn.images)))
    for number, (image, name) in enumerate(zip(drawn.images, files, strict=True)):
        save_picture(image, out / name, made_picture(job.made(drawn.item), job.prompts[drawn.item[0]], number))
    return Answer(*drawn.item, job.prompts[drawn.item[0]].text, files, drawn.text, drawn.passes, drawn.broken)


def read(answer: np.ndarray, vq: ImageTokenizer, vocab: Vocab) -> tuple[list[Image.Image], str, list[str]]:
    """An answer i32[n] -> (its pictures, its text, why any other picture in it could not be read)."""
    pieces = split(answer, vocab)
    codes = [piece for piece in pieces if isinstance(piece, np.ndarray)]
    text = " ".join(piece.strip() for piece in pieces if isinstance(piece, str)).strip()
    broken = [piece.reason for piece in pieces if isinstance(piece, Broken)]
    return [decode_image(vq, c) for c in codes], text, broken
