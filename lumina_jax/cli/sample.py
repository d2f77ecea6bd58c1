"""run.py sample: prompts to pictures and text, in a folder, in sight while they grow, or in a dialog."""

import os
import sys
from argparse import Namespace, _SubParsersAction
from pathlib import Path

from lumina_jax.cli.arguments import output_path, seed
from lumina_jax.cli.models import load_for_sampling, make_desk, model_arguments, settings_of, size
from lumina_jax.cli.processes import worker
from lumina_jax.errors import InputError


def add_sample(verbs: _SubParsersAction) -> None:
    sample = verbs.add_parser("sample", help="text to pictures and text")
    model_arguments(sample)
    sample.add_argument("--prompt", action="append", default=[], help="what to paint, or to do; may be given again")
    sample.add_argument(
        "--prompts", metavar="FILE", help="a prompt a line; in .jsonl files an object with prompt, size, task ..."
    )
    sample.add_argument("--task", help="what to do with --image: depth, segmentation, edit, describe ... (generate)")
    sample.add_argument(
        "--image", action="append", default=[], help="a picture for --task or --raw; may be given again"
    )
    sample.add_argument(
        "--size", type=size, help="WIDTHxHEIGHT in pixels (default: a square of the model's training area)"
    )
    sample.add_argument("--free-size", action="store_true", help="say the size in the prompt only; do not force it")
    sample.add_argument("--raw", action="store_true", help="give the prompts as they are: for dialog, without a size")
    sample.add_argument("--chat", action="store_true", help="talk: a line a turn, pictures where @file.png stands")
    sample.add_argument(
        "--live", action="store_true", help="show one answer as it grows: text here, the picture in live.png"
    )
    sample.add_argument("--per-prompt", type=int, default=1, metavar="N", help="answers to each prompt (1)")
    sample.add_argument(
        "--rows", type=int, default=16, help="answers at work at once; a row that ends takes the next (16)"
    )
    sample.add_argument(
        "--tensor", type=int, metavar="N", help="split the model over N of this host's devices, answers over the others"
    )
    sample.add_argument("--resume", action="store_true", help="go on in a folder that a run of the same command left")
    sample.add_argument(
        "--worker", metavar="I/N", help="the share of process I of N, from 0; auto on a TPU pod, Slurm or MPI"
    )
    sample.add_argument("--seed", type=seed, default=0, help="same seed, same pictures (0)")
    sample.add_argument("--guidance", type=float, help="classifier-free guidance scale; 1 is off")
    sample.add_argument("--temperature", type=float, help="below 1 safer, above 1 wilder")
    sample.add_argument("--top-k", type=int, help="image tokens to draw from; 1 is greedy")
    sample.add_argument("--min-p", type=float, help="drop tokens less likely than this share of the likeliest")
    sample.add_argument("--max-new-tokens", type=int, help="longest answer")
    sample.add_argument("--grid", action="store_true", help="also write all pictures on one sheet")
    sample.add_argument("--out", type=output_path, default="out/samples", help="folder for the PNGs (out/samples)")
    sample.set_defaults(run=_sample)


def _sample(options: Namespace) -> None:
    from lumina_jax.sample.prompt import read_lines

    lines = read_lines(Path(options.prompts)) if options.prompts else []
    if not (lines or options.prompt or options.image or options.chat):
        raise InputError("no prompts; give --prompt TEXT (again for more), --prompts FILE, or --task NAME --image FILE")
    if options.per_prompt < 1 or options.rows < 1:
        raise InputError(f"--per-prompt {options.per_prompt} --rows {options.rows}; both must be at least 1")
    with _sampling_mesh(options) as mesh:
        model, vocab, vq, experiment = load_for_sampling(options, mesh)
        desk = make_desk(vq, vocab, experiment, not options.free_size)
        if options.chat:
            return _chat(model, desk, options, _settings(options, experiment)("describe"))
        _paint(model, desk, options, tuple(_asks(desk, options, lines, _settings(options, experiment))))


def _asks(desk, options: Namespace, lines: list[dict], settings) -> list:
    """The prompts of the command line, then those of a file."""
    from lumina_jax.sample.prompt import open_image

    images, task = [open_image(Path(file)) for file in options.image], options.task or "generate"
    if options.size and (options.raw or task != "generate"):
        raise InputError(
            "--size goes with pictures made from text alone; those of other tasks have their picture's size"
        )
    if options.raw:
        asks = [desk.talk(text, images, settings("question")) for text in options.prompt]
    elif task == "generate":
        if images:
            raise InputError("--image goes with --task or --raw; run.py sample --task depth --image FILE")
        asks = [desk.generate(text, options.size, settings(task)) for text in options.prompt]
    elif options.prompt:
        asks = [desk.task(task, text, images, settings(task)) for text in options.prompt]
    else:
        asks = [desk.task(task, "", [image], settings(task)) for image in images]
    for number, line in enumerate(lines, start=1):
        try:
            asks.append(desk.line(line, Path(options.prompts).parent, settings))
        except ValueError as error:
            raise InputError(f"{options.prompts}, prompt {number}: {error}") from error
    return asks


