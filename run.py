"""The command line of lumina_jax: ``python run.py VERB --help``. The verbs are in lumina_jax/cli/."""

import argparse
import platform
import sys
from importlib import metadata

from lumina_jax import __version__
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

__all__ = ["REPOSITORY", "TOY_MODEL", "load_experiment", "load_for_sampling", "main", "parse"]

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
    """Runs one verb and returns the exit code: 2 after one line on stderr when a user can mend the error, 130 after Ctrl-C.

    Any other exception is a bug and passes through. Without a verb the verbs are listed.
    """
    options = parse(arguments)
    try:
        return options.run(options) or 0
    except UserError as error:
        print(f"run.py {options.verb}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"run.py {options.verb}: interrupted", file=sys.stderr)
        return 130


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line (default: of this process) as the options of its verb; ends the process with code 2 when it has none."""
    parser = argparse.ArgumentParser(
        prog="run.py",
        usage="run.py [-h] [-V] VERB ...",
        description="Lumina-mGPT in JAX: pictures and text in one model.",
        epilog="run.py VERB --help explains a verb.",
        formatter_class=lambda prog: argparse.HelpFormatter(prog, max_help_position=20, width=120),
    )
    packages = ", ".join(f"{name} {metadata.version(name)}" for name in ("jax", "flax"))
    versions = f"lumina_jax {__version__}, {packages}, Python {platform.python_version()}"
    parser.add_argument("-V", "--version", action="version", version=versions, help="print versions and exit")
    parser.set_defaults(run=lambda options: parser.print_help())
    verbs = parser.add_subparsers(dest="verb", title="verbs", metavar="VERB", prog="run.py")
    for add in VERBS:
        add(verbs)
    options, rest = parser.parse_known_args(arguments)
    # argparse takes positional arguments in one run only; changes may stand before and after --options.
    if unknown := [word for word in rest if word.startswith("-") or "=" not in word or "changes" not in options]:
        parser.error(f"unknown arguments: {' '.join(unknown)}; see run.py {options.verb or 'VERB'} --help")
    if rest:
        options.changes += rest
    return options


if __name__ == "__main__":
    sys.exit(main())
