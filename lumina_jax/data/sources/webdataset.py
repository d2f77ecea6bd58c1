"""WebDataset: samples in tar shards, indexed once by the tar headers, then read by number without unpacking."""

import hashlib
import io
import posixpath
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import BinaryIO

import numpy as np

from lumina_jax.data.sources import files
from lumina_jax.data.sources.adapters import PAIR_CAPTIONS, dialogue, pair
from lumina_jax.data.sources.images import ImageFile
from lumina_jax.data.sources.lru import LRUCache
from lumina_jax.data.sources.names import is_litter, is_picture
from lumina_jax.data.sources.record import StoredRecord, StoredSource, checked_object, stored_record
from lumina_jax.errors import InputError, prefixed_errors
from lumina_jax.progress import ProgressDisplay
from lumina_jax.storage import atomic_write
from lumina_jax.text import decode_text, parse_json

TEXTS = ("txt", "caption", "text")
COMPRESSED = (".gz", ".tgz", ".bz2", ".xz", ".zst")
RULE = 2
"""Of what is a sample; raise it when another set of members is, so that kept indexes are made again."""
MAX_LINKS = 16
"""Links of links that are followed."""
LINKED_SHARDS = 2
"""Shards whose names stay in memory, if they hold links."""
DAMAGED = (tarfile.TarError, ValueError, ArithmeticError, LookupError, MemoryError, EOFError)
"""What tarfile raises for bytes that are no archive."""


