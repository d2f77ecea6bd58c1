"""run.py sample: prompts to pictures and text, in a folder, shown while they grow (--live), or in a dialog (--chat)."""

import sys
from argparse import Namespace, _SubParsersAction
from contextlib import suppress
from functools import partial
from shlex import quote

from lumina_jax.cli.again import take_over
from lumina_jax.cli.ahead import PromptsAhead
from lumina_jax.cli.arguments import NOTHING, at, at_least, input_path, output_path, sampling_seed, size
from lumina_jax.cli.dialog import hold_dialog
from lumina_jax.cli.ending import say
from lumina_jax.cli.live import LACKING, programs, show_live
from lumina_jax.cli.models import (
    list_sizes,
    load_for_sampling,
    make_prompt_builder,
    mesh_of,
    model_arguments,
    origin_of,
    positions_of,
    settings_of,
    target_size_argument,
    target_size_for,
    tensor_argument,
)
from lumina_jax.cli.processes import worker
from lumina_jax.cli.results import claimed, results_folder
from lumina_jax.cli.settings import (
    asked_changes,
    asked_settings,
    default_settings,
    settings_arguments,
    task_table,
    used_settings,
)
from lumina_jax.errors import InputError, interrupted, printable

OUT = "out/samples"
REJECTS = "rejects.jsonl"
SHOWN = 3
"""How many examples a message names."""


def add_sample(verbs: _SubParsersAction) -> None:
    epilog = (
        f"Exit code: 0, {LACKING} when a prompt was rejected or an answer lacks its picture, 2 when nothing could be done, "
        "130 after Ctrl-C."
    )
    sample = verbs.add_parser("sample", help="text to pictures and text", epilog=epilog)
    model_arguments(sample)
    target_size_argument(sample)
    sample.add_argument(
        "--prompt", action="append", default=[], metavar="TEXT", help="what to paint, or to do; may be repeated"
    )
    sample.add_argument(
        "--prompts", type=input_path, metavar="FILE", help="a prompt per line, or .jsonl: prompt, size, task, image ..."
    )
    sample.add_argument(
        "--task",
        metavar="NAME",
        help="what to do with --image: depth, segmentation, edit, describe ... (default: generate)",
    )
    sample.add_argument("--list-tasks", action="store_true", help="print all tasks and how each is sampled, and end")
    sample.add_argument(
        "--image",
        type=input_path,
        action="append",
        default=[],
        metavar="FILE",
        help="a picture for --task or --raw; may be repeated",
    )
    sample.add_argument(
        "--size",
        type=size,
        metavar="WxH",
        help="WIDTHxHEIGHT in pixels; the answer begins with a picture of it (default: a square of the model's training area)",
    )
    sample.add_argument(
        "--list-sizes",
        action="store_true",
        help="print the sizes of --target-size, or of --model, and their tokens; then end",
    )
    sample.add_argument(
        "--free-size", action="store_true", help="ask for picture and size by words only; force neither"
    )
    sample.add_argument("--raw", action="store_true", help="use the prompts as they are: for dialog, without a size")
    sample.add_argument(
        "--chat", action="store_true", help="a dialog: a turn per line, pictures as @file.png; /help in it"
    )
    sample.add_argument(
        "--history", type=input_path, metavar="FILE", help="with --chat: a .jsonl file whose last dialog goes on"
    )
    sample.add_argument("--live", action="store_true", help="show one answer while it grows; the picture in live.png")
    like_help = "paint this picture again, from what its file tells; --guidance, --top-k ... change what they name"
    sample.add_argument("--like", type=input_path, metavar="FILE", help=like_help)
    sample.add_argument("--per-prompt", type=at_least(1), default=1, metavar="N", help="answers to each prompt")
    sample.add_argument(
        "--rows", type=at_least(1), default=16, metavar="N", help="answers sampled at once, by continuous batching"
    )
    tensor_argument(sample)
    sample.add_argument("--resume", action="store_true", help="continue a stopped run of the same command")
    sample.add_argument(
        "--worker",
        metavar="I/N",
        help="process I (from 0) of N; auto on a TPU pod, Slurm or MPI (default: the only one)",
    )
    sample.add_argument("--seed", type=sampling_seed, help="any whole number; same seed, same pictures (default: 0)")
    settings_arguments(sample)
    sample.add_argument("--grid", action="store_true", help="also write the pictures on one sheet")
    sample.add_argument(
        "--out",
        type=output_path,
        help=f"folder for the PNGs, none that holds results already (default: {OUT}, else {OUT}-2 ...)",
    )
    sample.set_defaults(run=_sample, keeps=NOTHING)


