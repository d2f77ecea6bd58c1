"""Where a file or folder is: a path of this machine, or a URL of a store that fsspec knows (gs://, s3://).

Both have the methods of pathlib.Path (:func:`place`). Errors of a store are those of its own client; :func:`store_errors` names
their classes, and every border turns them into one line (storage.storage_errors).
"""

import os
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import BinaryIO

import fsspec
import numpy as np
from fsspec.spec import AbstractBufferedFile
from upath import UPath

from lumina_jax.errors import InputError, MissingFileError, MissingPackageError, StorageError, UserError
from lumina_jax.extras import install
from lumina_jax.faults import retried

Place = Path | UPath
"""A local path, or the place of a URL."""
URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
ALMOST_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.:-]+:(/|$)")
"""The beginning of what would become a local folder named after a scheme, such as gs:/BUCKET."""
WEB = ("http", "https")
"""Schemes that can be neither listed nor written."""
HUB = "hf"
"""The scheme of the Hugging Face hub (lumina_jax.hub)."""
EXTRAS = {"gs": "gcs", "gcs": "gcs", "s3": "s3", "s3a": "s3"}
"""The extra of the project that brings a scheme's client."""
CLIENT_ERRORS = {
    "gcsfs.retry": "HttpError",
    "google.auth.exceptions": "GoogleAuthError",
    "aiohttp": "ClientError",
    "botocore.exceptions": "BotoCoreError",
}
"""Module -> the class of its errors that are no OSError."""
PART_BYTES = 1 << 24
"""Of one request that reads a range; several are under way at once."""
PARTS_AT_ONCE = 8
BLOCK_BYTES = 1 << 26
"""Of one request that writes a part of a file."""
ATTEMPTS = 4
"""Of a range that came back short."""


def is_url(address: object) -> bool:
    """Whether an address is a URL, of whatever scheme, and not a path of this machine."""
    return isinstance(address, UPath) or URL.match(str(address)) is not None


def place(address: str | Place) -> Place:
    """The place at a path or URL; nothing is read.

    Raises InputError for a URL of an unknown scheme and for one with a slash too few, which would become a folder here, and
    MissingPackageError naming what to install for a store whose client is absent.
    """
    if isinstance(address, Path | UPath):
        return address
    if (match := URL.match(address)) is None:
        if ALMOST_URL.match(address):
            raise InputError(
                f"{address} looks like a URL, but is none; write SCHEME://..., or ./{address} for a path here"
            )
        return Path(address)
    scheme = match[1].lower()
    if scheme == "file":
        return Path(address[match.end() :])
    if scheme == HUB:  # whose files are fetched and verified first, and never read by ranges or written
        raise InputError(
            f"{address} is a repository of the Hugging Face hub, which stands only for a model, its --tokenizer and its --vq; "
            "fetch other files by hf download, and give their folder"
        )
    try:
        fsspec.get_filesystem_class(scheme)
        return UPath(address.rstrip("/"), use_listings_cache=False)
    except ImportError as error:
        raise missing_client(address, error) from error
    except ValueError as error:
        why = f"no store is known by {scheme}://"
        raise InputError(f"{address}: {why}; give a local path, or a URL such as gs://BUCKET/FOLDER") from error


def missing_client(address: str, error: ImportError) -> MissingPackageError:
    """The error of a URL for whose store fsspec finds no client: what it says, and what to install."""
    extra = EXTRAS.get(address.partition("://")[0].lower())
    return MissingPackageError(f"{address}: {error}" + (f"; {install(extra)}" if extra else ""))


def absolute(address: str | Place) -> Place:
    """The place at ``address``, seen from the root of this machine if it is a path."""
    found = place(address)
    return found.absolute() if isinstance(found, Path) else found


def normal(where: Place) -> Place:
    """``where`` without ``..``, as it is written: links are not followed."""
    return Path(os.path.normpath(where)) if isinstance(where, Path) else where.resolve()


def below(folder: Place, name: str) -> Place:
    """``folder / name``, where ``name`` may have the steps . and .. of a path."""
    return folder / name if isinstance(folder, Path) else normal(folder / name)


def beside(folder: Place, name: str) -> Place:
    """The file ``name`` as something in ``folder`` calls it: relative to it, absolute, or a URL."""
    return place(name) if is_url(name) or os.path.isabs(name) else folder / name


