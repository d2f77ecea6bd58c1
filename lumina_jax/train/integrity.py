"""Whether a checkpoint on disk is whole: all of it is there (:func:`damage`), and its numbers did not change (:func:`changed`)."""

import json
import os
import re
import zlib
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import tensorstore
from etils.epath import gpath
from orbax.checkpoint import v1 as ocp

from lumina_jax.errors import InputError

STATE = "state"
COMMITTED = "commit_success.txt"
"""The file that Orbax writes last; a folder without it is a write or a copy that never finished."""
UNFINISHED = f"it has no {COMMITTED}, so its write or its copy never finished"
CHECKSUMS, SEAL = "checksums", "crc32"
"""Keys in a checkpoint's metadata: of the checksum of each array, and of the CRC of all other metadata."""
MULTIPLIER = np.uint32(2654435761)
_etils_glob = gpath.PosixGPath.glob


def _glob(folder: gpath.PosixGPath, pattern: str) -> Iterator[gpath.PosixGPath]:
    """The files in ``folder`` that match ``pattern``. That of etils takes brackets in the name of the folder for a pattern too.

    Orbax joins by it what its processes wrote: in such a folder it would find nothing, and save checkpoints that hold nothing.
    """
    if "://" in os.fspath(folder):
        return _etils_glob(folder, pattern)
    return map(type(folder), Path(folder).glob(pattern))


gpath.PosixGPath.glob = _glob


def check_folder(folder: Path) -> None:
    """Raises InputError where Orbax cannot write checkpoints into ``folder``: for a backslash or bytes that are no UTF-8."""
    if re.search("[\\\\\ud800-\udfff]", str(folder)):
        raise InputError(
            f"{folder}: no checkpoint can be written to a folder with a backslash or with bytes that are no UTF-8 in its "
            "name; give another"
        )


def is_complete(folder: Path) -> bool:
    """Whether ``folder`` is a checkpoint whose write ended; its files may have been damaged since."""
    return (folder / COMMITTED).is_file()


def damage(checkpoint: Path) -> str:
    """What is wrong with ``checkpoint``, in words; empty when its mark, its metadata and every chunk of its arrays are there.

    Reads indices and no data: whether the numbers are right shows when they are loaded.
    """
    if not is_complete(checkpoint):
        return UNFINISHED
    try:
        metadata = _read_json(checkpoint / "_CHECKPOINT_METADATA")["custom_metadata"]
        stored = _read_json(checkpoint / STATE / "_METADATA")["tree_metadata"]
        for file in (*checkpoint.glob(f"{STATE}/_sharding"), *checkpoint.glob(f"{STATE}/array_metadatas/*")):
            _read_json(file)
        names = _array_names(checkpoint)
    except (OSError, ValueError, KeyError, TypeError):
        return "it does not say what it holds"
    if not metadata or len(names) != len(stored):
        return "it does not say what it holds"
    if metadata.get(SEAL, crc := _crc(metadata)) != crc:
        return "what it says of itself was changed"
    for name in names:
        try:
            chunks = open_array(checkpoint, name).storage_statistics(query_fully_stored=True).result()
        except ValueError:  # tensorstore's error for whatever it cannot read
            return f"{name} is damaged or cut short"
        if not chunks.fully_stored:
            return f"a part of {name} is gone"
    return ""


def _read_json(file: Path) -> dict:
    return json.loads(file.read_bytes())


def _array_names(checkpoint: Path) -> list[str]:
    """The names of the arrays whose chunks ``checkpoint`` has. Raises ValueError."""
    database = {"driver": "ocdbt", "base": {"driver": "file", "path": f"{checkpoint / STATE}/"}}
    keys = tensorstore.KvStore.open(database).result().list().result()
    return [key.decode().removesuffix("/zarr.json") for key in keys if key.endswith(b"/zarr.json")]


def open_array(checkpoint: Path, name: str, **context: dict) -> tensorstore.TensorStore:
    """One array of a checkpoint, to be read in parts; Orbax itself reads complete arrays only. Raises ValueError."""
    files = {"driver": "ocdbt", "base": {"driver": "file", "path": f"{checkpoint / STATE}/"}, "path": f"{name}/"}
    # Missing data is an error; by default it reads as zeros.
    store = {"driver": "zarr3", "kvstore": files, "context": context, "fill_missing_data_reads": False}
    return tensorstore.open(store, open=True, read=True).result()


def sealed(metadata: dict, sums: dict[str, int]) -> dict:
    """``metadata``, plain JSON values, with what :func:`damage` and :func:`changed` compare: the :func:`checksums` of all arrays."""
    metadata = {**metadata, CHECKSUMS: sums}
    return {**metadata, SEAL: _crc(metadata)}


def changed(checkpoint: Path, arrays: dict[str, jax.Array]) -> str:
    """The first of ``arrays``, loaded as they are stored, whose numbers are not those saved, in words.

    Empty when there is none, or when nothing was recorded.
    """
    saved = (ocp.checkpointables_metadata(checkpoint).custom_metadata or {}).get(CHECKSUMS, {})
    names = [name for name, value in checksums(arrays).items() if value != saved.get(name, value)]
    return f"the numbers of {names[0]} are not those that were saved" if names else ""


def checksums(arrays: dict[str, jax.Array]) -> dict[str, int]:
    """A 32-bit checksum of each array's bits and shape, the same on every mesh; no change of a single element escapes it."""
    return {name: int(value) for name, value in jax.device_get(_checksums(arrays)).items()}


def _crc(metadata: dict) -> int:
    plain = {name: value for name, value in metadata.items() if name != SEAL}
    return zlib.crc32(json.dumps(plain, sort_keys=True).encode())


@jax.jit
def _checksums(arrays: dict[str, jax.Array]) -> dict[str, jax.Array]:
    return jax.tree.map(_checksum, arrays)


def _checksum(x: jax.Array) -> jax.Array:
    """u32[]: the sum of the elements' bits, each times an odd number that its place gives, modulo 2^32."""
    if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
        x = jax.random.key_data(x)
    bits = jax.lax.bitcast_convert_type(x, f"uint{8 * x.dtype.itemsize}").astype(jnp.uint32)
    place = jnp.zeros(x.shape, jnp.uint32)
    for axis in range(x.ndim):
        place = place * MULTIPLIER + jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis)
    return jnp.sum(bits * (2 * place + 1), dtype=jnp.uint32)
