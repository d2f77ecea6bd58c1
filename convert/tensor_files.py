"""Files of named tensors, safetensors and torch's, mapped into memory rather than read.

safetensors files need no torch. torch's own files are pickles: only tensors are unpickled (weights_only), and a file that asks for
anything else is refused.
"""

import json
import pickle
import re
from collections.abc import Mapping
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open

from convert.errors import read_errors
from convert.settings import read_json
from lumina_jax.errors import InputError, MissingFileError, MissingPackageError

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
WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")
INDEX_SUFFIX = ".index.json"
MAPPED_BYTES = 1 << 29
"""After this many bytes are read, mapped files are closed and opened again, so that the pages read leave the memory."""


def open_tensors(path: Path) -> dict[str, np.ndarray]:
    """The tensors of a file by name, mapped read-only: a tensor is read when it is used.

    ``path`` is a .safetensors file or one of torch.save (.pth, .bin, .ckpt), which needs torch; of a file with a dict under
    "state_dict" only that dict is taken. Raises MissingFileError, MissingPackageError without torch, StorageError for an unreadable
    file, InputError for a damaged file or a pickle that contains more than tensors.
    """
    with read_errors(path):
        if not path.is_file():
            raise MissingFileError(f"{path} is missing")
        return _open_safetensors(path) if path.suffix == ".safetensors" else _open_torch(path)


def need_torch(purpose: str):
    """The torch module. Raises MissingPackageError naming the ``purpose``, such as "writing x.pth"."""
    try:
        import torch
    except ImportError:
        raise MissingPackageError(f"{purpose} needs torch (the CPU build is enough): pip install torch") from None
    return torch


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
        header = json.loads(file.read(length))
    header.pop("__metadata__", None)
    if unknown := [(name, info["dtype"]) for name, info in header.items() if info["dtype"] not in DTYPES]:
        raise InputError(f"{path}: cannot read dtype {unknown[0][1]} of {unknown[0][0]}")
    if not any(info["data_offsets"][1] for info in header.values()):
        raise InputError(f"{path} holds no tensors")
    data = np.memmap(path, np.uint8, "r", offset=8 + length)
    return {
        name: data[slice(*info["data_offsets"])].view(DTYPES[info["dtype"]]).reshape(info["shape"])
        for name, info in header.items()
    }


def _open_torch(path: Path) -> dict[str, np.ndarray]:
    torch = need_torch(f"reading {path.name}")
    with path.open("rb") as file:
        is_zip = file.read(len(ZIP_MAGIC)) == ZIP_MAGIC
    try:
        # Files of torch before 1.6 are not zip archives and cannot be mapped.
        saved = torch.load(path, mmap=is_zip, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        request = re.search(r"GLOBAL (\S+)", str(error))
        why = f"its pickle asks for {request[1]}, not only tensors" if request else "it is damaged, or not a state dict"
        cure = "a pickle can run code. Get the weights from a source you trust, best as safetensors"
        raise InputError(f"{path} is refused: {why}; {cure}") from None
    except Exception as error:  # damaged pickles and archives make torch raise errors of any kind
        text = f"{type(error).__name__}: {error}".splitlines()[0]
        raise InputError(f"{path} is damaged or cut short ({text}); fetch or write it again") from None
    if isinstance(saved, dict) and isinstance(saved.get("state_dict"), dict):
        saved = saved["state_dict"]
    if not isinstance(saved, dict) or not all(
        isinstance(name, str) and isinstance(tensor, torch.Tensor) for name, tensor in saved.items()
    ):
        raise InputError(f"{path} holds something else than named tensors; a state dict is expected")
    return {name: _as_numpy(torch, tensor, f"{name} of {path}") for name, tensor in saved.items()}


def _as_numpy(torch, tensor, description: str) -> np.ndarray:
    if tensor.dtype == torch.bfloat16:
        return tensor.detach().view(torch.int16).numpy().view(jnp.bfloat16)
    try:
        return tensor.detach().numpy()
    except (TypeError, RuntimeError) as error:
        raise InputError(f"{description} cannot be read as numbers: {error}") from None


def weight_files(folder: Path) -> dict[str, Path]:
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
    """The tensors of several files by name, mapped; files are closed and reopened so that what was read leaves the memory.

    ``files`` gives the file of each name. Tensors of these files that it does not name are included as well. ``headers`` is
    name -> (shape, dtype). Raises MissingFileError for an absent file, InputError for a name absent from its file.
    """

    def __init__(self, files: Mapping[str, Path]):
        self.files, self._open, self._bytes_read = dict(files), {}, 0
        folder = next(iter(files.values())).parent
        if absent := sorted({path.name for path in files.values() if not path.is_file()}):
            raise MissingFileError(f"{folder} lacks {', '.join(absent)}, which its index names; fetch them as well")
        if lost := [f"{name} ({path.name})" for name, path in files.items() if name not in self._mapped(path)]:
            raise InputError(f"{folder}: the index names weights absent from their files: {listed(lost, 8)}")
        for path, tensors in self._open.items():
            self.files |= {name: path for name in tensors if name not in self.files}
        self.headers = {name: (array.shape, array.dtype) for name in self.files for array in [self._tensor(name)]}

    def __getitem__(self, name: str) -> np.ndarray:
        if self._bytes_read > MAPPED_BYTES:
            self._open.clear()
            self._bytes_read = 0
        array = self._tensor(name)
        self._bytes_read += array.nbytes
        return array

    def _tensor(self, name: str) -> np.ndarray:
        return self._mapped(self.files[name])[name]

    def _mapped(self, path: Path) -> dict[str, np.ndarray]:
        if path not in self._open:
            self._open[path] = open_tensors(path)
        return self._open[path]
