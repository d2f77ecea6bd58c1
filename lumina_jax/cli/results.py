"""Folders of results: what an earlier run left in one is never overwritten."""

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from lumina_jax.errors import ExistingFileError


def results_folder(given: str | None, default: str, check_free: Callable[[Path], None], resume: bool = False) -> Path:
    """The folder ``given``, else ``default``, ``default``-2, ``default``-3 ...: the first that holds no results, or with ``resume``
    the last that exists.

    ``check_free`` raises ExistingFileError for a folder that holds results; so does this for ``given`` without ``resume``.
    """
    if given is not None:
        if not resume:
            check_free(Path(given))
        return Path(given)
    folder = Path(default)
    for number in itertools.count(2):
        following = Path(f"{default}-{number}")
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
def claimed(file: Path) -> Iterator[None]:
    """Makes ``file``, so that no other run takes its folder; it is removed again if nothing was written into it.

    Raises ExistingFileError when another run has made it.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    try:
        file.touch(exist_ok=False)
    except FileExistsError as error:
        raise ExistingFileError(f"{file}: another run has begun to write it; give another --out") from error
    try:
        yield
    finally:
        if file.is_file() and file.stat().st_size == 0:
            file.unlink()