def _sample(options: Namespace) -> int:
    if options.list_tasks:
        print(task_table())
        return 0
    if options.list_sizes:
        return list_sizes(options)
    from lumina_jax.progress import waiting

    with waiting("loading JAX"):
        from lumina_jax.sample.files import open_image, read_lines
        from lumina_jax.sample.job import check_free

    lines = read_lines(at(options.prompts)) if options.prompts else []
    if options.prompts and not lines:
        raise InputError(f"{options.prompts} holds no prompt; write one a line")
    made = take_over(options) if options.like else {}
    options.seed = options.seed or 0
    if not (lines or options.prompt or options.image or options.chat or made):
        raise InputError("no prompts; give --prompt TEXT (again for more), --prompts FILE, or --task NAME --image FILE")
    _check(options)
    images = [open_image(at(file)) for file in options.image]
    share = worker(options.worker) if options.worker else (0, 1)
    out = results_folder(options.out, OUT, lambda folder: check_free(folder, share), options.resume)
    target = target_size_for(options, _needs_sizes(options, lines), needed=not options.chat)
    with mesh_of(options) as mesh:
        prepared = PromptsAhead(options, share, partial(_prepared, options, images, lines, target))
        plain = not (options.chat or options.live or options.resume or made)
        model, vocab, vq, experiment = load_for_sampling(options, mesh, prepared if plain else None)
        builder = make_prompt_builder(vq, vocab, experiment, not options.free_size, positions_of(options), target)
        base = settings_of(experiment)
        settings = asked_settings(options, base)
        if options.chat:
            print(used_settings([("chat", settings("chat"))], default_settings(base)), file=sys.stderr)
            origin = origin_of(options, model, vq, vocab)
            return hold_dialog(model, builder, options.seed, settings, out, options.size, options.history, origin)
        if made:
            prompts, rejects = (_again(options, made, builder, origin_of(options, model, vq, vocab)),), []
        else:
            prompts, rejects = prepared.made(vocab, vq, experiment)
        asked = [(prompt.task, prompt.cfg) for prompt in prompts if prompt is not None]
        used = used_settings(asked, default_settings(base))
        return _paint(model, builder, options, prompts, rejects, share, out, used)


def _check(options: Namespace) -> None:
    """Raises InputError for options that do not go together, and for wrong numbers, before a model is loaded."""
    from lumina_jax.config import SampleConfig
    from lumina_jax.conversation import TASKS
    from lumina_jax.sample.files import read_lines
    from lumina_jax.sample.prompt import task_request

    if options.task and options.task not in TASKS:
        raise InputError(f"--task {options.task}: the tasks are {', '.join(TASKS)}")
    painting = (options.task or "generate") == "generate" and not options.raw
    if options.size and not painting:
        raise InputError("--size goes with text to picture; other tasks answer at the size of their picture")
    if options.chat and (options.prompt or options.prompts or options.image or options.task):
        raise InputError(
            "--chat reads its messages and pictures from stdin; leave --prompt, --prompts, --image and --task out"
        )
    if options.history and not options.chat:
        raise InputError("--history goes with --chat; without it a dialog is a line of --prompts FILE.jsonl")
    if options.history:
        read_lines(at(options.history))
    if options.image and painting:
        raise InputError("--image goes with --task or --raw; run.py sample --task depth --image FILE")
    if options.resume and (options.live or options.chat):
        raise InputError(
            "--resume continues the answers of samples.jsonl, and --live and --chat write none; leave it out"
        )
    asked_settings(options, SampleConfig())("generate")
    if not (painting or options.raw or options.task in (None, "chat")):
        shown = len(options.image)
        for text, images in [(text, shown) for text in options.prompt] or [("", 1)] * shown:
            task_request(options.task, text, images)


