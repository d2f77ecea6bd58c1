"""Sources of records: one small interface and the formats behind it (SOURCES.md)."""

import os
import re
from collections.abc import Callable
from functools import partial

from lumina_jax.data.sources import files
from lumina_jax.data.sources.adapters import mini_gemini, openhermes, pair
from lumina_jax.data.sources.folder import open_folder
from lumina_jax.data.sources.json_list import JsonSource
from lumina_jax.data.sources.json_spans import index_lines
from lumina_jax.data.sources.record import Record, Source, StoredSource
from lumina_jax.data.sources.table import TableSource
from lumina_jax.data.sources.webdataset import WebDatasetSource
from lumina_jax.errors import InputError

__all__ = ["JsonSource", "Record", "Source", "index_lines", "open_source"]

LIST_SUFFIXES = (".json", ".jsonl")
TABLE_SUFFIXES = (".csv", ".tsv")
OMNI = ("magicbrush", "seed-edit", "vkitti2", "sintel", "nyuv2", "scannet", "coco-pose", "oneformer", "refcoco")
COLUMNS = re.compile(r"(image|text)=(.+?)(?:,(?!\1)(image|text)=(.+))?", re.DOTALL)


def open_source(spec: str) -> Source:
    """The source that ``spec`` names; SOURCES.md lists the kinds. Files may be local, on gs://, or on http(s)://.

    Raises InputError for an unknown kind, MissingFileError when a file is missing, MissingPackageError naming the package that a
    URL needs.
    """
    kind, _, rest = spec.partition(":")
    if kind in KINDS and rest and not rest.startswith("//"):
        return KINDS[kind](rest)
    if kind in KINDS and not rest:
        raise InputError(f"{spec} names no file or folder; give its path behind the colon, as {kind}:PATH")
    path = spec.partition("?")[0]  # a URL may carry a signature
    if path.endswith(LIST_SUFFIXES):
        return JsonSource(spec)
    if path.endswith(TABLE_SUFFIXES):
        return TableSource(spec)
    if os.path.isdir(spec):
        raise InputError(f"{spec} is a folder; name its format: folder:{spec}, or {_kinds()}")
    suffixes = ", ".join(LIST_SUFFIXES + TABLE_SUFFIXES)
    raise InputError(f"{spec} is no known kind of source; give a file {suffixes}, or {_kinds()}")


def _kinds() -> str:
    return ", ".join(f"{kind}:..." for kind in KINDS)


def _split_at(rest: str, valid: Callable[[str], object]) -> tuple[str, str | None]:
    """``PATH@SUFFIX`` -> (PATH, SUFFIX), if SUFFIX is ``valid``; else (rest, None)."""
    path, separator, suffix = rest.rpartition("@")
    return (path, suffix) if separator and path and valid(suffix) else (rest, None)


def _pairs(rest: str) -> StoredSource:
    path, images = _split_at(rest, bool)
    if path.partition("?")[0].endswith(TABLE_SUFFIXES):
        return TableSource(path, images)
    return JsonSource(path, images, pair)


def _mini_gemini(rest: str) -> StoredSource:
    path, images = _split_at(rest, bool)
    if images is None:
        raise InputError(f"mini-gemini:{rest}: name the folder of its images: mini-gemini:FILE@IMAGES")
    return JsonSource(path, images, mini_gemini)


def _tfds(rest: str) -> StoredSource:
    from lumina_jax.data.sources.tfds_set import TfdsSource  # a second of imports

    name, _, data_dir = rest.partition("@")
    return TfdsSource(name, data_dir or None)


def _webdataset(rest: str) -> StoredSource:
    pattern, index = _split_at(rest, lambda suffix: suffix.endswith(".npz"))
    return WebDatasetSource(pattern, index)


def _parquet(rest: str) -> StoredSource:
    from lumina_jax.data.sources.parquet import ParquetSource  # half a second of imports

    pattern, columns = _split_at(rest, COLUMNS.fullmatch)
    names = COLUMNS.fullmatch(columns or "")
    chosen = {names[i]: names[i + 1] for i in (1, 3) if names[i]} if names else {}
    return ParquetSource(files.expand(pattern), **chosen)


def _omni(name: str, rest: str) -> StoredSource:
    from lumina_jax.data.omni import SETS  # imports this package

    return SETS[name](rest)


KINDS: dict[str, Callable[[str], StoredSource]] = {
    "folder": open_folder,
    "tfds": _tfds,
    "webdataset": _webdataset,
    "parquet": _parquet,
    "pairs": _pairs,
    "openhermes": lambda rest: JsonSource(rest, adapt=openhermes),
    "mini-gemini": _mini_gemini,
    **{name: partial(_omni, name) for name in OMNI},
}
