"""How a painted picture was made, written into its file and read from it: PNG text, or EXIF in JPEG and WebP.

One JSON object under KEY, in ASCII, holds all that decides the picture (sample.made says what); a text "parameters" says the chief
of it to people and to the viewers that show that name. The pixels are not touched.
"""

import json
from collections.abc import Mapping

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from lumina_jax.errors import InputError, printable
from lumina_jax.pictures.formats import opened
from lumina_jax.places import Place
from lumina_jax.storage import atomic_write
from lumina_jax.text import parse_json

KEY, PARAMETERS = "lumina_jax", "parameters"
"""The keys of the PNG texts; in EXIF the JSON object is the user's comment."""
EXIF_FOLDER, USER_COMMENT, ASCII = 0x8769, 0x9286, b"ASCII\0\0\0"
"""EXIF 2.3, sections 4.6.3 and 4.6.5: the pointer to its folder, the tag, and what begins a comment in ASCII."""
EXIF_BYTES = 60_000
"""JPEG's segment of EXIF has at most 65,533 bytes; a longer comment goes without the prompt's tokens."""
LONG = ("ids",)
"""What people are not shown."""
WIDEST_NAME = 40
"""Letters of a name beside which the values of others stand in one column."""


def metadata_options(made: Mapping[str, object], format: str = "PNG") -> dict[str, object]:
    """The arguments of ``Image.save`` that write ``made`` into a file of ``format``: PNG, JPEG or WEBP."""
    text = json.dumps(made)
    if format == "PNG":
        info = PngInfo()
        info.add_text(KEY, text)
        info.add_text(PARAMETERS, parameters(made))
        return {"pnginfo": info}
    if len(text) > EXIF_BYTES:
        text = json.dumps({name: value for name, value in made.items() if name not in LONG})
    exif = Image.Exif()
    exif.get_ifd(EXIF_FOLDER)[USER_COMMENT] = ASCII + text.encode()
    return {"exif": exif}


def save_picture(image: Image.Image, file: Place, made: Mapping[str, object], new: bool = False) -> None:
    """Writes a PNG with what made it; with ``new`` a file that is there stays, and ExistingFileError is raised."""
    size = {"size": f"{image.width}x{image.height}"}
    with atomic_write(file, new) as temporary:
        image.save(temporary, format="PNG", **metadata_options({**made, **size}))


def read_metadata(content: bytes, label: str) -> dict[str, object]:
    """What :func:`metadata_options` wrote into a file of these bytes.

    Raises InputError, its message beginning with ``label``, for a file that is no picture or says nothing.
    """
    with opened(content, f"{label} is not a picture that can be read") as image:
        image.load()  # the texts of a PNG may stand behind its pixels
        comment = image.getexif().get_ifd(EXIF_FOLDER).get(USER_COMMENT, b"")
        text = getattr(image, "text", {}).get(KEY)
    if text is None and isinstance(comment, bytes) and comment.startswith(ASCII):
        text = comment[len(ASCII) :].decode("ascii", "replace")
    try:
        made = parse_json(text) if text is not None else None
    except InputError:
        made = None
    if not isinstance(made, dict):
        raise InputError(
            f"{label} does not say how it was made; pictures of run.py sample do, unless a program that saved them again left "
            "that out"
        )
    return made


def parameters(made: Mapping[str, object]) -> str:
    """The prompt, and a line of the chief settings, as "Seed: 0, Size: 512x512, ..."."""
    settings = made.get("settings") or {}
    shown = {"Task": made.get("task"), "Seed": made.get("seed"), "Size": made.get("size"), "Model": made.get("model")}
    shown |= {name.replace("_", " ").capitalize(): value for name, value in settings.items()}
    line = ", ".join(f"{name}: {value}" for name, value in shown.items() if value not in (None, ""))
    return f"{made.get('prompt', '')}\n{line}"


def in_lines(made: Mapping[str, object]) -> str:
    """One line for each thing that ``made`` tells, the settings among them, but for LONG."""
    settings = made.get("settings")
    flat = {name: value for name, value in made.items() if name not in (*LONG, "settings")}
    flat |= settings if isinstance(settings, Mapping) else {"settings": settings} if settings else {}
    width = min(max(map(len, flat), default=0), WIDEST_NAME)
    return "\n".join(printable(f"{name:{width}}  {value}") for name, value in flat.items())
