"""run.py evaluate and refine: a model and its image tokenizer, measured and shown."""

import json
import sys
from argparse import Namespace, _SubParsersAction

from lumina_jax.cli.arguments import NOTHING, at, at_least, input_path, output_path, seed, size
from lumina_jax.cli.ending import say
from lumina_jax.cli.live import save
from lumina_jax.cli.models import (
    load_for_sampling,
    make_prompt_builder,
    model_arguments,
    positions_of,
    settings_of,
    target_size_argument,
    target_size_for,
)
from lumina_jax.cli.perceptual import lpips_argument, lpips_of
from lumina_jax.cli.results import command_of, results_folder
from lumina_jax.cli.settings import default_settings, used_settings
from lumina_jax.errors import InputError, interrupted

TASK_EXERCISES = 96
REFINED, EVALUATION = "out/refined", "out/evaluation"


def add_refine(verbs: _SubParsersAction) -> None:
    refine = verbs.add_parser("refine", help='pictures through the model\'s "No edit.", then compared')
    model_arguments(refine)
    target_size_argument(refine)
    refine.add_argument("images", nargs="+", type=input_path, metavar="IMAGE", help="pictures")
    refine.add_argument("--seed", type=seed, default=0, help="same seed, same pictures")
    refine.add_argument(
        "--top-k", type=at_least(1), default=1, metavar="K", help="image tokens to draw from; 1 is greedy"
    )
    refine.add_argument(
        "--out",
        type=output_path,
        help=f"folder for the pictures and for each beside what it was (default: {REFINED}, else {REFINED}-2 ...)",
    )
    refine.set_defaults(run=_refine, keeps=NOTHING)


def add_evaluate(verbs: _SubParsersAction) -> None:
    evaluate = verbs.add_parser(
        "evaluate",
        help="loss on held-out data, scores, attention, PSNR",
    )
    model_arguments(evaluate)
    target_size_argument(evaluate)
    evaluate.add_argument(
        "--data",
        type=input_path,
        help="a folder of run.py pretokenize that the model was not trained on: cross-entropy and accuracy",
    )
    evaluate.add_argument(
        "--greedy", action="store_true", help="with --data: also the share of each answer that greedy decoding returns"
    )
    evaluate.add_argument(
        "--toy", type=at_least(1), metavar="N", help="paint N fresh prompts of the embedded world and judge them"
    )
    evaluate.add_argument(
        "--tasks",
        type=at_least(1),
        nargs="?",
        const=TASK_EXERCISES,
        metavar="N",
        help=f"N fresh exercises of every task of the embedded world, {TASK_EXERCISES} without N: a table, JSON and a sheet",
    )
    evaluate.add_argument(
        "--sizes",
        type=at_least(32),
        metavar="PX",
        help="with --toy and --tasks: canvases of about PX x PX pixels (default: --toy 128; --tasks 64, as most it learned)",
    )
    evaluate.add_argument("--attention", metavar="PROMPT", help="paint it, and show what its last token attends to")
    evaluate.add_argument(
        "--size",
        type=size,
        metavar="WxH",
        help="with --attention: WIDTHxHEIGHT in pixels (default: a square of the model's training area)",
    )
    evaluate.add_argument(
        "--out",
        type=output_path,
        help=f"folder of the sheets of --tasks and --pictures and of --attention (default: {EVALUATION}, else {EVALUATION}-2 ...)",
    )
    evaluate.add_argument(
        "--pictures",
        nargs="+",
        type=input_path,
        metavar="FILE",
        help="PSNR and SSIM of these pictures, or of those in a folder, through the image tokenizer, and a sheet",
    )
    lpips_argument(evaluate, "with --pictures: also LPIPS")
    evaluate.add_argument("--seed", type=seed, default=0, help="with --toy and --tasks: other seed, other prompts")
    evaluate.set_defaults(run=_evaluate, keeps=NOTHING)


