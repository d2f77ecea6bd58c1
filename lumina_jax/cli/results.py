"""Folders of results: what an earlier run left in one is never overwritten."""

import itertools
import json
import secrets
from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from lumina_jax.cli.arguments import at
from lumina_jax.errors import ExistingFileError

NOT_OF_THE_COMMAND = ("run", "keeps", "out", "compile_cache", "no_cache")


def command_of(options: Namespace) -> str:
    """The command that ``options`` come from, without its --out: what names the writer of a file (storage.claim)."""
    return json.dumps({name: value for name, value in vars(options).items() if name not in NOT_OF_THE_COMMAND})


def results_folder(given: str | None, default: str, check_free: Callable, resume: bool = False):
    """The folder or file ``given``, else ``default``, ``default``-2, ``default``-3 ...: the first that holds no results, or with
    ``resume`` the last that exists.

    ``check_free`` raises ExistingFileError for a folder that holds results; so does this for ``given`` without ``resume``.
    """
    if given is not None:
        if not resume:
            check_free(at(given))
        return at(given)
    folder = Path(default)
    for number in itertools.count(2):
        following = Path(default).with_stem(f"{Path(default).stem}-{number}")
        if resume and not following.is_dir():
            return folder
        if not resume:
            try:
                check_free(folder)
                return folder
            except ExistingFileError:
                pass
        folder = following


@contextmanager
def claimed(file) -> Iterator[None]:
    """Makes ``file``, so that no other run takes its folder; it is removed again if nothing was written into it.

    Raises ExistingFileError when another run has made it. On a store it holds a word of this run until results replace it: a client
    whose answer was lost asks again, and then meets the file that it made itself.
    """
    word = b"" if isinstance(file, Path) else secrets.token_hex(8).encode()
    try:
        if isinstance(file, Path):
            file.parent.mkdir(parents=True, exist_ok=True)
            file.touch(exist_ok=False)
        else:
            file.fs.pipe_file(file.path, word, mode="create")
    except FileExistsError as error:
        if not word or file.read_bytes() != word:
            raise ExistingFileError(f"{file}: another run has begun to write it; give another --out") from error
    try:
        yield
    finally:
        if file.is_file() and file.stat().st_size == len(word) and file.read_bytes() == word:
            file.unlink()
