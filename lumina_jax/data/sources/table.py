"""Image-text pairs in the rows of a CSV or TSV file."""

import csv
import hashlib
import io
from collections.abc import Callable

from lumina_jax.data.sources import files
from lumina_jax.data.sources.adapters import PAIR_CAPTIONS, PAIR_IMAGES, pair
from lumina_jax.data.sources.images import read_image
from lumina_jax.data.sources.record import StoredRecord, StoredSource, stored_record
from lumina_jax.errors import InputError, prefixed_errors

BARE = ("caption", "url")
"""The columns of a file without a header, which is how Conceptual Captions is published."""


class TableSource(StoredSource):
    """Records of a .csv or .tsv file, which is in memory; its header names an image and a caption column (adapters.pair).

    Two columns without a header are caption and image. Image paths are relative to ``folder``, by default the folder of the
    file. Raises MissingFileError, or InputError when the columns are not known or the file is no CSV.
    """

    def __init__(self, path: str, folder: str | None = None, adapt: Callable[[object], object] = pair):
        self.path, self._adapt = path, adapt
        self.folder = files.folder_of(path) if folder is None else folder
        content = files.read(path)
        self.fingerprint = hashlib.sha256(content).hexdigest()[:16]
        # Bytes that are no UTF-8 become half surrogates, for which the record that holds them is rejected.
        text = io.StringIO(content.decode("utf-8-sig", errors="surrogateescape"), newline="")
        with prefixed_errors(f"{path} is no CSV or TSV file", csv.Error):
            rows = [row for row in csv.reader(text, delimiter="\t" if path.endswith(".tsv") else ",") if row]
        self._header, self._rows = _split_header(rows, path)

    def __len__(self) -> int:
        return len(self._rows)

    def stored(self, index: int) -> StoredRecord:
        with prefixed_errors(f"{self.path}, record {index}"):
            return stored_record(self.item(index), lambda image: read_image(files.join(self.folder, str(image))))

    def item(self, index: int) -> object:
        """Row ``index`` in Lumina's form, not checked; InputError when it has more or fewer fields than the header."""
        row = self._rows[index]
        if len(row) != len(self._header):
            raise InputError(f"the row has {len(row)} fields, the header {len(self._header)}")
        return self._adapt(dict(zip(self._header, row, strict=True)))


def _split_header(rows: list[list[str]], path: str) -> tuple[list[str], list[list[str]]]:
    first = [name.strip().lower() for name in rows[0]] if rows else []
    if any(name in PAIR_IMAGES for name in first) and any(name in PAIR_CAPTIONS for name in first):
        return first, rows[1:]
    if len(first) == len(BARE) and not any(name in PAIR_IMAGES + PAIR_CAPTIONS for name in first):
        return list(BARE), rows
    raise InputError(
        f"{path}: the header {', '.join(first) or '(none)'} must name an image ({', '.join(PAIR_IMAGES[:5])}, ...) "
        f"and a caption ({', '.join(PAIR_CAPTIONS[:3])}, ...)"
    )
