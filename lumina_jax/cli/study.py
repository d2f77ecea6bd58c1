"""run.py study: the paper's studies of sampling for any model: settings (Figure 8), seeds (Figure 5), words (Figures 6 and 7)."""

import json
import sys
from argparse import ArgumentParser, Namespace, _SubParsersAction

from lumina_jax.cli.arguments import at, at_least, input_path, number, output_path, sampling_seed, several, size
from lumina_jax.cli.ending import say
from lumina_jax.cli.live import programs
from lumina_jax.cli.models import (
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
from lumina_jax.cli.perceptual import lpips_argument, lpips_of
from lumina_jax.cli.results import command_of, results_folder
from lumina_jax.cli.settings import (
    asked_settings,
    default_settings,
    other_settings_arguments,
    settings_arguments,
    used_settings,
)
from lumina_jax.errors import InputError, prefixed_errors

PICTURES, RECORD, SHEET, PAGE = "pictures", "study.json", "sheet.png", "sheet.html"
KEEPS = "the pictures so far are kept; the same command goes on"
GUIDANCE, TOP_K, TEMPERATURE = (1.0, 2.0, 4.0, 6.0, 8.0), (50, 200, 1000, 2000, 4000, 8192), (0.7, 0.8, 0.9, 1.0)
"""The values of Figure 8's ranges."""
SEEDS = 8


def add_study(verbs: _SubParsersAction) -> None:
    study = verbs.add_parser("study", help="the paper's studies: sheets over settings, seeds, words")
    what = study.add_subparsers(dest="action", required=True, metavar="WHAT")

    settings = what.add_parser("settings", help="prompts painted over guidance, top-k and temperature, one at a time")
    _arguments(settings, "settings")
    rule = "with commas between; one value: that everywhere"
    for option, parse, default, metavar, words in (
        ("guidance", number, GUIDANCE, "G,G...", "guidance scales"),
        ("top-k", at_least(1), TOP_K, "K,K...", "numbers of image tokens to draw from"),
        ("temperature", number, TEMPERATURE, "T,T...", "temperatures"),
    ):
        shown = ",".join(f"{value:g}" for value in default)
        settings.add_argument(
            f"--{option}",
            dest={"top-k": "image_top_k_values"}.get(option, f"{option}_values"),
            type=several(parse),
            default=default,
            metavar=metavar,
            help=f"{words}, {rule} (default: {shown})",
        )
    other_settings_arguments(settings)
    settings.set_defaults(run=_settings)

    seeds = what.add_parser("seeds", help="several pictures of each prompt, and how far they are from each other")
    _arguments(seeds, "seeds")
    seeds.add_argument("--per-prompt", type=at_least(2), default=SEEDS, metavar="N", help="answers to each prompt")
    lpips_argument(seeds, "also the mean LPIPS of pairs")
    settings_arguments(seeds)
    seeds.set_defaults(run=_seeds)

    text = what.add_parser("text", help="prompts that ask for written words, emoji or Chinese; the words read back")
    _arguments(text, "text")
    text.add_argument("--per-prompt", type=at_least(1), default=1, metavar="N", help="answers to each prompt")
    text.add_argument(
        "--ocr",
        choices=("auto", "pytesseract", "easyocr", "none"),
        default="auto",
        help="what reads the words that a prompt has in quotation marks; auto: the first that is installed",
    )
    settings_arguments(text)
    text.set_defaults(run=_text)


def _arguments(parser: ArgumentParser, kind: str) -> None:
    model_arguments(parser)
    target_size_argument(parser)
    own = " (default: a small set of its own)" if kind == "text" else ""
    parser.add_argument(
        "--prompt", action="append", default=[], metavar="TEXT", help=f"what to paint; may be repeated{own}"
    )
    parser.add_argument(
        "--prompts", type=input_path, metavar="FILE", help="a prompt per line, or .jsonl: prompt, size, seed"
    )
    size_help = "WIDTHxHEIGHT in pixels, of prompts without one (default: a square of the model's training area)"
    parser.add_argument("--size", type=size, metavar="WxH", help=size_help)
    parser.add_argument("--rows", type=at_least(1), default=16, metavar="N", help="answers sampled at once")
    tensor_argument(parser)
    parser.add_argument("--seed", type=sampling_seed, default=0, help="any whole number; same seed, same pictures")
    out = f"out/study-{kind}"
    out_help = (
        f"folder of sheet, numbers and pictures; the same command goes on in it (default: {out}, else {out}-2 ...)"
    )
    parser.add_argument("--out", type=output_path, help=out_help)
    parser.set_defaults(keeps=KEEPS)


def _settings(options: Namespace) -> None:
    from lumina_jax.progress import waiting

    with waiting("loading JAX"):
        from lumina_jax.config import SampleConfig
        from lumina_jax.evaluate.studies import NAMES, settings_tables, varied

    values = {name: getattr(options, f"{name}_values") for name in NAMES}
    varied(SampleConfig(), values)

    def cfgs_of(cfg) -> list:
        return [cfg for column in varied(cfg, values)[1].values() for cfg in column]

    result, out = _painted(options, cfgs_of)
    around, cfgs = varied(result.base, values)
    held = ", ".join(f"{NAMES[name]} {getattr(around, name)}" for name in NAMES)
    note = (
        f"One setting varied at a time around {held}, min-p {around.min_p}; the same seed in all pictures of a prompt."
    )
    _write(result, out, "Settings of sampling", note, settings_tables(result, around, cfgs), {})


def _seeds(options: Namespace) -> None:
    from lumina_jax.progress import waiting

    with waiting("loading JAX"):
        from lumina_jax.evaluate.studies import seeds_numbers, seeds_table, variety_words

    lpips = lpips_of(options)
    result, out = _painted(options, lambda cfg: [cfg], options.per_prompt)
    with waiting("measuring the distances of pictures"):
        numbers = seeds_numbers(result, lpips)
    note = f"Mean over prompts: {variety_words(numbers['mean'])}. RMS in levels 0 to 255, all distances over pairs of a prompt."
    _write(result, out, "One prompt, several seeds", note, [seeds_table(result, numbers)], numbers)


def _text(options: Namespace) -> None:
    from lumina_jax.progress import waiting

    with waiting("loading JAX"):
        from lumina_jax.evaluate.studies import WRITTEN, words_numbers, words_table
        from lumina_jax.evaluate.written_words import find_reader

    if not (options.prompt or options.prompts):
        options.prompt = list(WRITTEN)
    reader, line = find_reader(options.ocr)
    print(line, file=sys.stderr)
    result, out = _painted(options, lambda cfg: [cfg], options.per_prompt)
    with waiting("reading the words in the pictures"):
        numbers = words_numbers(result, reader)
    mean = numbers["mean"]
    score = f"; exact {mean['exact']:.0%}, character error rate {mean['character_error_rate']:.2f}" if mean else ""
    note = f"{line[0].upper()}{line[1:]}{score}. Letters that this sheet's font lacks are boxes; {PAGE} shows them all."
    _write(result, out, "Written words", note, [words_table(result, numbers)], numbers)


def _painted(options: Namespace, cfgs_of, copies: int = 1):
    """(the StudyResult of all prompts under the settings ``cfgs_of`` the model's own or asked ones, its folder)."""
    from lumina_jax.config import SampleConfig
    from lumina_jax.evaluate.studies import StudyResult, finished_parts, painted, parts_of
    from lumina_jax.progress import ProgressDisplay
    from lumina_jax.sample.files import read_lines
    from lumina_jax.storage import claim, held

    lines = read_lines(at(options.prompts)) if options.prompts else []
    if not (lines or options.prompt):
        raise InputError("no prompts; give --prompt TEXT (again for more) or --prompts FILE")
    cfgs_of(asked_settings(options, SampleConfig())("generate"))
    target = target_size_for(options, "" if options.size else "a prompt without --size")
    command, names = command_of(options), (RECORD, SHEET, PAGE, PICTURES)
    out = results_folder(options.out, f"out/study-{options.action}", lambda folder: claim(folder, names, command))
    with held(out, "running a study"), mesh_of(options) as mesh:
        model, vocab, vq, experiment = load_for_sampling(options, mesh)
        builder = make_prompt_builder(vq, vocab, experiment, positions=positions_of(options), target=target)
        base = settings_of(experiment)
        cfg = asked_settings(options, base)("generate")
        prompts = _prompts(options, builder, lines, cfg)
        origin = origin_of(options, model, vq, vocab)
        parts = parts_of(model, prompts, cfgs_of(cfg), out / PICTURES, options.seed, copies, options.rows, origin)
        answers = finished_parts(parts)
        print(used_settings([("generate", cfg)], default_settings(base)), file=sys.stderr)
        total = sum(len(part.job.items) for part in parts)
        with ProgressDisplay("painting", total, unit="answers") as meter:
            meter.skip(sum(map(len, answers)))
            more = painted(model, vq, vocab, parts, [list(done) for done in answers])
            with programs(model, prompts, options.rows, "painting the first answers"):
                first = next(more, None)
            for part, answer in [first, *more] if first else []:
                answers[part].append(answer)
                meter.advance(1)
    return StudyResult(parts, answers, cfg), out


def _prompts(options: Namespace, builder, lines: list, cfg) -> list:
    """The prompts of the command line, then those of its file. Raises InputError naming the line that is none for a picture."""
    prompts = [builder.generate(text, options.size, cfg) for text in options.prompt]
    for line in lines:
        with prefixed_errors(f"{options.prompts}, line {line.number}"):
            record = line.record()
            if options.size and record.get("size") is None:
                record["size"] = "{}x{}".format(*options.size)
            prompt = builder.from_record(record, at(options.prompts).parent, lambda task: cfg)
            if prompt.task != "generate":
                raise InputError(
                    f"the task {prompt.task!r}; a study paints prompts of words, so leave task and pictures out"
                )
            prompts.append(prompt)
    return prompts


def _write(result, out, title: str, note: str, tables: list, numbers: dict) -> None:
    """Writes sheet, page and study.json into ``out`` and prints the numbers."""
    from lumina_jax.pictures.picture_table import draw_tables, tables_page
    from lumina_jax.storage import atomic_write, atomic_write_text

    with atomic_write(out / SHEET) as temporary:
        draw_tables(title, note, tables).save(temporary, format="PNG", optimize=True)
    atomic_write_text(out / PAGE, tables_page(title, note, tables))
    record = result.record(out) | ({"numbers": numbers} if numbers else {})
    atomic_write_text(out / RECORD, json.dumps(record, indent=1, ensure_ascii=False) + "\n")
    for name in (SHEET, PAGE, RECORD):
        say(out / name)
    if numbers:
        print(json.dumps(numbers, indent=2, ensure_ascii=False))