def _refine(options: Namespace) -> None:
    from dataclasses import replace

    from lumina_jax.progress import waiting

    with waiting("loading JAX"):
        from lumina_jax.conversation import served
        from lumina_jax.evaluate.refine import refine
        from lumina_jax.sample.files import open_image
        from lumina_jax.sample.job import seed_key
        from lumina_jax.sample.picture import grid
        from lumina_jax.storage import claim

    images = {file: open_image(at(file)) for file in options.images}
    names = [f"{at(file).stem}{end}.png" for file in images for end in ("", "-compared")]
    if twice := [name for name in names if names.count(name) > 1]:
        raise InputError(
            f"two of the pictures would become {twice[0]}; refine them in two commands, each with its own --out"
        )
    target = target_size_for(options, "a picture to refine")
    out = results_folder(options.out, REFINED, lambda folder: claim(folder, names, command_of(options)))
    model, vocab, vq, experiment = load_for_sampling(options)
    builder, results = make_prompt_builder(vq, vocab, experiment, positions=positions_of(options), target=target), {}
    base = settings_of(experiment)
    cfg = replace(served("refine", base), image_top_k=options.top_k)
    print(used_settings([("refine", cfg)], default_settings(base)), file=sys.stderr)
    kept = f"finished pictures in {out} are kept; the same command starts again"
    with interrupted(kept):
        for file, image in images.items():
            with waiting(f"refining {file}, the first one with compilation"):
                refined = refine(model, builder, image, cfg, seed_key(options.seed))
            results[file] = table = refined.table()
            stem = at(file).stem
            save(refined.refined, out / f"{stem}.png")
            scores = (f"{name} {row['psnr_db']:.1f} dB, SSIM {row['ssim']:.3f}" for name, row in table.items())
            pictures = [refined.original, refined.decoded, refined.refined]
            save(grid(pictures, columns=3, captions=["original", *scores]), out / f"{stem}-compared.png")
            say(out / f"{stem}-compared.png")
    print(json.dumps(results, indent=2))


def _evaluate(options: Namespace) -> None:
    if not (options.data or options.toy or options.pictures or options.tasks or options.attention):
        raise InputError(
            "nothing to evaluate; give --data FOLDER, --toy N, --tasks, --attention PROMPT or --pictures FILE ..."
        )
    for option, value, owner in (
        ("--greedy", options.greedy, "--data"),
        ("--size", options.size, "--attention"),
        ("--target-size", options.target_size, "--attention"),
        ("--lpips", options.lpips, "--pictures"),
    ):
        if value and not getattr(options, owner[2:]):
            raise InputError(
                f"{option} goes with {owner}" + ("; canvases of --toy and --tasks: --sizes" * (option == "--size"))
            )
    from lumina_jax.progress import waiting
    from lumina_jax.storage import claim

    target = target_size_for(options, "--attention without --size" if options.attention and not options.size else "")
    if options.data:
        with waiting(f"loading {options.data}"):
            from lumina_jax.data.shards import Shards

            Shards(options.data)
    if options.pictures:
        from lumina_jax.evaluate.reconstruction import picture_files

        options.pictures = picture_files(options.pictures)
    lpips = lpips_of(options)
    sheets, attention = ["tasks.html", "tasks.json", "tasks.png"], ["attention.png"]
    compared = ["reconstruction.json", "reconstruction.png"]
    if files := sheets * bool(options.tasks) + attention * bool(options.attention) + compared * bool(options.pictures):
        command = command_of(options)
        options.out = results_folder(options.out, EVALUATION, lambda folder: claim(folder, files, command))
    model, vocab, vq, experiment = load_for_sampling(options)
    results = {}
    if options.data:
        from lumina_jax.evaluate.heldout import greedy_match, held_out
        from lumina_jax.model.image_tokenizer import fingerprint

        vq_hash = fingerprint(vq)
        results["held_out"] = held_out(model, vocab, options.data, vq=vq_hash)
        if options.greedy:
            results["greedy"] = greedy_match(model, vocab, options.data, vq=vq_hash)
    if options.pictures:
        results["reconstruction"] = _evaluate_pictures(options, vq, lpips)
    if options.toy:
        from lumina_jax.toyworld.tasks import score_table

        settings = settings_of(experiment)
        with waiting(f"compiling, then painting {2 * options.toy} pictures"):
            results["toy"] = score_table(model, vq, vocab, settings, options.sizes or 128, options.toy, options.seed)
    if options.tasks:
        results["tasks"] = _evaluate_tasks(options, model, vocab, vq, experiment)
    if options.attention:
        results["attention"] = _evaluate_attention(options, model, vocab, vq, experiment, target)
    print(json.dumps(results, indent=2))


