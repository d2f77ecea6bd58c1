"""What a picture tells of how it was made: run.py inspect prints it, run.py sample --like paints it again."""

from argparse import ArgumentTypeError, Namespace, _SubParsersAction

from lumina_jax.cli.arguments import NOTHING, at, input_path, shipped
from lumina_jax.cli.ending import say
from lumina_jax.cli.models import TOY_MODEL
from lumina_jax.errors import InputError

EXCLUDED = ("prompt", "prompts", "image", "chat", "task", "size", "raw", "free_size", "seed", "history")
"""Options of sample that say what a picture tells."""


def add_inspect(verbs: _SubParsersAction) -> None:
    inspect = verbs.add_parser("inspect", help="how a picture was made, as its file tells")
    inspect.add_argument("pictures", nargs="+", type=input_path, metavar="PICTURE", help="pictures of run.py sample")
    inspect.add_argument("--json", action="store_true", help="a line of JSON for each, with all that the file tells")
    inspect.set_defaults(run=_inspect, keeps=NOTHING)


def _inspect(options: Namespace) -> None:
    import json

    from lumina_jax.pictures.metadata import in_lines

    for file in options.pictures:
        made = made_of(file)
        if not options.json and len(options.pictures) > 1:
            say(f"{file}:")
        print(json.dumps({"file": str(file)} | made) if options.json else in_lines(made), flush=True)


def made_of(file: str) -> dict:
    """What the picture at an address tells (pictures.metadata). Raises InputError where it is none or tells nothing."""
    from lumina_jax.pictures.metadata import read_metadata
    from lumina_jax.places import store_errors

    if at(file).is_dir():
        raise InputError(f"{file} is a folder; give a picture in it, such as {at(file) / '000-0.png'}")
    try:
        content = at(file).read_bytes()
    except (*store_errors(), ValueError) as error:
        raise InputError(f"{file} cannot be read: {getattr(error, 'strerror', None) or error}") from error
    return read_metadata(content, str(file))


def take_over(options: Namespace) -> dict:
    """What the picture of --like tells; its model and dtypes become those of ``options`` that give none.

    Raises InputError for options that say otherwise what is painted.
    """
    values = {name: vars(options)[name] for name in EXCLUDED}
    given = [name for name, value in values.items() if value or (value is not False and value == 0)]  # --seed 0 is one
    if given:
        raise InputError(f"--{given[0].replace('_', '-')} is what --like FILE tells; leave one of the two out")
    made = made_of(options.like)
    if options.model == str(shipped(TOY_MODEL)) and (address := str(made.get("model") or "")):
        if "://" in address:  # a picture of strangers chooses nothing that is fetched
            raise InputError(
                f"{options.like} was made by the model {address}; to paint it again give --model {address}"
            )
        try:
            options.model = input_path(address)
        except ArgumentTypeError as error:
            raise InputError(f"{options.like} names a model of which there is none: {error}") from error
    dtypes = str(made.get("dtype", "")).split("+")
    if not (options.int8 or options.int4):
        options.int8, options.int4 = "int8" in dtypes, "int4" in dtypes
    if not options.dtype:
        options.dtype = next((name for name in ("bfloat16", "float16") if name in dtypes), "float32")
    return made
