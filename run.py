"""The command line of lumina_jax: ``python run.py VERB --help``. The verbs are in lumina_jax/cli/."""

import argparse
import sys

from lumina_jax.cli.convert import add_convert
from lumina_jax.cli.data import add_data
from lumina_jax.cli.evaluate import add_evaluate, add_refine
from lumina_jax.cli.experiments import REPOSITORY, load_experiment
from lumina_jax.cli.models import TOY_MODEL, load_for_sampling
from lumina_jax.cli.pretokenize import add_pretokenize
from lumina_jax.cli.quickstart import add_grow, add_quickstart
from lumina_jax.cli.sample import add_sample
from lumina_jax.cli.train import add_compile, add_train
from lumina_jax.errors import UserError

__all__ = ["REPOSITORY", "TOY_MODEL", "load_experiment", "load_for_sampling", "main"]

VERBS = (
    add_quickstart,
    add_pretokenize,
    add_grow,
    add_train,
    add_data,
    add_compile,
    add_sample,
    add_convert,
    add_refine,
    add_evaluate,
)


def main(arguments: list[str] | None = None) -> int:
    """Runs one verb and returns the exit code: what a user can mend is one line on stderr and 2."""
    parser = _parser()
    options, rest = parser.parse_known_args(arguments)
    # argparse takes positional arguments in one run only; changes may stand before and after --options.
    if strange := [word for word in rest if word.startswith("-") or "=" not in word or "changes" not in options]:
        parser.error(f"unknown arguments: {' '.join(strange)}; see run.py {options.verb} --help")
    if rest:
        options.changes += rest
    try:
        return options.run(options) or 0
    except UserError as error:
        print(f"run.py {options.verb}: {error}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="run.py", description="Lumina-mGPT in JAX: pictures and text in one model.")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    for add in VERBS:
        add(verbs)
    return parser


if __name__ == "__main__":
    sys.exit(main())