def _evaluate_pictures(options: Namespace, vq, lpips) -> dict:
    """The numbers of each picture and their means; they go into --out, too, with a sheet of the first ones."""
    from lumina_jax.evaluate.reconstruction import (
        SHEET_PICTURES,
        comparison,
        numbers_in_words,
        reconstruction_table,
        reconstructions,
    )
    from lumina_jax.pictures.picture_table import draw_tables
    from lumina_jax.progress import ProgressDisplay
    from lumina_jax.storage import atomic_write_text

    numbers, shown, count = {}, [], len(options.pictures)
    with ProgressDisplay("measuring", count, count > 1, unit="pictures") as meter:
        for result in reconstructions(vq, options.pictures, lpips):
            numbers[result.file] = result.numbers
            shown += [result] * (len(shown) < SHEET_PICTURES)
            meter.advance(1)
    table = reconstruction_table(numbers)
    note = f"mean of {count} pictures: {numbers_in_words(table['mean'])}"
    sheet = draw_tables("Pictures through the image tokenizer", note, [comparison(shown)])
    save(sheet, options.out / "reconstruction.png")
    atomic_write_text(options.out / "reconstruction.json", json.dumps(table, indent=2) + "\n")
    say(options.out / "reconstruction.png")
    return table


def _evaluate_tasks(options: Namespace, model, vocab, vq, experiment) -> dict:
    """Task -> mean scores; prints a line for each as it ends and writes the sheet into --out."""
    from lumina_jax.toyworld.source import stage_sizes
    from lumina_jax.toyworld.task_sheet import print_each, write_sheets
    from lumina_jax.toyworld.tasks import evaluate_tasks

    sizes, settings = stage_sizes(options.sizes or 64), settings_of(experiment)
    results = print_each(evaluate_tasks(model, vq, vocab, settings, sizes, options.tasks, options.seed))
    say(write_sheets(results, options.out))
    return {result.task: result.mean for result in results}


def _evaluate_attention(options: Namespace, model, vocab, vq, experiment, target: int | None) -> dict:
    """Shares of attention by kind of token; the drawing goes into --out."""
    from lumina_jax.evaluate.attention import attention_map, drawing
    from lumina_jax.progress import waiting
    from lumina_jax.sample import generate
    from lumina_jax.sample.job import seed_key
    from lumina_jax.sample.picture import pictures

    builder = make_prompt_builder(vq, vocab, experiment, positions=positions_of(options), target=target)
    prompt = builder.generate(options.attention, options.size, settings_of(experiment))
    with waiting("compiling, then painting"):
        (answer,) = generate(model, [prompt.ids], seed_key(options.seed), prompt.cfg, vocab, sizes=[prompt.size])
    if not (painted := pictures(answer, vq, vocab)):
        raise InputError(
            f"the model answers {options.attention!r} without a picture, and its attention is that of a picture"
        )
    attention = attention_map(model, prompt.ids, answer, vocab)
    file = options.out / "attention.png"
    save(drawing(attention, painted[0]), file)
    say(file)
    return attention.table()
