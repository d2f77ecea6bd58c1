"""run.py sample: prompts to pictures and text, in a folder, shown while they grow (--live), or in a dialog (--chat)."""

import sys
from argparse import Namespace, _SubParsersAction
from pathlib import Path

from lumina_jax.cli.arguments import output_path, seed, size
from lumina_jax.cli.models import load_for_sampling, make_prompt_builder, model_arguments, settings_of
from lumina_jax.cli.processes import worker
from lumina_jax.errors import InputError


def add_sample(verbs: _SubParsersAction) -> None:
    sample = verbs.add_parser("sample", help="text to pictures and text")
    model_arguments(sample)
    sample.add_argument("--prompt", action="append", default=[], help="what to paint, or to do; may be repeated")
    sample.add_argument("--prompts", metavar="FILE", help="a prompt per line, or .jsonl: prompt, size, task, image ...")
    sample.add_argument("--task", help="what to do with --image: depth, segmentation, edit, describe ... (generate)")
    sample.add_argument("--image", action="append", default=[], help="a picture for --task or --raw; may be repeated")
    sample.add_argument("--size", type=size, help="WIDTHxHEIGHT in pixels (a square of the model's training area)")
    sample.add_argument("--free-size", action="store_true", help="say the size in the prompt only; do not force it")
    sample.add_argument("--raw", action="store_true", help="use the prompts as they are: for dialog, without a size")
    sample.add_argument("--chat", action="store_true", help="a dialog: a turn per line, with pictures as @file.png")
    sample.add_argument("--live", action="store_true", help="show one answer while it grows; the picture in live.png")
    sample.add_argument("--per-prompt", type=int, default=1, metavar="N", help="answers to each prompt (1)")
    sample.add_argument("--rows", type=int, default=16, help="answers sampled at once, by continuous batching (16)")
    sample.add_argument("--tensor", type=int, metavar="N", help="split the model over N devices, answers over the rest")
    sample.add_argument("--resume", action="store_true", help="continue a stopped run of the same command")
    sample.add_argument("--worker", metavar="I/N", help="process I (from 0) of N; auto on a TPU pod, Slurm or MPI")
    sample.add_argument("--seed", type=seed, default=0, help="same seed, same pictures (0)")
    sample.add_argument("--guidance", type=float, help="classifier-free guidance scale; 1 is off")
    sample.add_argument("--temperature", type=float, help="below 1 safer, above 1 wilder")
    sample.add_argument(
        "--top-k", type=int, metavar="K", dest="image_top_k", help="image tokens to draw from; 1 is greedy"
    )
    sample.add_argument("--parallel", help="decoding method: off, matched, sjd, coupled, continued (the model's own)")
    sample.add_argument("--window", type=int, metavar="W", help="with --parallel: tokens in a pass (the device's own)")
    sample.add_argument("--min-p", type=float, help="drop tokens less likely than this share of the likeliest")
    sample.add_argument("--max-new-tokens", type=int, help="longest answer")
    sample.add_argument("--grid", action="store_true", help="also write all pictures on one sheet")
    sample.add_argument("--out", type=output_path, default="out/samples", help="folder for the PNGs (out/samples)")
    sample.set_defaults(run=_sample)


def _sample(options: Namespace) -> None:
    from contextlib import nullcontext

    import jax

    from lumina_jax.config import MeshConfig
    from lumina_jax.sample.prompt import read_lines
    from lumina_jax.sharding import make_mesh

    lines = read_lines(Path(options.prompts)) if options.prompts else []
    if not (lines or options.prompt or options.image or options.chat):
        raise InputError("no prompts; give --prompt TEXT (again for more), --prompts FILE, or --task NAME --image FILE")
    if options.per_prompt < 1 or options.rows < 1:
        raise InputError(f"--per-prompt {options.per_prompt} --rows {options.rows}; both must be at least 1")
    mesh = None  # without --tensor the model is on one device
    if options.tensor is not None:
        mesh = make_mesh(MeshConfig(replica=-1, fsdp=1, tensor=options.tensor), jax.local_devices())
    with nullcontext() if mesh is None else jax.set_mesh(mesh):
        model, vocab, vq, experiment = load_for_sampling(options, mesh)
        builder = make_prompt_builder(vq, vocab, experiment, not options.free_size)
        if options.chat:
            return _chat(model, builder, options, _settings(options, experiment)("describe"))
        _paint(model, builder, options, tuple(_prompts(builder, options, lines, _settings(options, experiment))))


