"""What a person installs for a package that is missing: the extras of pyproject.toml, which list the packages."""

from pathlib import Path

PACKAGE = Path(__file__).resolve().parent


def install(extra: str) -> str:
    """The command that installs an extra of the project: of the package, or of the checkout that this file is in."""
    checkout = PACKAGE.parent
    name = f"-e '{checkout}[{extra}]'" if (checkout / "pyproject.toml").is_file() else f'"lumina-jax[{extra}]"'
    return f"pip install {name}"
