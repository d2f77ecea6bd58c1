"""What a clean machine needs from nothing to a picture: seconds and megabytes of a fresh environment for each set of versions.

    python tests/bench/install.py python3.11 python3.12 python3.12:requirements-jax012.txt

Each argument is a Python, and behind a colon the file with the exact versions (default: requirements.txt; "-" for the newest that
pyproject.toml allows). For each an environment is made outside of the repository, the package installed with its packages fetched
or taken from pip's cache, the console script paints a picture, and the lines of lumina_jax/INSTALL.md paint one: first with no
compiled program kept, then again. One JSON line each.
"""

import argparse
import json
import os
import re
import subprocess
import tempfile
import time
from pathlib import Path

REPO = Path(__file__).resolve().parents[2]
SAMPLE = (
    "sample",
    "--prompt",
    "a red circle left of a blue square",
    "--size",
    "64x64",
    "--seed",
    "7",
    "--out",
    "painted",
)


def seconds(command: list[str], folder: Path, cache: str = "") -> float:
    """How long a command takes in ``folder``, its compiled programs kept in ``folder / cache``. Raises CalledProcessError."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "JAX_", "XLA_"))}
    environment |= {"XDG_CACHE_HOME": str(folder / cache)} if cache else {}
    begun = time.monotonic()
    subprocess.run(command, cwd=folder, env=environment, check=True, stdout=subprocess.DEVNULL)
    return round(time.monotonic() - begun, 1)


def megabytes(folder: Path) -> int:
    """What the files of a folder take."""
    return round(sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6)


def measured(python: str, pins: str, folder: Path) -> dict[str, object]:
    """The line of one environment."""
    environment = folder / "environment"
    made = seconds([python, "-m", "venv", str(environment)], folder)
    program = environment / "bin" / "python"
    versions = [] if pins == "-" else ["-r", str(REPO / pins)]
    installed = seconds([str(program), "-m", "pip", "install", "-q", str(REPO), *versions], folder)
    ask = "import sys, jax, flax; print('.'.join(map(str, sys.version_info[:2])), jax.__version__, flax.__version__)"
    names = subprocess.run([program, "-c", ask], capture_output=True, text=True, check=True).stdout.split()
    (lines,) = re.findall(
        r"^```python\n(.*?)^```", (REPO / "lumina_jax/INSTALL.md").read_text(), re.MULTILINE | re.DOTALL
    )
    ten = [str(program), "-c", lines]
    return dict(zip(("python", "jax", "flax"), names, strict=True)) | {
        "pins": pins,
        "venv_s": made,
        "install_s": installed,
        "megabytes": megabytes(environment),
        "import_s": seconds([str(program), "-c", "import lumina_jax"], folder),
        "console_s": seconds([str(environment / "bin" / "lumina-jax"), *SAMPLE], folder, "console-cache"),
        "ten_lines_s": seconds(ten, folder, "cache"),
        "ten_lines_again_s": seconds(ten, folder, "cache"),
        "same_bits": _pixels(program, folder),
    }


def _pixels(program: Path, folder: Path) -> bool:
    """Whether both pictures are the same."""
    both = "Image.open('painted/000-0.png').tobytes() == Image.open('circle.png').tobytes()"
    command = [str(program), "-c", f"from PIL import Image; print({both})"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stdout == "True\n"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("pythons", nargs="+", metavar="PYTHON[:PINS]", help="a Python, and the file that pins versions")
    for address in parser.parse_args().pythons:
        python, _, pins = address.partition(":")
        with tempfile.TemporaryDirectory() as folder:
            print(json.dumps(measured(python, pins or "requirements.txt", Path(folder))), flush=True)