@dataclass(frozen=True)
class TarIndex:
    """Where the samples are: bytes ``starts`` to ``stops`` (i64[n]) of shard number ``shards`` (i32[n])."""

    shards: np.ndarray
    starts: np.ndarray
    stops: np.ndarray
    fingerprint: str
    made_of: str
    """The names and sizes of the shards that were indexed."""

    @classmethod
    def load(cls, path: Path) -> "TarIndex":
        """Raises InputError when the file is no index."""
        try:
            with np.load(path, allow_pickle=False) as arrays:
                texts = (str(arrays[name]) for name in ("fingerprint", "made_of"))
                return cls(arrays["shards"], arrays["starts"], arrays["stops"], *texts)
        except (ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            raise InputError(f"{path} is no index of tar shards: {error}; delete it, and it is made again") from error

    def save(self, path: Path) -> None:
        with atomic_write(path) as temporary, open(temporary, "wb") as file:
            np.savez(file, **vars(self))


class WebDatasetSource(StoredSource):
    """The samples of the tar shards that match ``pattern`` (see files.expand), in the order they are stored.

    Consecutive members whose paths are equal up to the first dot of the file name are one sample (exceptions: see
    :func:`sample_starts`): one or more images, and a caption (.txt, .caption, .text, or in .json) or, in .json,
    ``conversations`` in Lumina's or LLaVA's form. Links to files of the same shard are followed. Folders, files that begin with
    a dot and what systems leave (names.is_litter) are no samples. A sample takes 20 bytes of memory. ``index`` is an .npz file
    that keeps the index of the shards while their names and sizes stay the same.

    Raises MissingFileError when there are no shards, InputError when one is compressed. Of a truncated or damaged shard the
    samples before the damage are kept, and one bad record stands for the rest.
    """

    def __init__(self, pattern: str, index: str | None = None):
        self.paths = files.expand(pattern)
        if compressed := [path for path in self.paths if path.lower().endswith(COMPRESSED)]:
            raise InputError(f"{compressed[0]} is compressed, so its samples cannot be read alone; unpack it to a .tar")
        sizes = [files.size(path) for path in self.paths]
        names = [f"{posixpath.basename(path)} {size}" for path, size in zip(self.paths, sizes, strict=True)]
        made_of = "\n".join([f"rule {RULE}", *names])
        tar_index = TarIndex.load(Path(index)) if index and Path(index).is_file() else None
        if tar_index is None or tar_index.made_of != made_of:
            tar_index = _index(self.paths, sizes, made_of)
            if index:
                tar_index.save(Path(index))
        self._index, self.fingerprint = tar_index, tar_index.fingerprint
        self._names: LRUCache[dict[str, tuple[tarfile.TarInfo, int]]] = LRUCache(LINKED_SHARDS)

    def __len__(self) -> int:
        return len(self._index.starts)

    def stored(self, index: int) -> StoredRecord:
        shard = self.paths[self._index.shards[index]]
        start, stop = int(self._index.starts[index]), int(self._index.stops[index])
        with prefixed_errors(f"{shard}, byte {start}", *DAMAGED):
            content = files.read(shard, start, stop) if start < stop else b""
            if len(content) < max(stop - start, 1):
                raise InputError(
                    "the archive breaks off here: it is damaged, cut short or compressed, and the samples behind are lost; "
                    "download or make it again",
                    cause="damaged shard",
                )
            members = {
                member.name: self._linked(shard, member) if data is None else data
                for member, data in _read_members(content)
                if not is_junk(member.name)
            }
        with prefixed_errors(f"{shard}/{sample_key(next(iter(members), str(start)))}"):
            images = [ImageFile(f"{shard}/{name}", data) for name, data in members.items() if is_picture(name)]
            return stored_record(_item(members, bool(images)) | {"image": images or None}, lambda image: image)

    def _linked(self, shard: str, link: tarfile.TarInfo) -> bytes:
        """The content of the file in ``shard`` that ``link`` leads to."""
        names = self._names.get(shard, lambda: _names(shard))
        target = link
        for _ in range(MAX_LINKS):
            folder = "" if target.islnk() else posixpath.dirname(target.name)
            target, stop = names.get(posixpath.normpath(posixpath.join(folder, target.linkname)), (None, 0))
            if target is None:
                break
            if target.isreg():
                ((_, data),) = _read_members(files.read(shard, target.offset, stop))
                return data
        raise InputError(
            f"{link.name} is a link to {link.linkname}, which leads to no file of the shard; pack it with tar --dereference",
            cause="a link to no file",
        )


def sample_key(name: str) -> str:
    """The part of the path that all members of a sample share: up to the first dot of the file name."""
    folder, _, base = name.rpartition("/")
    return posixpath.join(folder, base.partition(".")[0])


def is_junk(name: str) -> bool:
    """Whether a member belongs to no sample: it has no key, as its name begins with a dot, or a system left it there."""
    return posixpath.basename(name).startswith(".") or is_litter(name)


def sample_starts(names: Sequence[str], key: str) -> list[int]:
    """The numbers at which the samples of consecutive members ``names``, all with one ``key``, begin.

    A member whose suffix the sample already has begins another (0.jpg, 0.txt, 0.jpg, 0.txt are two samples), and, where pairs are
    called by names with dots (a.1.jpg, a.1.txt, a.2.jpg, a.2.txt), so does another name up to the last dot.
    """
    starts, suffixes, dotted = [], set(), _are_dotted_pairs(names, key)
    for number, name in enumerate(names):
        suffix = name[len(key) :].lower()
        if not number or suffix in suffixes or (dotted and _stem(name) != _stem(names[number - 1])):
            starts.append(number)
            suffixes = set()
        suffixes.add(suffix)
    return starts


def _are_dotted_pairs(names: Sequence[str], key: str) -> bool:
    """Whether members of one key are records of their own that differ behind its dot, by their names up to the last dot.

    They are if a picture and a text share such a name, or if all have numbers there (a.1.txt, a.2.jpg). They are not if the key
    alone names a picture or a text, but not both: that belongs with all the others.
    """
    if not any("." in name[len(key) + 1 :] for name in names):
        return False
    kinds: dict[str, set[bool]] = {}
    for name in names:
        if is_picture(name) or _is_text(name):
            kinds.setdefault(_stem(name), set()).add(is_picture(name))
    own = kinds.pop(key, {True, False})
    numbered = all(any(letter.isdigit() for letter in stem[len(key) :]) for stem in kinds)
    pairs = any(len(kind) == 2 for kind in kinds.values()) or (numbered and len(set().union(*kinds.values())) == 2)
    return pairs and len(own) == 2


def _stem(name: str) -> str:
    return posixpath.splitext(name)[0]


def _is_text(name: str) -> bool:
    return name.lower().rpartition(".")[2] in (*TEXTS, "json")


def _read_members(content: bytes) -> Iterator[tuple[tarfile.TarInfo, bytes | None]]:
    """The files and links in a byte range of a tar shard with their content, None for links."""
    with tarfile.open(fileobj=io.BytesIO(content), mode="r:") as tar:
        for member in tar:
            if member.isreg():
                yield member, tar.extractfile(member).read()
            elif member.islnk() or member.issym():
                yield member, None


def _item(members: Mapping[str, bytes], has_images: bool) -> dict:
    """The record of a sample in Lumina's form, without its images."""
    item = parse_json(content) if (content := _text(members, "json")) is not None else {}
    if isinstance(item, Mapping) and "conversations" in item:
        return dialogue({"conversations": item["conversations"], "image": has_images})
    caption = next((content for suffix in TEXTS if (content := _text(members, suffix)) is not None), None)
    if caption is None and not any(
        str(name).lower() in PAIR_CAPTIONS for name in checked_object(item, "its .json holds")
    ):
        raise InputError(f"no caption: the sample holds {', '.join(members)}", cause="no caption")
    if not has_images:
        raise InputError(
            f"a record with a caption has one image; the sample holds {', '.join(members)}", cause="no image"
        )
    return pair(item) if caption is None else {"caption": caption.strip()}


def _text(members: Mapping[str, bytes], suffix: str) -> str | None:
    """The text of the member with ``suffix``: of KEY.suffix if it is there, else of the only KEY.NAME.suffix."""
    names = [name for name in members if name.lower().endswith(f".{suffix}")]
    names = [name for name in names if _stem(name) == sample_key(name)] or names
    if len(names) > 1:
        raise InputError(
            f"{' and '.join(names)} are texts of one sample; keep one", cause="several texts of one sample"
        )
    return decode_text(members[names[0]], names[0]) if names else None


def _index(paths: list[str], sizes: list[int], made_of: str) -> TarIndex:
    digest, shards, spans = hashlib.sha256(), [], []
    with ProgressDisplay("index", sum(sizes), unit="MB", unit_size=10**6) as meter:
        for number, (path, size) in enumerate(zip(paths, sizes, strict=True)):
            spans.append(np.fromiter(_samples(path, size, digest.update), np.dtype((np.int64, 2))))
            shards.append(np.full(len(spans[-1]), number, np.int32))
            meter.advance(size)
    starts, stops = np.concatenate(spans).T.copy()
    return TarIndex(np.concatenate(shards), starts, stops, digest.hexdigest()[:16], made_of)


def _samples(path: str, size: int, note: Callable[[bytes], object]) -> Iterator[tuple[int, int]]:
    """The byte spans of a shard's samples; ``note`` receives the name, size and time of every member.

    A damaged shard has one more span, an empty one, at the damage. A span ends behind the file when the file is cut short.
    """
    key, members = "", []
    for member, stop in _members(path, size):
        if member is None:
            yield from _spans(key, members)
            members = []
            yield stop, stop
        elif member.isreg() or member.islnk() or member.issym():
            link = "" if member.isreg() else f"{member.linkname}\0"
            note(f"{member.name}\0{member.size}\0{member.mtime}\0{link}".encode(errors="surrogateescape"))
            if is_junk(member.name):
                continue
            if (next_key := sample_key(member.name)) != key:
                yield from _spans(key, members)
                key, members = next_key, []
            members.append((member.name, member.offset, stop))
    yield from _spans(key, members)


def _spans(key: str, members: Sequence[tuple[str, int, int]]) -> Iterator[tuple[int, int]]:
    """The byte spans of the samples of consecutive members (name, start, stop) of one key."""
    starts = sample_starts([name for name, _, _ in members], key)
    for first, end in pairwise([*starts, len(members)]):
        yield members[first][1], members[end - 1][2]


def _names(path: str) -> dict[str, tuple[tarfile.TarInfo, int]]:
    """The members of a shard, with the ends of their bytes, by their names."""
    members = _members(path, files.size(path))
    return {posixpath.normpath(member.name): (member, stop) for member, stop in members if member is not None}


def _members(path: str, size: int) -> Iterator[tuple[tarfile.TarInfo | None, int]]:
    """(member, end of its bytes) of a shard; where it is damaged, or ends without an end mark, (None, that byte) is the last.

    Archives may follow one another, as ``cat`` joins them.
    """
    with files.open_binary(path) as file:
        position, marked = 0, False
        while position < size:
            begin = position
            file.seek(position)
            try:
                with tarfile.open(fileobj=file, mode="r:") as tar:
                    while (member := tar.next()) is not None and tar.offset > position:
                        tar.members = []  # else tarfile keeps every header in memory
                        position = tar.offset
                        yield member, position
            except DAMAGED:
                pass  # whatever is wrong, no member begins at the position
            if position > size:
                return
            following = _skip_zeros(file, position)
            marked = following > position
            if following == begin:
                break
            position = following
        if not marked or position < size:
            yield None, position


def _skip_zeros(file: BinaryIO, position: int) -> int:
    """The first block at or behind ``position`` that is not zero, or the end of the file."""
    file.seek(position)
    while block := file.read(files.BLOCK):
        if rest := len(block.lstrip(b"\0")):
            return (position + len(block) - rest) // tarfile.BLOCKSIZE * tarfile.BLOCKSIZE
        position += len(block)
    return position
