"""Files of named tensors, safetensors and torch's: mapped rather than read, and written one tensor at a time.

safetensors files are read without torch. torch's own files are pickles: only their tensors are taken (weights_only), and one
that asks for anything else is refused.
"""

import itertools
import json
import math
import pickle
import re
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple, Protocol

import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open

from lumina_jax.errors import InputError, MissingFileError, MissingPackageError, StorageError

DTYPES = {
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(jnp.bfloat16),
    "F64": np.dtype(np.float64),
    **{f"{kind}{bits}": np.dtype(f"{kind.lower()}{bits // 8}") for kind in "IU" for bits in (8, 16, 32, 64)},
    "BOOL": np.dtype(bool),
}
"""safetensors' name of a dtype -> numpy's."""

ZIP_MAGIC = b"PK\x03\x04"
ALIGNMENT = 64
"""Where a tensor may begin in torch's files, in bytes: torch maps them and computes on them in place."""


TILE = (512, 32)
"""Rows and columns copied at once from a transposed matrix: a column of a tile is one line of the cache."""


class Tensor(NamedTuple):
    """What will be written: a name, its shape and dtype."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def open_tensors(path: Path) -> dict[str, np.ndarray]:
    """The tensors of a file by name, mapped read-only: nothing is read until it is looked at.

    A .safetensors file, or one of torch.save (.pth, .bin, .ckpt), which needs torch. A dict under "state_dict" is what
    counts where there is one. Raises FileNotFoundError, ImportError without torch, ValueError for a damaged file or for a
    pickle that wants more than tensors.
    """
    if not path.is_file():
        raise MissingFileError(f"{path} is missing")
    return _open_safetensors(path) if path.suffix == ".safetensors" else _open_torch(path)


def need_torch(what: str):
    """The torch module, or ImportError saying ``what`` it is needed for."""
    try:
        import torch
    except ImportError:
        raise MissingPackageError(f"{what} needs torch (the CPU build is enough): pip install torch") from None
    return torch


def _open_safetensors(path: Path) -> dict[str, np.ndarray]:
    try:
        with safe_open(path, framework="np"):
            pass  # the library checks that header and length agree; it cannot give bfloat16 to numpy
    except SafetensorError as error:
        raise InputError(f"{path} is damaged or cut short ({error}); fetch or write it again") from None
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    header.pop("__metadata__", None)
    if strange := {name: about["dtype"] for name, about in header.items() if about["dtype"] not in DTYPES}:
        raise InputError(f"{path}: cannot read dtype {next(iter(strange.values()))} of {next(iter(strange))}")
    if not header:
        raise InputError(f"{path} holds no tensors")
    data = np.memmap(path, np.uint8, "r", offset=8 + length)
    return {
        name: data[slice(*about["data_offsets"])].view(DTYPES[about["dtype"]]).reshape(about["shape"])
        for name, about in header.items()
    }


def _open_torch(path: Path) -> dict[str, np.ndarray]:
    torch = need_torch(f"reading {path.name}")
    with path.open("rb") as file:
        mapped = file.read(len(ZIP_MAGIC)) == ZIP_MAGIC
    try:
        # Files of torch before 1.6 are no zip archives and cannot be mapped.
        saved = torch.load(path, mmap=mapped, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        wants = re.search(r"GLOBAL (\S+)", str(error))
        why = f"its pickle wants {wants[1]} where only tensors belong" if wants else "it is damaged, or no state dict"
        raise InputError(
            f"{path} is refused: {why}; a pickle can run code. Get the weights from a source you trust, best as safetensors"
        ) from None
    except (RuntimeError, OSError, EOFError, ValueError, LookupError) as error:
        text = (str(error) or type(error).__name__).splitlines()[0]
        raise InputError(f"{path} is damaged or cut short ({text}); fetch or write it again") from None
    if isinstance(saved, dict) and isinstance(saved.get("state_dict"), dict):
        saved = saved["state_dict"]
    if not isinstance(saved, dict) or not all(
        isinstance(name, str) and isinstance(tensor, torch.Tensor) for name, tensor in saved.items()
    ):
        raise InputError(f"{path} holds something else than named tensors; expected a state dict")
    return {name: _as_numpy(torch, tensor, f"{name} of {path}") for name, tensor in saved.items()}


def _as_numpy(torch, tensor, what: str) -> np.ndarray:
    if tensor.dtype == torch.bfloat16:
        return tensor.detach().view(torch.int16).numpy().view(jnp.bfloat16)
    try:
        return tensor.detach().numpy()
    except (TypeError, RuntimeError) as error:
        raise InputError(f"{what} cannot be read as numbers: {error}") from None


class Scratch:
    """Memory that is used again and again: fresh pages cost more than what is done in them.

    Arrays begin at a multiple of 64 bytes, so that XLA's CPU backend takes them as they are, without a copy.
    """

    def __init__(self, size: int = 0):
        self._memory, self._used = _aligned(size), 0

    def reset(self, size: int = 0) -> None:
        """Ends the life of all arrays taken so far; ``size`` bytes at least are there for the next."""
        self._used = 0
        if size > len(self._memory):
            self._memory = _aligned(0)  # freed before more is asked for
            self._memory = _aligned(size)

    def take(self, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        """An array with anything in it. Raises MemoryError when more is taken than there is."""
        size = math.prod(shape) * dtype.itemsize
        piece = self._memory[self._used : self._used + size]
        if len(piece) < size:
            raise MemoryError(f"{size} bytes wanted of {len(self._memory)}, {self._used} of them in use")
        self._used += self.footprint(size)
        return piece.view(dtype).reshape(shape)

    @staticmethod
    def footprint(size: int) -> int:
        """What an array of ``size`` bytes takes, up to where the next may begin."""
        return size + -size % ALIGNMENT


def _aligned(size: int) -> np.ndarray:
    memory = np.empty(size + ALIGNMENT, np.uint8)
    return memory[-memory.ctypes.data % ALIGNMENT :][:size]


def copy_into(target: np.ndarray, array: np.ndarray) -> None:
    """``array``, in any order, -> ``target``, in C order and of the same shape.

    In tiles that fit the cache: five times as fast as numpy on a transposed matrix.
    """
    if array.dtype == target.dtype and array.dtype.itemsize == 2:
        target, array = target.view(np.uint16), array.view(np.uint16)  # numpy moves bfloat16 number by number
    if array.flags.c_contiguous or array.ndim < 2:
        target[...] = array
        return
    fastest = int(np.argmin(array.strides))
    if fastest == array.ndim - 1:
        target[...] = array
        return
    others = [range(size) for axis, size in enumerate(array.shape[:-1]) if axis != fastest]
    for place in itertools.product(*others):
        for row in range(0, array.shape[fastest], TILE[0]):
            for column in range(0, array.shape[-1], TILE[1]):
                where = (*place[:fastest], slice(row, row + TILE[0]), *place[fastest:], slice(column, column + TILE[1]))
                target[where] = array[where]


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Where writing ``path`` fails, for want of space or else, raises OSError that names it, whatever a library raised."""
    try:
        yield
    except (OSError, RuntimeError, ValueError) as error:
        why = str(error) or type(error).__name__
        raise StorageError(
            f"{path} cannot be written ({why}); mend that, or choose another disk, and run it again"
        ) from error