def _needs_sizes(options: Namespace, lines: list) -> str:
    """What of the command needs the sizes that the model was trained on, in words; "" for nothing."""
    painting = (options.task or "generate") == "generate" and not options.raw
    if options.chat:
        return "a picture in the dialog"
    if options.image:
        return "--image"
    if options.prompt and painting and not options.size:
        return "a prompt without --size"
    return next((f"line {line.number} of {options.prompts}" for line in lines if line.needs_sizes), "")


def _prompts(builder, options: Namespace, images: list, lines: list, settings) -> tuple[tuple, list[dict]]:
    """(the prompts of the command line, then those of a file, None where one is rejected; what is rejected and why)."""
    from lumina_jax.data.sources.record import Reject, read_record

    task = options.task or "generate"
    if options.raw:
        prompts = [builder.message(text, images, settings("chat")) for text in options.prompt]
    elif task == "generate":
        prompts = [builder.generate(text, options.size, settings(task)) for text in options.prompt]
    elif options.prompt:
        prompts = [builder.task(task, text, images, settings(task)) for text in options.prompt]
    else:
        prompts = [builder.task(task, "", [image], settings(task)) for image in images]
    rejects, folder = [], at(options.prompts or ".").parent
    for line in lines:
        prompt = read_record(lambda line=line: builder.from_record(line.record(), folder, settings))
        if isinstance(prompt, Reject):
            entry = {"index": len(prompts), "line": line.number}
            rejects.append(entry | {"reason": prompt.reason, "cause": prompt.cause})
            prompt = None
        prompts.append(prompt)
    if rejects and (options.live or not any(prompts)):
        first = rejects[0]
        raise InputError(
            f"{options.prompts}: {len(rejects)} of its {len(lines)} prompts cannot be used; the first, line {first['line']}: "
            f"{first['reason']}"
        )
    return tuple(prompts), rejects


def _prepared(options: Namespace, images: list, lines: list, target, vocab, vq, experiment) -> tuple[tuple, list[dict]]:
    """:func:`_prompts` by what they depend on of a model."""
    builder = make_prompt_builder(vq, vocab, experiment, not options.free_size, positions_of(options), target)
    return _prompts(builder, options, images, lines, asked_settings(options, settings_of(experiment)))


def _again(options: Namespace, made: dict, builder, origin):
    """The prompt of the picture that ``made`` tells of, with the changes of the command line; says what may differ."""
    from dataclasses import replace

    from lumina_jax.sample.made import check_origin, prompt_again

    line = check_origin(made, origin, options.like)
    prompt = prompt_again(made, builder, options.like)
    if line:
        print(printable(line), file=sys.stderr)
    return replace(prompt, cfg=asked_changes(options, prompt.cfg))


def _paint(model, builder, options: Namespace, prompts: tuple, rejects: list[dict], share, out, used: str) -> int:
    """Answers ``prompts`` into ``out`` and says the settings ``used``; returns the exit code."""
    from contextlib import nullcontext

    from lumina_jax.sample.job import Job, check_workers, finished, sheet

    _warn(builder, prompts)
    origin = origin_of(options, model, builder.vq, builder.vocab)
    job = Job(prompts, options.seed, options.per_prompt, options.rows, share, origin.weights, origin)
    if options.live:
        print(used, file=sys.stderr)
        return show_live(model, builder, job, out)
    check_workers(job, out)
    answers = finished(job, out) if options.resume else []
    kept = f"the answers so far are in {out}; the same command with --out {quote(str(out))} --resume paints the rest"
    with nullcontext() if options.resume else claimed(out / job.record), interrupted(kept):
        _write_rejects(rejects, out)
        _answer(model, builder, job, out, answers, used)
        if options.grid and any(answer.files for answer in answers):
            say(sheet(job, out, answers))
    return LACKING if _tell_rejects(rejects, prompts, out) + _tell_lacking(job, answers) else 0


