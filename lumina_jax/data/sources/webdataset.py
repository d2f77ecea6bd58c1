"""WebDataset: samples in tar shards, indexed once by the tar headers, then read by number without unpacking."""

import hashlib
import io
import json
import posixpath
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lumina_jax.data.sources import files
from lumina_jax.data.sources.adapters import PAIR_CAPTIONS, dialogue, pair
from lumina_jax.data.sources.images import SUFFIXES, ImageFile
from lumina_jax.data.sources.record import StoredRecord, StoredSource, checked_object, stored_record
from lumina_jax.errors import InputError, prefixed_errors
from lumina_jax.progress import ProgressDisplay
from lumina_jax.storage import atomic_write

BLOCK = tarfile.BLOCKSIZE
TEXTS = ("txt", "caption", "text")
COMPRESSED = (".gz", ".tgz", ".bz2", ".xz", ".zst")


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
        except (ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise InputError(f"{path} is no index of tar shards: {error}; delete it, and it is made again") from error

    def save(self, path: Path) -> None:
        with atomic_write(path) as temporary, open(temporary, "wb") as file:
            np.savez(file, **vars(self))


class WebDatasetSource(StoredSource):
    """The samples of the tar shards that match ``pattern`` (see files.expand), in the order they are stored.

    Consecutive members whose paths are equal up to the first dot of the file name are one sample: one or more images, and a
    caption (.txt, .caption, .text, or in .json) or, in .json, ``conversations`` in Lumina's or LLaVA's form. A sample takes 20
    bytes of memory. ``index`` is an .npz file that keeps the index of the shards while their names and sizes stay the same.

    Raises MissingFileError when there are no shards, InputError when one is compressed. Of a truncated or damaged shard the
    samples before the damage are kept, and one bad record stands for the rest.
    """

    def __init__(self, pattern: str, index: str | None = None):
        self.paths = files.expand(pattern)
        if compressed := [path for path in self.paths if path.endswith(COMPRESSED)]:
            raise InputError(f"{compressed[0]} is compressed, so its samples cannot be read alone; unpack it to a .tar")
        sizes = [files.size(path) for path in self.paths]
        made_of = "\n".join(f"{posixpath.basename(path)} {size}" for path, size in zip(self.paths, sizes, strict=True))
        tar_index = TarIndex.load(Path(index)) if index and Path(index).is_file() else None
        if tar_index is None or tar_index.made_of != made_of:
            tar_index = _index(self.paths, sizes, made_of)
            if index:
                tar_index.save(Path(index))
        self._index, self.fingerprint = tar_index, tar_index.fingerprint

    def __len__(self) -> int:
        return len(self._index.starts)

    def stored(self, index: int) -> StoredRecord:
        shard, start = self.paths[self._index.shards[index]], int(self._index.starts[index])
        with prefixed_errors(f"{shard}, byte {start}", ValueError, tarfile.TarError):
            members = read_members(files.read(shard, start, int(self._index.stops[index])))
        with prefixed_errors(f"{shard}/{sample_key(next(iter(members), str(start)))}"):
            images = [ImageFile(f"{shard}/{path}", content) for path, content in members.items() if _is_image(path)]
            return stored_record(_item(members) | {"image": images or None}, lambda image: image)


def sample_key(name: str) -> str:
    """The part of the path that all members of a sample share: up to the first dot of the file name."""
    folder, _, base = name.rpartition("/")
    return posixpath.join(folder, base.partition(".")[0])


def read_members(content: bytes) -> dict[str, bytes]:
    """Name -> content of the files in a byte range of a tar shard."""
    with tarfile.open(fileobj=io.BytesIO(content), mode="r:") as tar:
        return {member.name: tar.extractfile(member).read() for member in tar if member.isfile()}


def _item(members: dict[str, bytes]) -> dict:
    """The record of a sample in Lumina's form, without its images."""
    texts = {name.lower().rpartition(".")[2]: content for name, content in members.items() if not _is_image(name)}
    item = checked_object(json.loads(texts["json"]) if "json" in texts else {}, "its .json holds")
    if "conversations" in item:
        return dialogue({"conversations": item["conversations"], "image": any(map(_is_image, members))})
    caption = next((texts[suffix] for suffix in TEXTS if suffix in texts), None)
    if caption is not None:
        return {"caption": caption.decode("utf-8-sig").strip()}
    if not any(str(name).lower() in PAIR_CAPTIONS for name in item):
        raise InputError(f"no caption: the sample holds {', '.join(members)}")
    return pair(item)


def _is_image(name: str) -> bool:
    return name.lower().endswith(SUFFIXES)


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

    A damaged shard has one more span at the damage; reading it fails, so that the loss is listed as a bad record.
    """
    key, start, stop, end = None, 0, 0, 0
    for member in _members(path):
        end = min(member.offset_data + -(-member.size // BLOCK) * BLOCK, size)
        if not member.isfile():
            continue
        note(f"{member.name}\0{member.size}\0{member.mtime}\0".encode(errors="surrogateescape"))
        if sample_key(member.name) != key:
            if key is not None:
                yield start, stop
            key, start = sample_key(member.name), member.offset
        stop = end
    if key is not None:
        yield start, stop
    # After the last member only zero padding may follow.
    if size == 0 or (end < size and files.read(path, end, min(end + BLOCK, size)).strip(b"\0")):
        yield end, min(end + BLOCK, size)


def _members(path: str) -> Iterator[tarfile.TarInfo]:
    """The members of a shard, up to its end or to the damage."""
    try:
        with files.open_binary(path) as file, tarfile.open(fileobj=file, mode="r:") as tar:
            while (member := tar.next()) is not None:
                tar.members = []  # else tarfile keeps every header in memory
                yield member
    except tarfile.TarError:
        return