def _prompts(builder, options: Namespace, records: list[dict], settings) -> list:
    """The prompts of the command line, then those of a file."""
    from lumina_jax.sample.prompt import open_image

    images, task = [open_image(Path(file)) for file in options.image], options.task or "generate"
    if options.size and (options.raw or task != "generate"):
        raise InputError("--size goes with text to picture; other tasks answer at the size of their picture")
    if options.raw:
        prompts = [builder.message(text, images, settings("question")) for text in options.prompt]
    elif task == "generate":
        if images:
            raise InputError("--image goes with --task or --raw; run.py sample --task depth --image FILE")
        prompts = [builder.generate(text, options.size, settings(task)) for text in options.prompt]
    elif options.prompt:
        prompts = [builder.task(task, text, images, settings(task)) for text in options.prompt]
    else:
        prompts = [builder.task(task, "", [image], settings(task)) for image in images]
    for number, record in enumerate(records, start=1):
        try:
            prompts.append(builder.from_record(record, Path(options.prompts).parent, settings))
        except InputError as error:
            raise InputError(f"{options.prompts}, prompt {number}: {error}") from error
    return prompts


def _paint(model, builder, options: Namespace, prompts: tuple) -> None:
    """Answers ``prompts`` into --out."""
    from lumina_jax.model.params import fingerprint
    from lumina_jax.progress import ProgressDisplay
    from lumina_jax.sample.job import Job, finished, paint, sheet

    share = worker(options.worker) if options.worker else (0, 1)
    job = Job(prompts, options.seed, options.per_prompt, options.rows, share, fingerprint(model))
    out = Path(options.out)
    if options.live:
        return _live(model, builder, job, out)
    done = finished(job, out) if options.resume else []
    answers = list(done)
    with ProgressDisplay("sampling", len(job.items), len(job.items) > 1, unit="answers") as meter:
        meter.skip(len(done))
        for answer in paint(model, builder.vq, builder.vocab, job, out, done):
            answers.append(answer)
            for name in answer.files or [job.record]:
                print(out / name, answer.text or "; ".join(answer.broken), flush=True)
            meter.advance(1)
    if options.grid and any(answer.files for answer in answers):
        print(sheet(job, out, answers))


def _live(model, builder, job, out: Path) -> None:
    """Shows one answer while it grows: text on stdout, each picture in live.png until it is complete."""
    if len(job.items) != 1:
        raise InputError(f"--live shows one answer, not {len(job.items)}; give one prompt")
    from lumina_jax.sample.live import watch

    (item,) = job.items
    prompt = job.prompts[item[0]]
    events = watch(model, builder.vq, builder.vocab, prompt.ids, job.key(item), prompt.cfg, size=prompt.size)
    _follow(events, out, job.stem(item))


def _follow(events, out: Path, stem: str) -> None:
    """Prints the text, and keeps the newest preview of each picture in live.png, the complete picture in STEM-K.png."""
    from lumina_jax.sample.live import Words
    from lumina_jax.storage import atomic_write

    for event in events:
        if isinstance(event, Words):
            print(event.text, end="", flush=True)
            continue
        with atomic_write(out / "live.png") as temporary:
            event.picture.save(temporary, format="PNG")
        print(f"\r{out / 'live.png'}: {event.lines} of {event.total} lines ", end="", file=sys.stderr, flush=True)
        if event.lines == event.total:
            event.picture.save(out / f"{stem}-{event.number}.png")
            print(f"\n{out / f'{stem}-{event.number}.png'}", flush=True)
    print(flush=True)


def _chat(model, builder, options: Namespace, cfg) -> None:
    """A dialog on stdin and stdout, until an empty line or the end of the input."""
    import re

    import jax

    from lumina_jax.sample.live import Chat
    from lumina_jax.sample.prompt import open_image

    chat, turn = Chat(model, builder, jax.random.key(options.seed), cfg), 0
    if sys.stdin is None:
        raise InputError("--chat reads its lines from stdin, which is closed")
    print("a line is a turn; @file.png in it is a picture; an empty line ends", file=sys.stderr)
    while line := (input("> ") if sys.stdin.isatty() else sys.stdin.readline()).strip():
        try:
            images = [open_image(Path(file)) for file in re.findall(r"@(\S+)", line)]
            _follow(chat.say(re.sub(r"@\S+", "<|image|>", line), images), Path(options.out), f"turn{turn}")
        except InputError as error:
            print(f"run.py sample: {error}", file=sys.stderr)
            continue
        turn += 1


def _settings(options: Namespace, experiment):
    """A function task -> SampleConfig: the model's own settings, as the task is served, with the changes of the command line."""
    from dataclasses import replace

    from lumina_jax.conversation import TASKS, served

    if options.task and options.task not in TASKS:
        raise InputError(f"--task {options.task}: the tasks are {', '.join(TASKS)}")
    names = ("guidance", "temperature", "image_top_k", "min_p", "max_new_tokens", "parallel", "window")
    changes = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
    base = settings_of(experiment)
    return lambda task: replace(base if task == "generate" else served(task, base), **changes)