def _answer(model, builder, job, out, answers: list, used: str) -> None:
    """Adds the answers that are missing to ``answers``, and prints them after the settings ``used``."""
    from contextlib import nullcontext

    from lumina_jax.progress import ProgressDisplay
    from lumina_jax.sample.job import paint

    done = {(answer.ask, answer.copy) for answer in answers}
    waited = [job.prompts[item[0]] for item in job.items if item not in done]
    painted = paint(model, builder.vq, builder.vocab, job, out, list(answers))
    print(used, file=sys.stderr)
    painted = iter(painted)
    with ProgressDisplay("sampling", len(job.items), len(job.items) > 1, unit="answers") as meter:
        meter.skip(len(answers))
        with programs(model, waited, job.rows, "painting the first answers") if waited else nullcontext():
            answer = next(painted, None)
        while answer is not None:
            answers.append(answer)
            for name in answer.files or [job.record]:
                say(f"{out / name} {answer.text or '; '.join(answer.broken)}".rstrip())
            meter.advance(1)
            answer = next(painted, None)


def _warn(builder, prompts: tuple) -> None:
    """Says which prompts are longer than what the model was trained on, and which pictures than --max-new-tokens."""
    asked = [(number, prompt) for number, prompt in enumerate(prompts, start=1) if prompt is not None]
    long = [(prompt.length, number) for number, prompt in asked if prompt.length > builder.trained]
    if long:
        length, number = max(long)
        print(
            f"warning: {len(long)} of {len(asked)} prompts with their pictures are longer than the {builder.trained:,} tokens that "
            f"the model was trained on (prompt {number}: {length:,}); expect poor answers",
            file=sys.stderr,
        )
    spelt = {number: words for number, prompt in asked if (words := builder.vocab.spelt_words(prompt.ids))}
    if spelt:
        number, words = next(iter(spelt.items()))
        print(
            printable(
                f"warning: {len(spelt)} of {len(asked)} prompts have words that the model does not know (prompt {number}: "
                f"{', '.join(words[:SHOWN])}{' ...' * (len(words) > SHOWN)}); expect poor answers"
            ),
            file=sys.stderr,
        )
    cut = [(prompt.picture, number) for number, prompt in asked if prompt.picture > prompt.cfg.max_new_tokens]
    if cut:
        tokens, number = max(cut)
        limit = asked[0][1].cfg.max_new_tokens
        print(
            f"warning: {len(cut)} of {len(asked)} pictures will be unfinished: prompt {number} asks for one of {tokens:,} tokens, "
            f"but --max-new-tokens is {limit:,}",
            file=sys.stderr,
        )


def _write_rejects(rejects: list[dict], out) -> None:
    """Writes ``rejects`` into ``out``, or removes an earlier run's list when there are none."""
    import json

    from lumina_jax.storage import atomic_write_text

    if rejects:
        atomic_write_text(out / REJECTS, "".join(json.dumps(reject) + "\n" for reject in rejects))
    else:
        with suppress(FileNotFoundError):
            (out / REJECTS).unlink()


def _tell_rejects(rejects: list[dict], prompts: tuple, out) -> bool:
    """Sums the rejected prompts up by cause, with an example each; whether there are any."""
    if rejects:
        print(
            f"{len(rejects)} of {len(prompts)} prompts were rejected, listed in {printable(str(out / REJECTS))}:",
            file=sys.stderr,
        )
    causes = {reject["cause"]: reject for reject in reversed(rejects)}
    for cause, example in causes.items():
        count = sum(reject["cause"] == cause for reject in rejects)
        print(printable(f"  {count} x {cause}, such as line {example['line']}: {example['reason']}"), file=sys.stderr)
    return bool(rejects)


def _tell_lacking(job, answers: list) -> bool:
    """Says how many answers lack the picture they were asked for, and how many pictures are broken; whether any is lacking."""
    asked = [answer for answer in answers if job.prompts[answer.ask].picture]
    lacking = [answer for answer in asked if not answer.files]
    broken = sum(len(answer.broken) for answer in answers)
    if lacking or broken:
        examples = [*lacking, *(answer for answer in answers if answer.broken and answer.files)][:SHOWN]
        reasons = "; ".join(
            f"prompt {answer.ask + 1}: {', '.join(answer.broken) or 'only text'}" for answer in examples
        )
        counts = (
            f"{len(lacking)} of {len(asked)} answers lack the picture that was asked for, {broken} pictures are broken"
        )
        print(printable(f"{counts} ({reasons})"), file=sys.stderr)
    return bool(lacking)
