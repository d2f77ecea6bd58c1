"""Files of named tensors, safetensors and torch's, mapped into memory rather than read; on a store they are read by ranges.

safetensors files need no torch. torch's own files are pickles: only tensors are unpickled (weights_only), and a file that asks for
anything else is refused.
"""

import json
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open

from convert.errors import read_errors
from convert.remote_tensors import RemoteTensor, remote_safetensors, remote_torch
from convert.settings import read_json
from convert.tensor_formats import DTYPES, ZIP_MAGIC, as_numpy, need_torch, state_dict, tensor_infos, torch_errors
from lumina_jax.errors import InputError, MissingFileError
from lumina_jax.places import Place

WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")
INDEX_SUFFIX = ".index.json"
MAPPED_BYTES = 1 << 29
"""After this many bytes are read, mapped files are closed and opened again, so that the pages read leave the memory."""
READERS = 16
"""Small tensors of a store that are read at once."""
Tensor = np.ndarray | RemoteTensor


def open_tensors(path: Place) -> dict[str, Tensor]:
    """The tensors of a file by name, mapped read-only, or at their place on a store: a tensor is read when it is used.

    ``path`` is a .safetensors file or one of torch.save (.pth, .bin, .ckpt), which needs torch; of a file with a dict under
    "state_dict" only that dict is taken. Raises MissingFileError, MissingPackageError without torch, StorageError for an unreadable
    file, InputError for a damaged file or a pickle that contains more than tensors.
    """
    is_safetensors = path.suffix == ".safetensors"
    with read_errors(path):
        if not path.is_file():
            raise MissingFileError(f"{path} is missing")
        if not isinstance(path, Path):
            return remote_safetensors(path) if is_safetensors else remote_torch(path)
        return _open_safetensors(path) if is_safetensors else _open_torch(path)


def listed(names: list[str], limit: int) -> str:
    """The first ``limit`` names, separated by commas, and how many there are more."""
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")


def _open_safetensors(path: Path) -> dict[str, np.ndarray]:
    try:
        with safe_open(path, framework="np"):
            pass  # the library checks that header and length agree; it cannot give bfloat16 to numpy
    except SafetensorError as error:
        raise InputError(f"{path} is damaged or cut short ({error}); fetch or write it again") from None
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        infos = tensor_infos(json.loads(file.read(length)), path)
    data = np.memmap(path, np.uint8, "r", offset=8 + length)
    return {
        name: data[slice(*info["data_offsets"])].view(DTYPES[info["dtype"]]).reshape(info["shape"])
        for name, info in infos.items()
    }


def _open_torch(path: Path) -> dict[str, np.ndarray]:
    torch = need_torch(f"reading {path.name}")
    with path.open("rb") as file:
        is_zip = file.read(len(ZIP_MAGIC)) == ZIP_MAGIC
    with torch_errors(path):
        # Files of torch before 1.6 are not zip archives and cannot be mapped.
        saved = torch.load(path, mmap=is_zip, map_location="cpu", weights_only=True)
    tensors = state_dict(torch, saved, path)
    return {name: as_numpy(torch, tensor, f"{name} of {path}") for name, tensor in tensors.items()}


def weight_files(folder: Place) -> dict[str, Place]:
    """Weight name -> the file that holds it, for a folder as Hugging Face lays it out: one file, or an index of several.

    Raises MissingFileError when there are no weights, InputError for an index that does not name files of ``folder``.
    """
    for single in WEIGHT_FILES:
        index = folder / (single + INDEX_SUFFIX)
        if index.is_file():
            files = read_json(index).get("weight_map")
            if not isinstance(files, dict) or not files or any(Path(str(file)).name != file for file in files.values()):
                raise InputError(f"{index}: no weight_map that names a file in this folder per weight; fetch it again")
            return {name: folder / file for name, file in files.items()}
        if (folder / single).is_file():
            return dict.fromkeys(open_tensors(folder / single), folder / single)
    choices = ", ".join(f"{single} or {single}{INDEX_SUFFIX}" for single in WEIGHT_FILES)
    raise MissingFileError(f"{folder} holds a config.json but no weights; looked for {choices}")


class TensorFiles:
    """The tensors of several files by name, mapped; files are closed and reopened so that what was read leaves the memory. Of
    those of a store the last one read is kept.

    ``files`` gives the file of each name. Tensors of these files that it does not name are included as well. ``headers`` is
    name -> (shape, dtype). Raises MissingFileError for an absent file, InputError for a name absent from its file.
    """

    def __init__(self, files: Mapping[str, Place]):
        self.files, self._open, self._bytes_read = dict(files), {}, 0
        self._ahead: dict[str, np.ndarray] = {}
        self._last: tuple[str, np.ndarray | None] = "", None
        folder = next(iter(files.values())).parent
        if absent := sorted(path.name for path in set(files.values()) if not path.is_file()):
            raise MissingFileError(f"{folder} lacks {', '.join(absent)}, which its index names; fetch them as well")
        if lost := [f"{name} ({path.name})" for name, path in files.items() if name not in self._mapped(path)]:
            raise InputError(f"{folder}: the index names weights absent from their files: {listed(lost, 8)}")
        for path, tensors in self._open.items():
            self.files |= {name: path for name in tensors if name not in self.files}
        self.headers = {name: (array.shape, array.dtype) for name in self.files for array in [self._tensor(name)]}

    def __getitem__(self, name: str) -> np.ndarray:
        if (array := self._ahead.get(name)) is not None:
            return array
        if self._bytes_read > MAPPED_BYTES:
            self._open = {path: tensors for path, tensors in self._open.items() if not isinstance(path, Path)}
            self._bytes_read = 0
        tensor = self._tensor(name)
        if not isinstance(tensor, RemoteTensor):
            self._bytes_read += tensor.nbytes
            return tensor
        if self._last[0] != name:
            self._last = "", None  # frees it before the next is fetched
            with read_errors(self.files[name]):
                self._last = name, np.asarray(tensor)
        return self._last[1]

    def read_ahead(self, names: Iterable[str]) -> None:
        """Reads the small tensors ``names`` that are on a store, many at once, and keeps them; those of a disk are as near."""
        remote = [name for name in names if isinstance(self._tensor(name), RemoteTensor)]
        with ThreadPoolExecutor(READERS) as pool:
            self._ahead |= zip(remote, pool.map(lambda name: np.asarray(self._tensor(name)), remote), strict=True)

    def _tensor(self, name: str) -> Tensor:
        return self._mapped(self.files[name])[name]

    def _mapped(self, path: Place) -> dict[str, Tensor]:
        if path not in self._open:
            self._open[path] = open_tensors(path)
        return self._open[path]
