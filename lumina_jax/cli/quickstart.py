"""run.py quickstart and grow: train the embedded world from nothing, and give a trained model a larger tokenizer."""

from argparse import ArgumentTypeError, Namespace, _SubParsersAction
from pathlib import Path

from lumina_jax.cli.arguments import NOTHING, at, check_address, output_path
from lumina_jax.cli.checks import check_field
from lumina_jax.cli.compiler import compile_cache_arguments, keep_compiled
from lumina_jax.cli.ending import say
from lumina_jax.cli.experiments import REPOSITORY, config_arguments, load_experiment
from lumina_jax.cli.models import load_for_sampling, model_arguments
from lumina_jax.errors import ExistingFileError, InputError
from lumina_jax.numbers import real_number, shown

OMNI_MINUTES = 100


def add_quickstart(verbs: _SubParsersAction) -> None:
    quickstart = verbs.add_parser("quickstart", help="train and judge the embedded world; writes report.html")
    quickstart.add_argument(
        "--minutes", type=_minutes, default=10, help="budget in minutes on two cores, compilation included"
    )
    quickstart.add_argument("--out", type=output_path, default="out/quickstart", help="folder of everything it makes")
    quickstart.add_argument(
        "--omni",
        type=_minutes,
        nargs="?",
        const=OMNI_MINUTES,
        metavar="MINUTES",
        help=f"then train one model for all tasks, with its own budget, {OMNI_MINUTES} without MINUTES; writes omni/tasks.html",
    )
    compile_cache_arguments(quickstart)
    quickstart.set_defaults(run=_quickstart, keeps="what is finished in {out} is kept; the same command goes on there")


def add_grow(verbs: _SubParsersAction) -> None:
    grow = verbs.add_parser("grow", help="start weights for the larger tokenizer of a config")
    config_arguments(grow)
    model_arguments(grow)
    grow.set_defaults(run=_grow, keeps=NOTHING)


def _minutes(text: str) -> float:
    try:
        minutes = real_number(text)
    except InputError:
        minutes = 0.0
    if minutes <= 0:
        raise ArgumentTypeError(f"{shown(text)} is not a positive number of minutes")
    return minutes


def _quickstart(options: Namespace) -> None:
    if check_address(options.out):
        raise InputError(f"--out {options.out}: it trains for minutes on this machine's disk; give a local folder")
    from lumina_jax.progress import waiting

    with waiting("loading JAX"):
        from lumina_jax.toyworld.quickstart import omni_quickstart, quickstart

    keep_compiled(options)
    stages = [load_experiment(str(REPOSITORY / f"configs/toy_stage{n}.py"), []) for n in (1, 2, 3)]
    say(quickstart(stages, Path(options.out), options.minutes))
    if options.omni:
        names = ("toy_omni_first", "toy_omni", "toy_omni_dialogs", "toy_omni_questions", "toy_omni_weak")
        parts = [load_experiment(str(REPOSITORY / f"configs/{name}.py"), []) for name in names]
        say(omni_quickstart(parts, Path(options.out), options.omni))


def _grow(options: Namespace) -> None:
    cfg = load_experiment(options.config, options.changes)
    if cfg.start:
        check_field("start", cfg.start, write=True)
    check_field("data.tokenizer", cfg.data.tokenizer)
    if cfg.start and (checkpoints := at(cfg.start) / "checkpoints").exists():
        raise ExistingFileError(
            f"{checkpoints} exists already; give another start=FOLDER for the grown weights, or delete it"
        )
    from lumina_jax.train.grow_vocabulary import write_start_checkpoint
    from lumina_jax.vocab import Vocab

    new = Vocab.load(cfg.data.tokenizer)
    model, old, _, _ = load_for_sampling(options)
    say(write_start_checkpoint(model, old, new, cfg))
