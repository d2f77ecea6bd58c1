"""Sources of records: one small interface and the formats behind it (SOURCES.md)."""

import difflib
import os
from collections.abc import Callable
from functools import partial

from lumina_jax.data.sources import files
from lumina_jax.data.sources.adapters import mini_gemini, openhermes, pair
from lumina_jax.data.sources.folder import open_folder
from lumina_jax.data.sources.json_list import JsonSource
from lumina_jax.data.sources.options import choice, has_suffix, parse, read, split_at
from lumina_jax.data.sources.record import Record, Source, StoredSource
from lumina_jax.data.sources.table import TableSource
from lumina_jax.data.sources.token_record import TokenSource
from lumina_jax.data.sources.webdataset import WebDatasetSource
from lumina_jax.errors import InputError

__all__ = ["JsonSource", "Record", "Source", "TokenSource", "open_records", "open_source"]

LIST_SUFFIXES = (".json", ".jsonl", ".ndjson")
TABLE_SUFFIXES = (".csv", ".tsv")
OMNI = ("magicbrush", "seed-edit", "vkitti2", "sintel", "nyuv2", "scannet", "coco-pose", "oneformer", "refcoco")
PAIR_OPTIONS = {"images": "", "quoted": ""}
QUOTED = {"": None, "yes": True, "no": False}


def open_records(spec: str) -> Source:
    """:func:`open_source` for what needs words and pictures; InputError for a source of ready tokens, which has none."""
    source = open_source(spec)
    if isinstance(source, TokenSource):
        raise InputError(f"{spec} holds ready tokens, no words and pictures; run.py pretokenize reads it")
    return source


def open_source(spec: str) -> Source | TokenSource:
    """The source that ``spec`` names; SOURCES.md lists the kinds. Files may be local, on gs://, or on http(s)://.

    What exists under a name is never taken for syntax: not the colon in the name of a file, not the @ in that of a folder. Raises
    InputError for an unknown kind, MissingFileError when a file is missing, MissingPackageError naming the package that a URL
    needs.
    """
    kind, _, rest = spec.partition(":")
    if kind in KINDS and not rest.startswith("//") and not os.path.isfile(spec):
        if not rest:
            raise InputError(f"{spec} names no file or folder; give its path behind the colon, as {kind}:PATH")
        return KINDS[kind](rest)
    if has_suffix(spec, LIST_SUFFIXES):
        return JsonSource(spec)
    if has_suffix(spec, TABLE_SUFFIXES):
        return TableSource(spec)
    if os.path.isdir(spec):
        raise InputError(f"{spec} is a folder; name its format: folder:{spec}, or {_kinds()}")
    suffixes = ", ".join(LIST_SUFFIXES + TABLE_SUFFIXES)
    near = difflib.get_close_matches(kind.lower(), KINDS, 1) if rest else []
    guess = f"did you mean {near[0]}:{rest}? Else " if near else ""
    raise InputError(f"{spec} is no known kind of source; {guess}give a file {suffixes}, or {_kinds()}")


def _kinds() -> str:
    return ", ".join(f"{kind}:..." for kind in KINDS)


def _with_images(rest: str) -> tuple[str, str | None]:
    """``FILE@IMAGES`` -> (FILE, IMAGES), or (FILE, None). What ends like a file of records is likelier to be FILE."""
    known = LIST_SUFFIXES + TABLE_SUFFIXES
    file, images = split_at(rest, lambda path, images: images and (has_suffix(path, known) or os.path.exists(path)))
    return (file, images) if images or has_suffix(rest, known) else split_at(rest, lambda _, images: images)


def _pairs(rest: str) -> StoredSource:
    path, images = _with_images(rest)
    options = PAIR_OPTIONS | {"images": images or ""}
    if images and images.startswith(tuple(f"{name}=" for name in PAIR_OPTIONS)) and not os.path.exists(images):
        options = PAIR_OPTIONS | read(images, PAIR_OPTIONS)
    quoted = QUOTED[choice(options["quoted"], "quoted", tuple(QUOTED))]
    if has_suffix(path, TABLE_SUFFIXES):
        return TableSource(path, options["images"] or None, quoted=quoted)
    if quoted is not None:
        raise InputError(f"pairs:{rest}: quoted= is about .csv and .tsv files; leave it out")
    return JsonSource(path, options["images"] or None, pair)


def _mini_gemini(rest: str) -> StoredSource:
    path, images = _with_images(rest)
    if images is None:
        raise InputError(f"mini-gemini:{rest}: name the folder of its images: mini-gemini:FILE@IMAGES")
    return JsonSource(path, images, mini_gemini)


def _tfds(rest: str) -> StoredSource:
    from lumina_jax.data.sources.tfds_set import TfdsSource  # a second of imports

    name, _, data_dir = rest.partition("@")
    return TfdsSource(name, data_dir or None)


def _webdataset(rest: str) -> StoredSource:
    return WebDatasetSource(*split_at(rest, lambda _, suffix: suffix.endswith(".npz")))


def _parquet(rest: str) -> StoredSource:
    from lumina_jax.data.sources.parquet import ParquetSource  # half a second of imports

    pattern, columns = parse(rest, {"image": "", "text": ""})
    return ParquetSource(files.expand(pattern), columns["image"] or None, columns["text"] or None)


def _omni(name: str, rest: str) -> StoredSource:
    from lumina_jax.data.omni import SETS  # imports this package

    return SETS[name](rest)


def _lumina_tokens(rest: str) -> TokenSource:
    from lumina_jax.data.sources.lumina_tokens import open_lumina_tokens  # reads YAML, which few need

    return open_lumina_tokens(rest)


KINDS: dict[str, Callable[[str], StoredSource | TokenSource]] = {
    "folder": open_folder,
    "tfds": _tfds,
    "webdataset": _webdataset,
    "parquet": _parquet,
    "pairs": _pairs,
    "openhermes": lambda rest: JsonSource(rest, adapt=openhermes),
    "mini-gemini": _mini_gemini,
    "lumina-tokens": _lumina_tokens,
    **{name: partial(_omni, name) for name in OMNI},
}
