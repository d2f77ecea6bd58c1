"""Files of named tensors on a store: headers and tensors are read by ranges, so that a file of any size needs no disk here."""

import io
import json
import math
import struct
import zipfile
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from upath import UPath

from convert.tensor_formats import DTYPES, ZIP_MAGIC, as_numpy, need_torch, state_dict, tensor_infos, torch_errors
from lumina_jax.errors import InputError
from lumina_jax.places import read_range

BY_NAME = {dtype.name: dtype for dtype in DTYPES.values()}
"""numpy's name of a dtype, which is torch's, -> the dtype."""
LARGEST_HEADER = 100_000_000
"""Bytes, as the library safetensors allows."""
DATA, FORMAT_VERSION = "/data/", "/.format_version"
"""Part of the names of torch's records that hold numbers; the record by which torch trusts in how it wrote the archive."""
LOCAL_HEADER = 30
"""Bytes of a record's header in a zip archive before its name; the last four are the lengths of name and extra field."""
DIRECTORY_BLOCK = 1 << 18
"""Bytes read at once of a zip archive's directory and its pickle."""


@dataclass(frozen=True)
class RemoteTensor:
    """A tensor at the bytes from ``start`` on of a file: numpy's ``shape`` and ``dtype``; every use as an array reads it.

    ``strides`` in numbers, () for those of C, lead to its numbers in the file, of which ``span`` are read.
    """

    file: UPath
    start: int
    shape: tuple[int, ...]
    dtype: np.dtype
    strides: tuple[int, ...] = ()

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of its numbers."""
        return self.size * self.dtype.itemsize

    @cached_property
    def span(self) -> int:
        """How many numbers of the file lie from its first to its last."""
        if not self.strides or not self.size:
            return self.size
        return 1 + sum((size - 1) * stride for size, stride in zip(self.shape, self.strides, strict=True))

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: object) -> np.ndarray:
        return np.asarray(self)[index]

    def __array__(self, dtype: np.dtype | None = None, copy: bool | None = None) -> np.ndarray:
        if copy is False:
            raise ValueError(f"a tensor of {self.file} cannot be had without a copy")
        content = read_range(self.file, self.start, self.start + self.span * self.dtype.itemsize).view(self.dtype)
        if self.strides:
            steps = [stride * self.dtype.itemsize for stride in self.strides]
            array = np.array(np.lib.stride_tricks.as_strided(content, self.shape, steps))
        else:
            array = content.reshape(self.shape)
        return array if dtype is None else array.astype(dtype, copy=False)


def remote_safetensors(path: UPath) -> dict[str, RemoteTensor]:
    """The tensors of a .safetensors file. Raises InputError where header and length do not agree."""
    size = path.stat().st_size
    damaged = f"{path} is damaged or cut short ({{}}); fetch or write it again"
    if size < 8:
        raise InputError(damaged.format(f"it has {size} bytes"))
    length = int.from_bytes(read_range(path, 0, 8).tobytes(), "little")
    if not 0 < length <= min(size - 8, LARGEST_HEADER):
        raise InputError(damaged.format(f"a header of {length} bytes in a file of {size}"))
    try:
        header = json.loads(read_range(path, 8, 8 + length).tobytes())
        infos = tensor_infos(header, path)
        tensors = {name: _of_info(path, 8 + length, info) for name, info in infos.items()}
        end = _end_of_data(infos)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(damaged.format(f"{type(error).__name__}: {error}")) from None
    if 8 + length + end != size:
        raise InputError(damaged.format(f"its header names {8 + length + end} bytes, it has {size}"))
    return tensors


def _of_info(path: UPath, origin: int, info: dict) -> RemoteTensor:
    """A tensor as the header describes it; ``origin`` is where the data begin. Raises ValueError where size and shape disagree."""
    tensor = RemoteTensor(path, origin + info["data_offsets"][0], tuple(info["shape"]), DTYPES[info["dtype"]])
    if info["data_offsets"][1] - info["data_offsets"][0] != tensor.nbytes:
        raise ValueError(f"{info['data_offsets']} are no offsets of {info['dtype']}{info['shape']}")
    return tensor


def _end_of_data(infos: dict[str, dict]) -> int:
    """Where the last tensor ends. Raises ValueError unless they stand one behind the other."""
    end = 0
    for start, stop in sorted(tuple(info["data_offsets"]) for info in infos.values()):
        if start != end:
            raise ValueError(f"a gap or an overlap at byte {end} of its data")
        end = stop
    return end


def remote_torch(path: UPath) -> dict[str, RemoteTensor | np.ndarray]:
    """The tensors of a file of torch.save, which needs torch. A file of torch before 1.6, no zip archive, is read whole.

    Raises InputError for a damaged file or a pickle that contains more than tensors.
    """
    torch = need_torch(f"reading {path.name}")
    if path.fs.cat_file(path.path, 0, len(ZIP_MAGIC)) != ZIP_MAGIC:
        content = path.read_bytes()
        with torch_errors(path):
            saved = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        tensors = state_dict(torch, saved, path)
        return {name: as_numpy(torch, tensor, f"{name} of {path}") for name, tensor in tensors.items()}
    from torch._subclasses.fake_tensor import FakeTensorMode

    with path.fs.open(path.path, "rb", block_size=DIRECTORY_BLOCK) as file, torch_errors(path):
        with zipfile.ZipFile(file) as archive:
            records = [info for info in archive.infolist() if DATA in info.filename]
            sketch, names = _without_data(archive)
        with FakeTensorMode():  # of whose tensors torch reads no data, but notes at what offset they are
            saved = torch.load(sketch, weights_only=True)
        starts = dict(zip((info.filename for info in records), _data_starts(path, records), strict=True))
    ends = {info.filename: starts[info.filename] + info.file_size for info in records}
    tensors = {}
    for name, tensor in state_dict(torch, saved, path).items():
        record = names.get(getattr(tensor.untyped_storage(), "_checkpoint_offset", None))
        dtype = BY_NAME.get(str(tensor.dtype).removeprefix("torch."))
        if dtype is None or record is None:
            raise InputError(f"{name} of {path} cannot be read as numbers: {tensor.dtype}")
        strides = () if tensor.is_contiguous() else tuple(tensor.stride())
        start = starts[record] + tensor.storage_offset() * dtype.itemsize
        tensors[name] = RemoteTensor(path, start, tuple(tensor.shape), dtype, strides)
        if start + tensors[name].span * dtype.itemsize > ends[record]:
            raise InputError(f"{path} is damaged or cut short ({record} ends before {name}); fetch or write it again")
    return tensors


def _without_data(archive: zipfile.ZipFile) -> tuple[io.BytesIO, dict[int, str]]:
    """(the archive without the numbers of its tensors, {offset there of what is left of a record of numbers: its name}).

    The offsets in a whole archive cannot be asked for: torch takes them for those that its own writer would have chosen.
    """
    sketch, names = io.BytesIO(), {}
    with zipfile.ZipFile(sketch, "w") as written:
        for info in archive.infolist():
            if DATA in info.filename:
                names[sketch.tell() + LOCAL_HEADER + len(info.filename.encode())] = info.filename
                written.writestr(zipfile.ZipInfo(info.filename), b"")
            elif not info.filename.endswith(FORMAT_VERSION):
                written.writestr(zipfile.ZipInfo(info.filename), archive.read(info))
    sketch.seek(0)
    return sketch, names


def _data_starts(path: UPath, records: list[zipfile.ZipInfo]) -> list[int]:
    """Where in a file the bytes of stored ``records`` begin, behind their headers, which are read all at once."""
    if packed := [info.filename for info in records if info.compress_type != zipfile.ZIP_STORED]:
        raise ValueError(f"{packed[0]} is compressed")
    starts = [info.header_offset for info in records]
    heads = path.fs.cat_ranges(
        [path.path] * len(starts), starts, [at + LOCAL_HEADER for at in starts], on_error="raise"
    )
    lengths = (struct.unpack("<HH", head[LOCAL_HEADER - 4 : LOCAL_HEADER]) for head in heads)
    return [start + LOCAL_HEADER + sum(both) for start, both in zip(starts, lengths, strict=True)]
