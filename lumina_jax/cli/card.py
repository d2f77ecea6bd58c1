"""Options of run.py convert export for the page of a published model."""

from argparse import ArgumentParser, Namespace

from lumina_jax.cli.arguments import at, input_path
from lumina_jax.errors import InputError


def card_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--card", action="store_true", help="also write README.md, the model's page on the hub")
    license_help = (
        "with --card: apache-2.0 ..., chameleon, or NAME=URL (default: Chameleon's, for weights that come from it)"
    )
    parser.add_argument("--license", default="", metavar="NAME", help=license_help)
    base_help = "with --card: the repository that the weights were made from (default: as names tell)"
    parser.add_argument("--base-model", default="", metavar="OWNER/NAME", help=base_help)
    scores_help = "with --card: JSON of numbers, as run.py evaluate prints it"
    parser.add_argument("--scores", type=input_path, default="", metavar="FILE", help=scores_help)
    parser.add_argument(
        "--pictures", type=input_path, nargs="+", default=[], metavar="FILE", help="with --card: pictures to show"
    )


def card_of(options: Namespace, folder: str):
    """The convert.card.Card of --card for the checkpoint in ``folder``, or None without it; UserErrors for what it lacks."""
    if not options.card:
        for option in ("license", "base_model", "scores", "pictures"):
            if vars(options).get(option):
                raise InputError(f"--{option.replace('_', '-')} goes with --card")
        return None
    from convert.card import CardRequest, model_card

    request = CardRequest(
        at(options.target).name, options.license, options.base_model, options.scores, options.pictures
    )
    return model_card(folder, options.layout, request)
