"""Checksums of the files of a checkpoint for PyTorch: of those that are written here, and those that a download recorded.

safetensors have none of their own. An export writes ``checksums.json`` beside them, the ``hf download`` of Hugging Face notes the
SHA-256 of each large file in the folder's ``.cache``, and its cache names contents by it. All are compared before weights are
imported and by ``inspect --deep``; those of an export also before it is sampled from.
"""

import hashlib
import json
import os
import re
import zlib
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from lumina_jax.errors import InputError
from lumina_jax.places import Place

SUMS = "checksums.json"
"""File name -> its size in bytes and the CRC-32 of its content."""
DOWNLOADS = ".cache/huggingface/download"
"""Where a download notes the commit, the SHA-256 and the time of each file, a line each."""
SHA256_DIGITS = 64
BLOCK = 1 << 24
"""Bytes read at once."""
READERS = 4
"""Files read at once."""


class FileSum(NamedTuple):
    """What is known of a file: its ``size`` in bytes (-1: unknown), and its CRC-32 or SHA-256 as hex digits."""

    size: int
    digest: str


def known_sums(folder: Place) -> dict[str, FileSum]:
    """{name of a file in ``folder``: what was recorded of it}; empty where nothing was. Raises InputError for damaged records."""
    if (file := folder / SUMS).is_file():
        try:
            return {
                name: FileSum(int(size), str(digest)) for name, (size, digest) in json.loads(file.read_text()).items()
            }
        except (ValueError, TypeError, AttributeError) as error:
            raise InputError(
                f"{file} is damaged ({error}); copy it again, or delete it if nothing is to be compared"
            ) from None
    sums = {}
    for note in sorted((folder / DOWNLOADS).glob("*.metadata")):
        lines = note.read_text().splitlines()
        name = note.name.removesuffix(".metadata")
        if len(lines) > 1 and len(lines[1]) == SHA256_DIGITS and (folder / name).is_file():
            sums[name] = FileSum(-1, lines[1])
    return sums or _sums_of_links(folder)


def _sums_of_links(folder: Place) -> dict[str, FileSum]:
    """Of a snapshot in the hub's cache: its large files are links to contents that are named by their SHA-256."""
    if not isinstance(folder, Path) or not folder.is_dir():
        return {}
    targets = {file.name: Path(os.readlink(file)).name for file in sorted(folder.iterdir()) if file.is_symlink()}
    return {name: FileSum(-1, digest) for name, digest in targets.items() if re.fullmatch("[0-9a-f]{64}", digest)}


def damaged_files(
    folder: Place, sums: Mapping[str, FileSum], advance: Callable[[int], object] = lambda count: None
) -> list[str]:
    """What is wrong with the files of ``sums`` in ``folder``, a line for each damaged one; reads all of them.

    Calls ``advance`` with the number of bytes of each block.
    """
    with ThreadPoolExecutor(READERS) as pool:
        found = pool.map(lambda name: _damage(folder / name, sums[name], advance), sums)
        return [reason for reason in found if reason]


def _damage(file: Place, expected: FileSum, advance: Callable[[int], object]) -> str:
    cure = f"download or copy it again from where it is whole, or delete {SUMS} if it was changed on purpose"
    if not file.is_file():
        return f"{file} is missing; {cure}"
    if expected.size not in (-1, size := file.stat().st_size):
        return f"{file} has {size:,} bytes, but {expected.size:,} were written; {cure}"
    sha, crc = hashlib.sha256(), 0
    with file.open("rb") as stream:
        while block := stream.read(BLOCK):
            if len(expected.digest) == SHA256_DIGITS:
                sha.update(block)
            else:
                crc = zlib.crc32(block, crc)
            advance(len(block))
    digest = sha.hexdigest() if len(expected.digest) == SHA256_DIGITS else f"{crc:08x}"
    return "" if digest == expected.digest else f"{file} is damaged: its bytes are not those that were written; {cure}"


def check_files(folder: Place, process: int = 0, processes: int = 1) -> None:
    """Reads the files of ``folder`` whose checksums are known, process ``process`` of ``processes`` its share of them.

    Raises InputError naming what is damaged.
    """
    sums = known_sums(folder)
    share = dict(sorted(sums.items())[process::processes])
    if damaged := damaged_files(folder, share):
        raise InputError("; ".join(damaged))


def check_written(folder: Place, process: int = 0, processes: int = 1) -> None:
    """:func:`check_files` of what an export wrote into ``folder``; a download compared by itself what it noted."""
    if (folder / SUMS).is_file():
        check_files(folder, process, processes)


def write_share(folder: Place, sums: Mapping[str, FileSum], process: int) -> None:
    """Writes what process ``process`` knows of the files that it wrote, for :func:`join_shares`."""
    (folder / f"{SUMS}.{process}").write_text(json.dumps(sums))


def join_shares(folder: Place, processes: int) -> None:
    """Makes ``checksums.json`` of the shares of all processes, which have written theirs."""
    shares = [folder / f"{SUMS}.{process}" for process in range(processes)]
    sums = {name: value for share in shares for name, value in json.loads(share.read_text()).items()}
    (folder / SUMS).write_text(json.dumps(sums, indent=1) + "\n")
    for share in shares:
        share.unlink()