def _paint(model, desk, options: Namespace, asks: tuple) -> None:
    """Answers ``asks`` into --out."""
    from lumina_jax.model.params import fingerprint
    from lumina_jax.progress import ProgressDisplay
    from lumina_jax.sample.job import Job, finished, paint, sheet

    own = worker(options.worker) if options.worker else (0, 1)
    job = Job(asks, options.seed, options.per_prompt, options.rows, own, fingerprint(model))
    out = Path(options.out)
    if options.live:
        return _live(model, desk, job, out)
    done = finished(job, out) if options.resume else []
    answers = list(done)
    shown = len(job.places) > 1
    with ProgressDisplay("sampling", len(job.places), shown, unit="answers") as meter:
        meter.skip(len(done))
        for answer in paint(model, desk.vq, desk.vocab, job, out, done):
            answers.append(answer)
            _show(out, job, answer)
            meter.advance(1)
    if options.grid and any(answer.files for answer in answers):
        print(sheet(job, out, answers))


def _show(out: Path, job, answer) -> None:
    text = answer.text or "; ".join(answer.broken)
    for name in answer.files or [job.record]:
        print(out / name, text, flush=True)


def _live(model, desk, job, out: Path) -> None:
    """One answer in sight: text on stdout, each picture in live.png until it is whole."""
    if len(job.places) != 1:
        raise InputError(f"--live shows one answer, not {len(job.places)}; give one prompt")
    from lumina_jax.sample.live import watch

    (place,) = job.places
    ask = job.asks[place[0]]
    _follow(watch(model, desk.vq, desk.vocab, ask.ids, job.key(place), ask.cfg, size=ask.size), out, job.stem(place))


def _follow(events, out: Path, stem: str) -> None:
    """Prints what is said, and keeps the newest preview of each picture in live.png, the last as STEM-K.png."""
    from lumina_jax.sample.live import Words

    out.mkdir(parents=True, exist_ok=True)
    for event in events:
        if isinstance(event, Words):
            print(event.text, end="", flush=True)
            continue
        event.picture.save(out / "live.tmp.png")
        os.replace(out / "live.tmp.png", out / "live.png")
        print(f"\r{out / 'live.png'}: {event.lines} of {event.of} lines ", end="", file=sys.stderr, flush=True)
        if event.lines == event.of:
            event.picture.save(out / f"{stem}-{event.number}.png")
            print(f"\n{out / f'{stem}-{event.number}.png'}", flush=True)
    print(flush=True)


def _chat(model, desk, options: Namespace, cfg) -> None:
    """A dialog on stdin and stdout, until an empty line or the end of the input."""
    import re

    import jax

    from lumina_jax.sample.live import Chat
    from lumina_jax.sample.prompt import open_image

    chat, turn = Chat(model, desk, jax.random.key(options.seed), cfg), 0
    if sys.stdin is None:
        raise InputError("--chat reads its lines from stdin, which is closed")
    print("a line is a turn; @file.png in it is a picture; an empty line ends", file=sys.stderr)
    while line := (input("> ") if sys.stdin.isatty() else sys.stdin.readline()).strip():
        try:
            images = [open_image(Path(file)) for file in re.findall(r"@(\S+)", line)]
            _follow(chat.say(re.sub(r"@\S+", "<|image|>", line), images), Path(options.out), f"turn{turn}")
        except ValueError as error:
            print(f"run.py sample: {error}", file=sys.stderr)
            continue
        turn += 1


def _settings(options: Namespace, experiment):
    """Task -> how it is sampled: the model's own settings, as the task is served, changed by what the command line says."""
    from dataclasses import replace

    from lumina_jax.conversation import TASKS, served

    if options.task and options.task not in TASKS:
        raise InputError(f"--task {options.task}: the tasks are {', '.join(TASKS)}")
    said = dict(
        guidance=options.guidance,
        temperature=options.temperature,
        image_top_k=options.top_k,
        min_p=options.min_p,
        max_new_tokens=options.max_new_tokens,
    )
    changes = {name: value for name, value in said.items() if value is not None}
    own = settings_of(experiment)
    return lambda task: replace(own if task == "generate" else served(task, own), **changes)


def _sampling_mesh(options: Namespace):
    """The devices that share the model, as a context; without --tensor one device."""
    from contextlib import contextmanager, nullcontext

    if options.tensor is None:
        return nullcontext()
    import jax

    from lumina_jax.config import MeshConfig
    from lumina_jax.sharding import make_mesh

    mesh = make_mesh(MeshConfig(replica=-1, fsdp=1, tensor=options.tensor), jax.local_devices())

    @contextmanager
    def on():
        with jax.set_mesh(mesh):
            yield mesh

    return on()
