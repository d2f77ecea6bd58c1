"""Files of named tensors, safetensors and torch's, written front to back with one tensor in memory at a time."""

import json
import math
import tempfile
import zipfile
import zlib
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import NamedTuple

import numpy as np

from convert.buffers import ALIGNMENT
from convert.errors import write_errors
from convert.file_sums import FileSum
from convert.tensor_formats import DTYPES, need_torch
from lumina_jax.places import NewFile, Place


class TensorSpec(NamedTuple):
    """Name, shape and dtype of a tensor that will be written."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


class SafetensorsWriter:
    """Writes a .safetensors file: the tensors of ``specs``, one at a time and in their order."""

    def __init__(self, path: Place, specs: Sequence[TensorSpec]):
        self._file, self._remaining = NewFile(path), list(specs)
        self._size = self._crc32 = 0
        names = {dtype: name for name, dtype in DTYPES.items()}
        header, start = {"__metadata__": {"format": "pt"}}, 0
        for spec in specs:
            end = start + spec.nbytes
            header[spec.name] = {"dtype": names[spec.dtype], "shape": list(spec.shape), "data_offsets": [start, end]}
            start = end
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        self._write(len(text).to_bytes(8, "little") + text)

    def append(self, array: np.ndarray) -> None:
        """Writes the next tensor; ValueError unless it has the next spec's shape and dtype."""
        _check_next(self._remaining, array)
        self._write(_bytes(array))

    @property
    def sum(self) -> FileSum:
        """Size and CRC-32 of what was written."""
        return FileSum(self._size, f"{self._crc32:08x}")

    def _write(self, content: bytes | memoryview) -> None:
        self._size, self._crc32 = self._size + len(content), zlib.crc32(content, self._crc32)
        self._file.write(content)

    def close(self) -> None:
        """Finishes the file; ValueError when tensors are still to be written."""
        _check_done(self._remaining, self._file.name)
        self._file.close()

    def abort(self) -> None:
        """Gives the file up, after an error."""
        self._file.discard()


class TorchWriter:
    """Writes a file in torch.save's format, a zip archive of one pickle and the bytes of each tensor; used as SafetensorsWriter."""

    def __init__(self, path: Place, specs: Sequence[TensorSpec]):
        self._remaining, self._count = list(specs), 0
        records = _records_without_data(path, specs)
        self._file = NewFile(path)
        self._zip = zipfile.ZipFile(_HeldBack(self._file), "w", zipfile.ZIP_STORED)
        self._root = path.stem
        self._last_records = {name: records.pop(name) for name in ("version", ".data/serialization_id")}
        for name, content in records.items():
            self._record(name, content)

    def append(self, array: np.ndarray) -> None:
        _check_next(self._remaining, array)
        self._record(f"data/{self._count}", _bytes(array))
        self._count += 1

    def close(self) -> None:
        _check_done(self._remaining, self._file.name)
        for name, content in self._last_records.items():
            self._record(name, content)
        held = self._zip.fp
        self._zip.close()
        held.release()
        self._file.close()

    def abort(self) -> None:
        self._zip.fp = None  # else the archive finishes itself when it is garbage-collected
        self._file.discard()

    def _record(self, name: str, content: bytes | memoryview) -> None:
        info = zipfile.ZipInfo(f"{self._root}/{name}")
        info.file_size = len(content)
        # The record's header is 30 bytes, the name, this padding (with a head of 4 bytes) and 20 bytes more if it is large.
        large = info.file_size * 1.05 > zipfile.ZIP64_LIMIT
        fixed = self._zip.fp.tell() + 30 + len(info.filename) + 4 + 20 * large
        padding = -fixed % ALIGNMENT
        info.extra = b"FB" + padding.to_bytes(2, "little") + b"\0" * padding
        with self._zip.open(info, "w") as record:
            record.write(content)
        self._zip.fp.release()


class _HeldBack:
    """What zipfile writes to in place of a file that only grows: a record stays here until its header is written again, with its
    checksum. Nothing is copied: a record's bytes must not change before :meth:`release`."""

    def __init__(self, file: NewFile):
        self._file, self._pieces, self._start, self._end = file, [], 0, 0
        self._position = 0

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = 0) -> int:
        """Moves to ``offset`` from the start."""
        if whence:
            raise ValueError(f"whence {whence}; zipfile seeks from the start alone")
        self._position = offset
        return offset

    def write(self, content: bytes | memoryview) -> int:
        """Adds ``content``, or replaces the first piece that is held, which is a header of the same length."""
        if self._position == self._end:
            self._pieces.append(content)
            self._end += len(content)
        elif self._position == self._start and len(content) == len(self._pieces[0]):
            self._pieces[0] = content
        else:
            raise ValueError(f"{len(content)} bytes at {self._position}; held are {self._start} to {self._end}")
        self._position += len(content)
        return len(content)

    def flush(self) -> None:
        """Nothing: what is held stays until :meth:`release`."""

    def release(self) -> None:
        """Writes what is held."""
        for piece in self._pieces:
            self._file.write(piece)
        self._pieces, self._start = [], self._end


def _records_without_data(path: Place, specs: Sequence[TensorSpec]) -> dict[str, bytes]:
    """All records of torch's file by name, except the tensors' data, which torch can leave out when it saves."""
    torch = need_torch(f"writing {path.name}")
    dtypes = {name: getattr(torch, name) for name in ("float32", "float16", "bfloat16")}
    empty = {spec.name: torch.empty(spec.shape, dtype=dtypes[spec.dtype.name]) for spec in specs}
    # A file with a hole in place of the data: on a store it is made here, and takes no space.
    home = nullcontext(path.parent) if isinstance(path, Path) else tempfile.TemporaryDirectory()
    with home as folder:
        sketch = Path(folder, f"{path.name}.sketch")
        try:
            with write_errors(path, RuntimeError), torch.serialization.skip_data():
                torch.save(empty, sketch)
            with zipfile.ZipFile(sketch) as archive:
                names = [name for name in archive.namelist() if "/data/" not in name]
                return {name.partition("/")[2]: archive.read(name) for name in names}
        finally:
            sketch.unlink(missing_ok=True)


def _bytes(array: np.ndarray) -> memoryview:
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


def _check_next(remaining: list[TensorSpec], array: np.ndarray) -> None:
    name, shape, dtype = remaining.pop(0)
    if (array.shape, array.dtype) != (shape, dtype):
        raise ValueError(f"{name} was announced as {dtype}{list(shape)}, not {array.dtype}{list(array.shape)}")


def _check_done(remaining: list[TensorSpec], path: str) -> None:
    if remaining:
        names = ", ".join(spec.name for spec in remaining[:5])
        raise ValueError(f"{path} is closed before {len(remaining)} tensors are written: {names}")
