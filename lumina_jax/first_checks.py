"""The first questions to a place, before any work: is there anything to read, may be written, is there room.

A store answers them within seconds or counts as out of reach. Its client would try again for half a minute without a word, and
look for credentials as long: right for a run at work, wrong for an address with a slip in it.
"""

import secrets
import shutil
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from upath import UPath

from lumina_jax.errors import InputError, MissingFileError, StorageError
from lumina_jax.places import WEB, Place, named_errors, place, store_errors

FIRST_SECONDS = 10.0
"""How long the first answer of a store may take, all attempts of its client and its search for credentials together."""


def check_readable(address: str | Place) -> None:
    """Raises MissingFileError where neither file nor folder is at a URL, StorageError where its store refuses to say, or says
    nothing within FIRST_SECONDS."""
    where = place(address)
    if not isinstance(where, Path):
        with named_errors(where):
            _answered(where, lambda: where.fs.info(where.path))


def check_writable(address: str | Place) -> None:
    """Raises StorageError where a store does not let a file be written below the URL ``address`` or says nothing within
    FIRST_SECONDS, MissingFileError where its bucket is not there, InputError for an address of the web.

    A small file is written there and removed again: permissions can be learned in no other way that all stores have.
    """
    where = place(address)
    if isinstance(where, Path):
        return
    if where.protocol in WEB:
        raise InputError(
            f"{address} is an address of the web, where nothing can be written; give gs://, s3:// or a path"
        )
    probe = where / f".probe-{secrets.token_hex(4)}"

    def write() -> None:
        probe.fs.pipe_file(probe.path, b"lumina_jax")
        with suppress(*store_errors()):  # who may write need not be allowed to remove
            probe.fs.rm_file(probe.path)

    with named_errors(where):
        try:
            _answered(where, write)
        except FileNotFoundError as error:
            raise MissingFileError(
                f"{where} cannot be written: its bucket is not there; make it, or correct it"
            ) from error


def check_space(address: str | Place, needed: int) -> None:
    """Raises StorageError where the local disk of ``address`` has less than ``needed`` bytes free; stores have no limit."""
    where = place(address)
    if not isinstance(where, Path):
        return
    existing = next(folder for folder in (where.absolute(), *where.absolute().parents) if folder.exists())
    if (free := shutil.disk_usage(existing).free) < needed:
        unit, size = ("GB", 1e9) if needed >= 1e8 else ("MB", 1e6)
        sizes = f"{free / size:,.1f} {unit} free, but {needed / size:,.1f} {unit} will be written"
        raise StorageError(f"{address} has {sizes}; free space or choose another disk")


def _answered(where: UPath, ask: Callable[[], object]) -> None:
    """Calls ``ask`` and raises what it raises; StorageError when it takes more than FIRST_SECONDS, and is left to itself."""
    raised: list[BaseException] = []

    def call() -> None:
        try:
            ask()
        except BaseException as error:  # raised again below, where somebody waits for it
            raised.append(error)

    asking = threading.Thread(target=call, daemon=True)
    asking.start()
    asking.join(FIRST_SECONDS)
    if asking.is_alive():
        raise StorageError(
            f"{where}: its store did not answer within {FIRST_SECONDS:.0f} s; check the address, the network and the credentials"
        ) from TimeoutError(f"{FIRST_SECONDS:.0f} s")
    if raised:
        raise raised[0]
