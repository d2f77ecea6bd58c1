"""What files of tensors are made of: dtypes, the header of safetensors, torch's state dicts."""

import pickle
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import jax.numpy as jnp
import numpy as np

from lumina_jax.errors import InputError, MissingPackageError
from lumina_jax.extras import install
from lumina_jax.places import Place

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


def need_torch(purpose: str):
    """The torch module. Raises MissingPackageError naming the ``purpose``, such as "writing x.pth"."""
    try:
        import torch
    except ImportError:
        raise MissingPackageError(f"{purpose} needs torch (the CPU build is enough): {install('torch')}") from None
    return torch


def tensor_infos(header: dict, path: Place) -> dict[str, dict]:
    """Name -> dtype, shape and data_offsets of the tensors of a safetensors ``header``; InputError where they cannot be read."""
    infos = {name: info for name, info in header.items() if name != "__metadata__"}
    if unknown := [(name, info["dtype"]) for name, info in infos.items() if info["dtype"] not in DTYPES]:
        raise InputError(f"{path}: cannot read dtype {unknown[0][1]} of {unknown[0][0]}")
    if not any(info["data_offsets"][1] for info in infos.values()):
        raise InputError(f"{path} holds no tensors")
    return infos


@contextmanager
def torch_errors(path: Place) -> Iterator[None]:
    """Turns whatever torch.load raises into an InputError that names ``path`` and the cure."""
    try:
        yield
    except pickle.UnpicklingError as error:
        request = re.search(r"GLOBAL (\S+)", str(error))
        why = f"its pickle asks for {request[1]}, not only tensors" if request else "it is damaged, or not a state dict"
        cure = "a pickle can run code. Get the weights from a source you trust, best as safetensors"
        raise InputError(f"{path} is refused: {why}; {cure}") from None
    except Exception as error:  # damaged pickles and archives make torch raise errors of any kind
        text = f"{type(error).__name__}: {error}".splitlines()[0]
        raise InputError(f"{path} is damaged or cut short ({text}); fetch or write it again") from None


def state_dict(torch, saved: object, path: Place) -> Mapping[str, object]:
    """The named torch tensors in what torch.load gave, or under its "state_dict"; InputError for anything else."""
    if isinstance(saved, dict) and isinstance(saved.get("state_dict"), dict):
        saved = saved["state_dict"]
    if not isinstance(saved, dict) or not all(
        isinstance(name, str) and isinstance(tensor, torch.Tensor) for name, tensor in saved.items()
    ):
        raise InputError(f"{path} holds something else than named tensors; a state dict is expected")
    return saved


def as_numpy(torch, tensor, description: str) -> np.ndarray:
    """A torch tensor as numpy sees it, without a copy; InputError that names it by its ``description``."""
    if tensor.dtype == torch.bfloat16:
        return tensor.detach().view(torch.int16).numpy().view(jnp.bfloat16)
    try:
        return tensor.detach().numpy()
    except (TypeError, RuntimeError) as error:
        raise InputError(f"{description} cannot be read as numbers: {error}") from None
