"""What is kept of a dialog: a line of JSON that it goes on from, and a page that is read."""

import base64
import html
import io
import json
import os
from collections.abc import Sequence

from lumina_jax.errors import ExistingFileError, InputError, UserError
from lumina_jax.places import Place, absolute, is_url
from lumina_jax.sample.dialog import Dialog, DialogPicture, dialog_record
from lumina_jax.storage import atomic_write_text

TRANSCRIPT = "transcript.jsonl"
STYLE = """body { max-width: 48em; margin: 2em auto; padding: 0 1em; font: 16px/1.5 sans-serif }
div { white-space: pre-wrap; margin: 1em 0; padding: .6em 1em; border-radius: .6em; background: #eef3fb }
div.human { margin-left: 4em; background: #f4f4f4 }
img { display: block; max-width: 100%; image-rendering: pixelated }"""


class Transcript:
    """The dialogs of one session in a folder: a line of TRANSCRIPT per dialog, which names the files of its pictures."""

    def __init__(self, out: Place):
        self._out = out
        self._past: list[str] = []
        self._saved: set[Place] = set()
        self.dialog, self.files = Dialog(), ()

    def begin(self, dialog: Dialog, files: Sequence[Place]) -> None:
        """The dialog so far has ended; the next is ``dialog``, whose pictures stand in ``files``."""
        self._past += [_line(self.dialog, self.files, self._out)] * bool(self.dialog.turns)
        self.dialog, self.files = dialog, tuple(files)

    def keep(self, dialog: Dialog, files: Sequence[Place]) -> None:
        """Writes the dialog with a turn more; ``files`` are those of the new pictures."""
        self.dialog, self.files = dialog, (*self.files, *files)
        atomic_write_text(self._out / TRANSCRIPT, "".join([*self._past, _line(dialog, self.files, self._out)]))

    def save(self, file: Place) -> None:
        """Writes the dialog alone: as a line to a .jsonl file, or as a page to an .html file.

        Raises InputError for other names and for one that no file can have, and ExistingFileError for a file that this session has
        not written.
        """
        if file.suffix not in (".jsonl", ".html"):
            raise InputError(f"{file} ends neither in .jsonl, to go on with, nor in .html, to read; name the file so")
        if not self.dialog.turns:
            raise InputError("the dialog has no turns yet; there is nothing to save")
        there = absolute(file)
        text = _line(self.dialog, self.files, there.parent) if file.suffix == ".jsonl" else page(self.dialog)
        exists = there.exists() if is_url(there) else os.path.lexists(there)
        if exists and there not in self._saved:
            raise ExistingFileError(f"{file} exists already; give another name, or move it away")
        try:
            atomic_write_text(there, text)
        except UserError:
            raise
        except (OSError, ValueError) as error:
            raise InputError(f"{file} cannot be written: {error}; give another name") from error
        self._saved.add(there)


def _line(dialog: Dialog, files: Sequence[Place], folder: Place) -> str:
    """A dialog as a line of a file in ``folder``."""
    return json.dumps(dialog_record(dialog, [_name(file, folder) for file in files]), ensure_ascii=False) + "\n"


def _name(file: Place, folder: Place) -> str:
    """How a line of a file in ``folder`` calls ``file``: relative to it, but absolute where one is of a store and not the other."""
    if is_url(file) or is_url(folder):
        inside = str(file).startswith(f"{folder}/")
        return str(file)[len(str(folder)) + 1 :] if inside else str(absolute(file))
    # ".." behind a link leads to the parent of where the link points to, so that links are followed first.
    return os.path.relpath(os.path.join(os.path.realpath(file.parent), file.name), os.path.realpath(folder))


def page(dialog: Dialog) -> str:
    """A dialog as one page of HTML that holds its pictures."""
    blocks = "\n".join(
        f'<div class="{speaker}">{"".join(map(_block, pieces))}</div>' for speaker, pieces in dialog.messages()
    )
    return f'<!doctype html>\n<meta charset="utf-8">\n<title>Dialog</title>\n<style>\n{STYLE}\n</style>\n{blocks}\n'


def _block(piece: str | DialogPicture) -> str:
    if isinstance(piece, str):
        return html.escape(piece)
    png = io.BytesIO()
    piece.image.save(png, format="PNG")
    return f'<img src="data:image/png;base64,{base64.b64encode(png.getvalue()).decode()}">'