class Writer(Protocol):
    """Writes the tensors it was opened with, one at a time and in that order."""

    def append(self, array: np.ndarray) -> None: ...

    def close(self) -> None: ...

    def abort(self) -> None: ...


class SafetensorsWriter:
    """A .safetensors file, written front to back: its header needs shapes only, so no two tensors are in memory at once."""

    def __init__(self, path: Path, tensors: Sequence[Tensor]):
        self._file, self._left = path.open("wb"), list(tensors)
        names = {dtype: name for name, dtype in DTYPES.items()}
        header, at = {"__metadata__": {"format": "pt"}}, 0
        for name, shape, dtype in tensors:
            end = at + math.prod(shape) * dtype.itemsize
            header[name] = {"dtype": names[dtype], "shape": list(shape), "data_offsets": [at, end]}
            at = end
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        self._file.write(len(text).to_bytes(8, "little") + text)

    def append(self, array: np.ndarray) -> None:
        """Writes the next tensor of those announced."""
        _check_next(self._left, array)
        self._file.write(_bytes(array))

    def close(self) -> None:
        """Ends the file; everything announced must be there."""
        with self._file:
            _check_done(self._left, self._file.name)

    def abort(self) -> None:
        """Lets go of the file as it is; for an error on the way."""
        with suppress(OSError):  # what it still held may not fit on the disk
            self._file.close()


