"""The option --lpips: the published weights of LPIPS, loaded."""

from argparse import ArgumentParser, Namespace

from lumina_jax.cli.arguments import input_path


def lpips_argument(parser: ArgumentParser, purpose: str) -> None:
    """``purpose`` says in words what it is for."""
    files = "its weights/v0.1/alex.pth or vgg.pth, and torchvision's weights of that network"
    parser.add_argument(
        "--lpips",
        nargs=2,
        type=input_path,
        metavar=("HEADS", "BACKBONE"),
        help=f"{purpose}: {files} (default: without)",
    )


def lpips_of(options: Namespace):
    """The Lpips of --lpips, None without it. Raises UserErrors naming what is missing or wrong."""
    if not options.lpips:
        return None
    from lumina_jax.progress import waiting

    with waiting("loading LPIPS"):
        from convert import load_lpips

        return load_lpips(*options.lpips)
