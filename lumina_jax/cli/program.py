"""The command line: ``python run.py VERB --help`` in a checkout, ``lumina-jax VERB --help`` where the package is installed."""

import sys

try:
    import argparse
    import platform
    from importlib import metadata
    from typing import NoReturn

    from lumina_jax import __version__
    from lumina_jax.cli import ending
    from lumina_jax.cli.again import add_inspect
    from lumina_jax.cli.checks import check_options
    from lumina_jax.cli.convert import add_convert
    from lumina_jax.cli.data import add_data
    from lumina_jax.cli.evaluate import add_evaluate, add_refine
    from lumina_jax.cli.parser import Parser, program_name
    from lumina_jax.cli.pretokenize import add_pretokenize
    from lumina_jax.cli.quickstart import add_grow, add_quickstart
    from lumina_jax.cli.sample import add_sample
    from lumina_jax.cli.study import add_study
    from lumina_jax.cli.train import add_compile, add_train
except KeyboardInterrupt:
    print("lumina_jax: interrupted", file=sys.stderr)
    raise SystemExit(130) from None

VERBS = (
    add_quickstart,
    add_pretokenize,
    add_grow,
    add_train,
    add_data,
    add_compile,
    add_sample,
    add_inspect,
    add_convert,
    add_refine,
    add_evaluate,
    add_study,
)


def main(arguments: list[str] | None = None) -> int:
    """Runs one verb and returns the exit code: 2 after one line on stderr when a user can mend the error.

    75 where a restart may help, 130 after Ctrl-C and 143 after SIGTERM, with a line on what is kept. Any other exception is a
    bug and passes through. Without a verb the verbs are listed.
    """
    ending.prepare_streams()
    options = parse(arguments)
    program = " ".join(filter(None, (program_name(), options.verb, vars(options).get("action"))))
    keeps, raised = vars(options).get("keeps", "").format_map(vars(options)), []
    try:
        with ending.signals(program, keeps) as raised:
            check_options(options)
            code = options.run(options) or 0
            print(end="", flush=True)
            return code
    except BaseException as error:
        if interrupt := ending.interrupt_of(error, raised):
            return ending.tell_interrupt(program, interrupt, keeps)
        if (code := ending.tell_error(program, error)) is None:
            raise
        return code


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line (default: of this process) as the options of its verb; ends the process with code 2 when it has none."""
    name = program_name()
    parser = Parser(
        prog=name,
        usage=f"{name} [-h] [-V] VERB ...",
        description="Lumina-mGPT in JAX: pictures and text in one model.",
        epilog=f"{name} VERB --help explains a verb. Every path may be a URL, gs:// or s3://.",
    )
    packages = ", ".join(f"{name} {metadata.version(name)}" for name in ("jax", "flax"))
    versions = f"lumina_jax {__version__}, {packages}, Python {platform.python_version()}"
    parser.add_argument("-V", "--version", action="version", version=versions, help="print versions and exit")
    parser.set_defaults(run=lambda options: parser.print_help())
    verbs = parser.add_subparsers(dest="verb", title="verbs", metavar="VERB", prog=name)
    for add in VERBS:
        add(verbs)
    options, rest = parser.parse_known_args(arguments)
    # argparse takes positional arguments in one run only; changes may stand before and after --options.
    if unknown := [word for word in rest if word.startswith("-") or "=" not in word or "changes" not in options]:
        parser.nested(options).error(parser.unknown_words(unknown, options))
    if rest:
        options.changes += rest
    return options


def console() -> NoReturn:
    """The process that run.py and the console script are: :func:`main`, whose code it ends with."""
    ending.leave(main)