def store_errors() -> tuple[type[Exception], ...]:
    """The classes of what a disk or the client of a store raises when it refuses; of clients that are loaded."""
    loaded = ((sys.modules.get(module), name) for module, name in CLIENT_ERRORS.items())
    return OSError, *(getattr(module, name) for module, name in loaded if module)


@contextmanager
def named_errors(where: Place) -> Iterator[None]:
    """Turns what a store refuses into errors that name ``where`` and the cure."""
    try:
        yield
    except UserError:
        raise
    except FileNotFoundError as error:
        raise MissingFileError(f"{where} is missing; check the address") from error
    except store_errors() as error:
        why = " ".join(f"{type(error).__name__}: {error}".split())
        raise StorageError(f"{where}: {why}; check its permissions and the connection") from error


def read_range(where: UPath, start: int, stop: int) -> np.ndarray:
    """The bytes ``start`` to ``stop`` of a file of a store, u8[stop - start], by several requests at once.

    Raises StorageError when the store sends less, MissingFileError.
    """
    content = np.empty(stop - start, np.uint8)
    edges = list(range(start, stop, PART_BYTES))
    with named_errors(where):
        for group in range(0, len(edges), PARTS_AT_ONCE):
            starts = edges[group : group + PARTS_AT_ONCE]
            _read_parts(where, [(edge, min(edge + PART_BYTES, stop)) for edge in starts], start, content)
    return content


def _read_parts(where: UPath, spans: Sequence[tuple[int, int]], origin: int, content: np.ndarray) -> None:
    """Reads ``spans`` of a file into ``content``, whose first byte is number ``origin`` of the file."""
    for _ in range(ATTEMPTS):
        starts, stops = zip(*spans, strict=True)
        parts = retried(partial(_ranges, where, starts, stops), f"reading {where}")
        short = []
        for span, part in zip(spans, parts, strict=True):
            if len(part) == span[1] - span[0]:
                content[span[0] - origin : span[1] - origin] = np.frombuffer(part, np.uint8)
            else:
                short.append(span)
        if not short:
            return
        spans = short
    raise StorageError(
        f"{where}: bytes {spans[0][0]:,} to {spans[0][1]:,} come back cut short; the file is not whole, or its store is not well: "
        "copy it again"
    )


def _ranges(where: UPath, starts: Sequence[int], stops: Sequence[int]) -> list[bytes]:
    return where.fs.cat_ranges([where.path] * len(starts), list(starts), list(stops), on_error="raise")


class NewFile:
    """A file being written front to back that is there only once it is complete; also of any size on a store.

    A local file grows where it is, which the folder around it hides until then.
    """

    def __init__(self, where: Place):
        self.name, self._local = str(where), isinstance(where, Path)
        if isinstance(where, Path):
            self._file: BinaryIO = where.open("wb")
        else:
            self._file = where.fs.open(where.path, "wb", block_size=BLOCK_BYTES, autocommit=False)

    def write(self, content: bytes | memoryview) -> int:
        """Adds ``content`` behind what was written."""
        if self._local:
            return self._file.write(content)
        view = memoryview(content).cast("B")
        for start in range(0, len(view), BLOCK_BYTES):
            self._file.write(view[start : start + BLOCK_BYTES])
        return len(view)

    def tell(self) -> int:
        """The bytes written so far."""
        return self._file.tell()

    def close(self) -> None:
        """Completes the file."""
        self._file.close()
        if not self._local:
            self._file.commit()

    def discard(self) -> None:
        """Gives the file up; on a store there never was one."""
        with suppress(*store_errors()):  # the buffered rest may not fit on the disk
            if self._local:
                self._file.close()
            else:
                self._file.discard()
                if isinstance(self._file, AbstractBufferedFile):
                    self._file.closed = True  # else it begins the upload again when it is collected


def copy_file(source: Place, target: Place) -> None:
    """Copies a file, from and to this machine or a store; the folder of ``target`` is made if need be."""
    if isinstance(target, Path):
        target.parent.mkdir(parents=True, exist_ok=True)
    written = NewFile(target)
    try:
        with source.open("rb") as content:
            while block := content.read(PART_BYTES):
                written.write(block)
    except BaseException:
        written.discard()
        raise
    written.close()
