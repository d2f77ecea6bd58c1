"""WebDataset: samples in tar shards, found once by their headers, then read by number without unpacking."""

import hashlib
import io
import json
import posixpath
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lumina_jax.data.sources import files
from lumina_jax.data.sources.adapters import PAIR_CAPTIONS, dialogue, pair
from lumina_jax.data.sources.images import SUFFIXES, ImageFile
from lumina_jax.data.sources.record import StoredRecord, StoredSource, stored_record
from lumina_jax.errors import InputError
from lumina_jax.progress import ProgressDisplay
from lumina_jax.storage import atomic_write

BLOCK = tarfile.BLOCKSIZE
TEXTS = ("txt", "caption", "text")
COMPRESSED = (".gz", ".tgz", ".bz2", ".xz", ".zst")


@dataclass(frozen=True)
class TarIndex:
    """Where the samples lie: bytes ``starts`` to ``stops`` (i64[n]) of shard number ``shards`` (i32[n])."""

    shards: np.ndarray
    starts: np.ndarray
    stops: np.ndarray
    fingerprint: str
    made_of: str
    """The names and sizes of the shards."""

    @classmethod
    def load(cls, path: Path) -> "TarIndex":
        with np.load(path, allow_pickle=False) as held:
            return cls(held["shards"], held["starts"], held["stops"], str(held["fingerprint"]), str(held["made_of"]))

    def save(self, path: Path) -> None:
        with atomic_write(path) as temporary, open(temporary, "wb") as file:
            np.savez(file, **vars(self))


class WebDatasetSource(StoredSource):
    """Samples of the tar shards that ``pattern`` stands for (see files.expand), in the order they are stored.

    Members that follow each other with the same path up to the first dot of the file's name are one sample: one or more
    images, and a caption (.txt, .caption, .text, or in .json) or, in .json, ``conversations`` in Lumina's or LLaVA's form.
    In memory a sample is 20 bytes. ``index`` names an .npz file that keeps what the headers told; while the shards keep
    names and sizes they are not scanned again.

    Raises FileNotFoundError when there are no shards, ValueError when one is compressed. Where a shard is cut short or
    damaged, what lies before is kept and one bad record tells of the rest.
    """

    def __init__(self, pattern: str, index: str | None = None, progress: bool = True):
        self.places = files.expand(pattern)
        if packed := [place for place in self.places if place.endswith(COMPRESSED)]:
            raise InputError(
                f"{packed[0]} is compressed, so no sample of it can be read alone; unpack it to a plain .tar"
            )
        sizes = [files.size(place) for place in self.places]
        made_of = "\n".join(
            f"{posixpath.basename(place)} {size}" for place, size in zip(self.places, sizes, strict=True)
        )
        held = TarIndex.load(Path(index)) if index and Path(index).is_file() else None
        if held is None or held.made_of != made_of:
            held = _index(self.places, sizes, made_of, progress)
            if index:
                held.save(Path(index))
        self._index, self.fingerprint = held, held.fingerprint

    def __len__(self) -> int:
        return len(self._index.starts)

    def stored(self, index: int) -> StoredRecord:
        place, start = self.places[self._index.shards[index]], int(self._index.starts[index])
        name = f"{place}, byte {start}"
        try:
            members = read_members(files.read(place, start, int(self._index.stops[index])))
            name = f"{place}/{sample_key(next(iter(members), str(start)))}"
            images = [ImageFile(f"{place}/{path}", content) for path, content in members.items() if _is_image(path)]
            return stored_record(_item(members) | {"image": images or None}, _as_file)
        except (ValueError, tarfile.TarError) as error:
            raise InputError(f"{name}: {error}") from error


def sample_key(name: str) -> str:
    """What the members of one sample have in common: the path up to the first dot of the file's name."""
    folder, _, base = name.rpartition("/")
    return posixpath.join(folder, base.partition(".")[0])


def read_members(content: bytes) -> dict[str, bytes]:
    """Name -> content of the files in a piece of a tar shard."""
    with tarfile.open(fileobj=io.BytesIO(content), mode="r:") as tar:
        return {member.name: tar.extractfile(member).read() for member in tar if member.isfile()}


def _item(members: dict[str, bytes]) -> dict:
    """The texts of a sample in Lumina's form."""
    texts = {name.lower().rpartition(".")[2]: content for name, content in members.items() if not _is_image(name)}
    held = json.loads(texts["json"]) if "json" in texts else {}
    if not isinstance(held, dict):
        raise InputError(f"its .json holds a JSON {type(held).__name__}, not an object")
    if "conversations" in held:
        return dialogue({"conversations": held["conversations"], "image": any(map(_is_image, members))})
    beside = next((texts[suffix] for suffix in TEXTS if suffix in texts), None)
    if beside is not None:
        return {"caption": beside.decode("utf-8-sig").strip()}
    if not any(str(name).lower() in PAIR_CAPTIONS for name in held):
        raise InputError(f"no caption: the sample holds {', '.join(members)}")
    return pair(held)


def _is_image(name: str) -> bool:
    return name.lower().endswith(SUFFIXES)


def _as_file(image: object) -> ImageFile:
    return image


def _index(places: list[str], sizes: list[int], made_of: str, progress: bool) -> TarIndex:
    digest, shards, spans = hashlib.sha256(), [], []
    with ProgressDisplay("index", sum(sizes), progress, "MB", 10**6) as meter:
        for number, (place, size) in enumerate(zip(places, sizes, strict=True)):
            found = np.fromiter(_samples(place, size, digest.update), np.dtype((np.int64, 2)))
            spans.append(found)
            shards.append(np.full(len(found), number, np.int32))
            meter.advance(size)
    starts, stops = np.concatenate(spans).T.copy()
    return TarIndex(np.concatenate(shards), starts, stops, digest.hexdigest()[:16], made_of)


def _samples(place: str, size: int, note: Callable[[bytes], object]) -> Iterator[tuple[int, int]]:
    """The byte spans of a shard's samples; ``note`` is told every name, size and time.

    Where the shard is damaged stands one span more, whose reading fails: the loss is listed, what lies before it is kept.
    """
    key, start, stop, end = None, 0, 0, 0
    for member in _members(place):
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
    # Padding is all there may be behind the last member.
    if size == 0 or (end < size and files.read(place, end, min(end + BLOCK, size)).strip(b"\0")):
        yield end, min(end + BLOCK, size)


def _members(place: str) -> Iterator[tarfile.TarInfo]:
    """What a shard holds, up to its end or to where it is damaged."""
    try:
        with files.open_binary(place) as file, tarfile.open(fileobj=file, mode="r:") as tar:
            while (member := tar.next()) is not None:
                tar.members = []  # else tarfile holds every header it has seen
                yield member
    except tarfile.TarError:
        return
