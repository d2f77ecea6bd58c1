"""The rows of delimited text: where each begins and ends in a file, and the fields in it."""

import hashlib
import re

import numpy as np

from lumina_jax.data.sources import files
from lumina_jax.data.sources.json_spans import LINE_END, QUOTE, index_lines, lines_of
from lumina_jax.data.sources.text_file import TextFile
from lumina_jax.errors import InputError

LONGEST = files.BLOCK
"""Bytes: a quoted field that is still open after so many counts as never closed."""
OPEN = r'"[^"]*+(?:""[^"]*+)*+'
"""A quoted field without its closing mark."""


class RowFormat:
    """How the fields of a row are told apart: by a ``delimiter``; ``quoted`` ones may hold delimiters and line ends.

    As in RFC 4180 a quoted field begins and ends with a quotation mark, and a mark inside it is doubled; elsewhere a mark is a
    letter. A row with a quoted field that is not closed, or goes on behind its closing mark, is a bad row of one line: the lines
    after it are rows of their own.
    """

    def __init__(self, delimiter: str, quoted: bool):
        self.delimiter, self.quoted = delimiter, quoted
        mark = re.escape(delimiter)
        field = rf'(?:{OPEN}"|[^"\n{mark}][^\n{mark}]*+|)'
        self._field = re.compile(rf"(?:\A|{mark})({field})")
        self._row = re.compile(rf"{field}(?:{mark}{field})*+")
        self._row_and_end = re.compile(rf"{self._row.pattern}\r?(?:\n|\Z)".encode())
        self._open_row = re.compile(rf"(?:{field}{mark})*+{OPEN}\Z".encode())

    def fields(self, row: str) -> list[str]:
        """The fields of a row with or without its carriage return; InputError where its quotation marks are wrong."""
        row = row.removesuffix("\r")
        if not self.quoted or '"' not in row:
            return row.split(self.delimiter)
        if not self._row.fullmatch(row):
            raise InputError(
                "a field that begins with a quotation mark does not end with one; close it, and double the marks inside it",
                cause="quotation mark not closed",
            )
        return [_unquoted(field) for field in self._field.findall(row)]

    def index(self, text: TextFile, chunk: int = files.BLOCK) -> tuple[np.ndarray, str]:
        """The byte spans i64[n 2] of the n rows of a file that are not blank, and 16 hex digits of the file's SHA-256."""
        if not self.quoted:
            return index_lines(text, chunk)
        digest, spans, rest, offset = hashlib.sha256(), [], b"", 0
        for block in text.blocks(digest.update, chunk):
            rest += block
            rows, used = self._complete_rows(rest, is_end=False)
            spans.append(offset + rows)
            rest, offset = rest[used:], offset + used
        spans.append(offset + self._complete_rows(rest, is_end=True)[0])
        return np.concatenate(spans), digest.hexdigest()[:16]

    def _complete_rows(self, content: bytes, is_end: bool) -> tuple[np.ndarray, int]:
        """The spans of the rows that are complete in ``content``, and where the rest of it begins, to which more is added.

        ``is_end``: no more comes.
        """
        ends, is_row = lines_of(content)
        starts, stops = np.append(0, ends + 1), np.append(ends, len(content))
        lines, free = len(ends) + is_end, 0
        with_quotes = np.unique(np.searchsorted(ends, np.flatnonzero(np.frombuffer(content, np.uint8) == QUOTE)))
        with_quotes = with_quotes[with_quotes < lines]
        for line, start, after in np.stack([with_quotes, starts[with_quotes], stops[with_quotes] + 1], 1).tolist():
            if line < free:
                continue
            row = self._row_and_end.match(content, start)
            if row is None and (is_end or len(content) - start > LONGEST or not self._open_row.match(content, start)):
                continue  # a bad row
            if row is None or (row.end() == len(content) and content[-1] != LINE_END and not is_end):
                lines = line
                break
            if row.end() == after:
                continue  # a row of one line
            free = int(np.searchsorted(starts, row.end()))
            stops[line] = stops[free - 1]
            is_row[line + 1 : free] = False
        return np.stack([starts, stops], 1)[:lines][is_row[:lines]], int(starts[lines]) if lines < len(starts) else 0


def _unquoted(field: str) -> str:
    return field[1:-1].replace('""', '"') if field.startswith('"') else field
