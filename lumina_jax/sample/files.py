"""What a person names or writes by hand, read: files of prompts, pictures, and the pictures in a line of a dialog."""

import json
import os
import re
from typing import NamedTuple

from PIL import Image

from lumina_jax.conversation import literal
from lumina_jax.errors import InputError, MissingFileError, prefixed_errors
from lumina_jax.pictures.pixels import decode
from lumina_jax.places import WEB, Place, is_url, place, store_errors
from lumina_jax.text import decode_text, parse_json, split_lines
from lumina_jax.vocab import IMAGE_SYMBOL

PICTURE = re.compile(r"""(?<!\S)@(?:"([^"]+)"|'([^']+)'|((?:\\.|\S)+))""")
ADDRESS = re.compile("[a-z0-9]{2,}:/")


class Line(NamedTuple):
    """An entry of a prompts file: its ``number``, from 1, and its ``text``, which ``is_json`` or the prompt itself."""

    number: int
    text: str
    is_json: bool

    def record(self) -> dict:
        """The fields of the prompt (prompt.PromptBuilder.from_record). Raises InputError when it is neither object nor text."""
        record = parse_json(self.text) if self.is_json else self.text
        if not isinstance(record, dict | str):
            raise InputError('expected an object such as {"prompt": "A cat."}', cause="no JSON object")
        return {"prompt": record} if isinstance(record, str) else record

    @property
    def needs_sizes(self) -> bool:
        """Whether its prompt shows a picture, or asks for one without a size. False for a line that is no record."""
        try:
            record = self.record()
        except InputError:
            return False
        given = {name for name, value in record.items() if value is not None}
        paints = record["task"] == "generate" if "task" in given else "conversations" not in given
        return bool(given & {"image", "images"}) or (paints and "size" not in given)


def read_lines(path: Place) -> list[Line]:
    """The entries of a prompts file, without blank lines: in .jsonl a JSON object or text per line, in .json a list of them; in any
    other file each line is a prompt.

    Raises MissingFileError or InputError where the file cannot be read as text, or a .json file is no list.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise MissingFileError(f"{path}: no such file of prompts or dialogs") from error
    except (*store_errors(), ValueError) as error:
        raise InputError(f"{path} is not a text file that can be read: {_reason(error)}") from error
    with prefixed_errors(f"{path} is not a text file that can be read"):
        text = decode_text(content, path.name)
    kind = path.suffix.lower()
    if kind == ".json":
        with prefixed_errors(
            f"{path}: a .json file is one list of prompts (with a prompt per line it is called .jsonl)"
        ):
            entries = parse_json(text)
            if not isinstance(entries, list):
                raise InputError(f"found {type(entries).__name__}")
        return [Line(number, json.dumps(entry), True) for number, entry in enumerate(entries, start=1)]
    lines = enumerate(split_lines(text), start=1)
    return [Line(number, line, kind in (".jsonl", ".ndjson")) for number, line in lines if line.strip()]


def pictures_in(line: str) -> tuple[str, list[Place]]:
    """A line of a dialog -> (the message, with ``<|image|>`` for each picture; the pictures' files).

    A picture is a word that begins with @: @cat.png, @"my cat.png", @'my cat.png', @my\\ cat.png or @gs://BUCKET/cat.png.
    Punctuation behind the name of a file is text. @@ at the beginning of a word is one @; elsewhere in a word, as in a@b.com, it
    means nothing.
    """
    pieces, files, end = [], [], 0
    for match in PICTURE.finditer(line):
        quoted, word = match[1] or match[2], match[3]
        name, behind = (quoted, "") if quoted else _file_name(word)
        if word and word.startswith("@"):
            pieces.append(literal(line[end : match.start()] + word))
        else:
            pieces += [literal(line[end : match.start()]), IMAGE_SYMBOL, literal(behind)]
            files.append(place(os.path.expanduser(name)))
        end = match.end()
    return "".join([*pieces, literal(line[end:])]), files


def _file_name(word: str) -> tuple[str, str]:
    """(the name of a file, the punctuation behind it) of a word with \\ before spaces, as terminals write dropped files."""
    name = re.sub(r"\\(\W)", r"\1", word)
    bare = name.rstrip(".,;:!?)")
    is_bare = is_url(bare) or (bare and not os.path.exists(name) and os.path.exists(bare))
    return (bare, name[len(bare) :]) if is_bare else (name, "")


def open_image(path: Place) -> Image.Image:
    """The picture in a file (pixels.decode). Raises InputError naming the file when it is missing or no picture."""
    message, is_local = f"{path} is not a picture that can be read", not is_url(path)
    if path.protocol in WEB if not is_local else not os.path.exists(path) and ADDRESS.search(str(path)):
        raise InputError(
            f"{message}: pictures are files of this machine or of a store; download it first",
            cause="an address, not a file",
        )
    if is_local and os.path.exists(path) and not path.is_file() and not path.is_dir():
        raise InputError(f"{message}: it is a pipe or a device; give a file", cause="no file")
    try:
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise InputError(f"{message}: there is no such file", cause="file not found") from error
    except (*store_errors(), ValueError) as error:
        raise InputError(f"{message}: {_reason(error)}", cause=_reason(error)) from error
    return decode(content, message)


def _reason(error: Exception) -> str:
    """Why a file could not be read, without its name. A ValueError is that of a name with a NUL."""
    if isinstance(error, ValueError):
        return "no file has such a name"
    return getattr(error, "strerror", None) or f"{type(error).__name__}: {error}"
