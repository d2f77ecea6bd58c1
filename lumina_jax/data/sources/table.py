"""Image-text pairs in the rows of a CSV or TSV file."""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence

from lumina_jax.data.sources import files
from lumina_jax.data.sources.adapters import PAIR_CAPTIONS, PAIR_IMAGES, column_name, pair
from lumina_jax.data.sources.csv_rows import RowFormat
from lumina_jax.data.sources.json_spans import HEAD
from lumina_jax.data.sources.options import has_suffix
from lumina_jax.data.sources.record import StoredRecord, StoredSource, image_reader, stored_record
from lumina_jax.data.sources.text_file import TextFile
from lumina_jax.errors import InputError, prefixed_errors

BARE = ("caption", "url")
"""The columns of a file without a header, which is how Conceptual Captions is published."""
TAB_SUFFIX = ".tsv"
CSV_DELIMITERS = (",", ";", "\t", "|")
"""What may stand between the fields of a .csv file, the likeliest first."""
LIKE_A_PATH = re.compile("[./]")
TRIED = 8
"""Rows that are looked at to find out that there is no header."""
SEPARATOR_LINE = re.compile(r'"?sep=(.)"?\r?')
"""The first line by which Excel is told the delimiter."""


class TableSource(StoredSource):
    """Records of a .csv or .tsv file; its header names an image and a caption column (adapters.pair).

    The fields of a .tsv file are plain text between tabs. Those of a .csv file may be quoted and stand between commas, or what
    its header shows, or a first line such as ``sep=;`` says; ``quoted`` overrides which fields may be quoted (see RowFormat). Two
    columns without a header are caption and image. Image paths are relative to ``folder``, by default the folder of the file.

    In memory are only the byte spans of the rows (see TextFile). Raises MissingFileError, or InputError when the columns are not
    known or the file is no text.
    """

    def __init__(
        self,
        path: str,
        folder: str | None = None,
        adapt: Callable[[object], object] = pair,
        quoted: bool | None = None,
    ):
        self.path, self._adapt = path, adapt
        self.folder = files.folder_of(path) if folder is None else folder
        self._text = TextFile(path)
        first, second, *_ = (self._text.read(0, HEAD).decode(errors="replace").lstrip("\r\n") + "\n\n").split("\n")
        separator = SEPARATOR_LINE.fullmatch(first)
        is_tsv = has_suffix(path, TAB_SUFFIX)
        quoted = not is_tsv if quoted is None else quoted
        delimiters = separator[1] if separator else "\t" if is_tsv else CSV_DELIMITERS
        self._format = _format(delimiters, quoted, second if separator else first)
        self._spans, self.fingerprint = self._format.index(self._text)
        self._spans = self._spans[bool(separator) :]
        with prefixed_errors(path):
            self._header, has_header = _header(
                [self._fields_or_none(row) for row in range(min(len(self._spans), TRIED))]
            )
        self._spans = self._spans[has_header:]

    def __len__(self) -> int:
        return len(self._spans)

    def stored(self, index: int) -> StoredRecord:
        with prefixed_errors(f"{self.path}, record {index}"):
            return stored_record(self.item(index), image_reader(self.folder))

    def item(self, index: int) -> object:
        """Row ``index`` in Lumina's form, not checked; InputError when it has more or fewer fields than the header."""
        row = self._fields(index)
        if len(row) != len(self._header):
            raise InputError(
                f"the row has {len(row)} fields, the header {len(self._header)}", cause="another number of fields"
            )
        return self._adapt(dict(zip(self._header, row, strict=True)))

    def _fields(self, index: int) -> list[str]:
        return self._format.fields(self._text.text(*map(int, self._spans[index])))

    def _fields_or_none(self, index: int) -> list[str]:
        """The fields of a row, none of a bad one."""
        try:
            return self._fields(index)
        except InputError:
            return []


def _format(delimiters: Sequence[str], quoted: bool, first: str) -> RowFormat:
    """The first of the formats by which the ``first`` line is a header, or simply the first."""
    formats = [RowFormat(delimiter, quoted) for delimiter in delimiters]
    return next((form for form in formats if _names_both(map(_unquoted_name, first.split(form.delimiter)))), formats[0])


def _header(rows: Sequence[Sequence[str]]) -> tuple[list[str], bool]:
    """The names of the columns by the first ``rows``, and whether the first of them is a header."""
    first = rows[0] if rows else []
    names = [column_name(field) for field in first]
    if _names_both(names):
        known = Counter(name for name in names if name in PAIR_IMAGES + PAIR_CAPTIONS)
        if twice := [name for name, count in known.items() if count > 1]:
            raise InputError(f"the header names {twice[0]!r} twice; rename one")
        return names, True
    # A first row of two fields is asked itself; one that is damaged leaves it to those after it.
    pairs = [row for row in (rows[:1] if len(first) == len(BARE) else rows) if len(row) == len(BARE)]
    if not set(names) & {*PAIR_IMAGES, *PAIR_CAPTIONS} and any(LIKE_A_PATH.search(url) for _, url in pairs):
        return list(BARE), False
    if any("\r" in field for field in first):
        raise InputError("lines end with a carriage return alone; save it with \\n or \\r\\n as line ends")
    raise InputError(
        f"the header {', '.join(first[:TRIED]) or '(none)'} must name an image ({', '.join(PAIR_IMAGES[:5])}, ...) "
        f"and a caption ({', '.join(PAIR_CAPTIONS[:3])}, ...)"
        + ("; its fields are quoted: write pairs:FILE@quoted=yes" if _names_both(map(_unquoted_name, first)) else "")
    )


def _unquoted_name(field: str) -> str:
    return column_name(field.strip().strip('"'))


def _names_both(names: Iterable[str]) -> bool:
    """Whether both an image and a caption are among the names of columns."""
    names = set(names)
    return not (names.isdisjoint(PAIR_IMAGES) or names.isdisjoint(PAIR_CAPTIONS))