class TorchWriter:
    """A file as torch.save writes it, front to back: a zip archive of one pickle and the bytes of each tensor."""

    def __init__(self, path: Path, tensors: Sequence[Tensor]):
        self._left, self._count = list(tensors), 0
        small = _skeleton(path, tensors)
        self._zip = zipfile.ZipFile(path, "w", zipfile.ZIP_STORED)
        self._root = path.stem
        self._tail = {name: small.pop(name) for name in ("version", ".data/serialization_id")}
        for name, content in small.items():
            self._record(name, content)

    def append(self, array: np.ndarray) -> None:
        """Writes the next tensor of those announced."""
        _check_next(self._left, array)
        self._record(f"data/{self._count}", _bytes(array))
        self._count += 1

    def close(self) -> None:
        """Ends the file; everything announced must be there."""
        with self._zip:
            _check_done(self._left, self._zip.filename)
            for name, content in self._tail.items():
                self._record(name, content)

    def abort(self) -> None:
        """Lets go of the file as it is; for an error on the way."""
        file, self._zip.fp = self._zip.fp, None  # else the archive would try to end itself when it is collected
        with suppress(OSError):
            file.close()

    def _record(self, name: str, content: bytes | memoryview) -> None:
        info = zipfile.ZipInfo(f"{self._root}/{name}")
        info.file_size = len(content)
        # The header is 30 bytes and the name, then this padding (its own head of 4 bytes) and, for a large record, 20 bytes.
        large = info.file_size * 1.05 > zipfile.ZIP64_LIMIT
        fixed = self._zip.fp.tell() + 30 + len(info.filename) + 4 + 20 * large
        padding = -fixed % ALIGNMENT
        info.extra = b"FB" + padding.to_bytes(2, "little") + b"\0" * padding
        with self._zip.open(info, "w") as record:
            record.write(content)


def _skeleton(path: Path, tensors: Sequence[Tensor]) -> dict[str, bytes]:
    """Every record of torch's file but the tensors' own, by name; torch writes them around bytes it leaves out."""
    torch = need_torch(f"writing {path.name}")
    kinds = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
    empty = {name: torch.empty(shape, dtype=kinds[dtype.name]) for name, shape, dtype in tensors}
    sketch = path.with_name(f"{path.name}.sketch")
    try:
        with torch.serialization.skip_data():
            torch.save(empty, sketch)
        with zipfile.ZipFile(sketch) as archive:
            names = [name for name in archive.namelist() if "/data/" not in name]
            return {name.partition("/")[2]: archive.read(name) for name in names}
    finally:
        sketch.unlink(missing_ok=True)


def _bytes(array: np.ndarray) -> memoryview:
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


def _check_next(left: list[Tensor], array: np.ndarray) -> None:
    name, shape, dtype = left.pop(0)
    if (array.shape, array.dtype) != (shape, dtype):
        raise InputError(f"{name} was announced as {dtype}{list(shape)}, not {array.dtype}{list(array.shape)}")


def _check_done(left: list[Tensor], path: str) -> None:
    if left:
        raise InputError(f"{path} ends without {len(left)} tensors: {', '.join(t.name for t in left[:5])}")
