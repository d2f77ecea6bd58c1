"""Whether a checkpoint on disk is whole: all of it is there (:func:`damage`), and its numbers did not change (:func:`changed`)."""

import json
import os
import re
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import tensorstore
from etils import epath
from etils.epath import gpath
from orbax.checkpoint import v1 as ocp

from lumina_jax.errors import InputError
from lumina_jax.faults import is_transient
from lumina_jax.train.store_checkpoints import kvstore

STATE = "state"
COMMITTED = "commit_success.txt"
"""The file that Orbax writes last; a folder without it is a write or a copy that never finished."""
UNFINISHED = f"it has no {COMMITTED}, so its write or its copy never finished"
CHANGED = "the numbers of {name} are not those that were saved"
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


def check_folder(folder: epath.Path) -> None:
    """Raises InputError where Orbax cannot write checkpoints into ``folder``: for a backslash or bytes that are no UTF-8."""
    if re.search("[\\\\\ud800-\udfff]", str(folder)):
        raise InputError(
            f"{folder}: no checkpoint can be written to a folder with a backslash or with bytes that are no UTF-8 in its "
            "name; give another"
        )


def is_complete(folder: epath.Path) -> bool:
    """Whether ``folder`` is a checkpoint whose write ended; its files may have been damaged since."""
    return (folder / COMMITTED).is_file()


def damage(checkpoint: epath.Path) -> str:
    """What is wrong with ``checkpoint``, in words; empty when its mark, its metadata and every chunk of its arrays are there.

    Reads indices and no data: whether the numbers are right shows when they are loaded. Raises what the disk or the store says
    where that may pass (faults.is_transient): then nothing is known of the checkpoint.
    """
    if not is_complete(checkpoint):
        return UNFINISHED
    try:
        metadata = _read_json(checkpoint / "_CHECKPOINT_METADATA")["custom_metadata"]
        stored = _read_json(checkpoint / STATE / "_METADATA")["tree_metadata"]
        for file in (*checkpoint.glob(f"{STATE}/_sharding"), *checkpoint.glob(f"{STATE}/array_metadatas/*")):
            _read_json(file)
        names = array_names(checkpoint)
        readable = ocp.checkpointables_metadata(checkpoint).metadata[STATE]
    except Exception as error:  # damaged metadata makes Orbax raise errors of any kind
        if is_transient(error):
            raise
        return "it does not say what it holds"
    if not metadata or not readable or len(names) != len(stored):
        return "it does not say what it holds"
    if metadata.get(SEAL, crc := _crc(metadata)) != crc:
        return "what it says of itself was changed"
    for name in names:
        try:
            chunks = open_array(checkpoint, name).storage_statistics(query_fully_stored=True).result()
        except ValueError as error:  # tensorstore's error for whatever it cannot read
            if is_transient(error):
                raise
            return f"{name} is damaged or cut short"
        if not chunks.fully_stored:
            return f"a part of {name} is gone"
    return ""


def _read_json(file: epath.Path) -> dict:
    return json.loads(file.read_bytes())


def array_names(checkpoint: epath.Path) -> list[str]:
    """The names of the arrays whose chunks ``checkpoint`` has. Raises ValueError."""
    database = {"driver": "ocdbt", "base": _files(checkpoint)}
    keys = tensorstore.KvStore.open(database).result().list().result()
    return [key.decode().removesuffix("/zarr.json") for key in keys if key.endswith(b"/zarr.json")]


def open_array(checkpoint: epath.Path, name: str, **context: dict) -> tensorstore.TensorStore:
    """One array of a checkpoint, to be read in parts; Orbax itself reads complete arrays only. Raises ValueError."""
    files = {"driver": "ocdbt", "base": _files(checkpoint), "path": f"{name}/"}
    # Missing data is an error; by default it reads as zeros.
    store = {"driver": "zarr3", "kvstore": files, "context": context, "fill_missing_data_reads": False}
    return tensorstore.open(store, open=True, read=True).result()


def unverified(checkpoint: epath.Path) -> str:
    """That those who read parts of ``checkpoint`` cannot know whether they are as they were saved, in words.

    Empty where each chunk has a checksum, which every reader compares. Raises ValueError.
    """
    codecs = open_array(checkpoint, array_names(checkpoint)[0]).spec().to_json()["metadata"]["codecs"]
    inner = [codec["name"] for part in codecs for codec in part.get("configuration", {}).get("codecs", ())]
    if "crc32c" in inner:
        return ""
    arrays = bool(saved_checksums(checkpoint))
    cure = "compare it with run.py convert inspect --deep" if arrays else "it has none of its arrays either"
    return f"{checkpoint} is of an older version, which wrote no checksums of chunks, so what is read is not verified; {cure}"


def _files(checkpoint: epath.Path) -> dict[str, str]:
    """Where tensorstore finds the files of a checkpoint."""
    path = f"{checkpoint / STATE}/"
    return kvstore(path) if "://" in path else {"driver": "file", "path": path}


def sealed(metadata: dict, sums: dict[str, int]) -> dict:
    """``metadata``, plain JSON values, with what :func:`damage` and :func:`changed` compare; ``sums`` are :func:`checksums`."""
    metadata = {**metadata, CHECKSUMS: sums}
    return {**metadata, SEAL: _crc(metadata)}


def changed(checkpoint: epath.Path, arrays: dict[str, jax.Array]) -> str:
    """The first of ``arrays``, loaded as they are stored, whose numbers are not those saved, in words.

    Empty when there is none, or when nothing was recorded.
    """
    saved = saved_checksums(checkpoint)
    names = [name for name, value in checksums(arrays).items() if value != saved.get(name, value)]
    return CHANGED.format(name=names[0]) if names else ""


def saved_checksums(checkpoint: epath.Path) -> dict[str, int]:
    """The :func:`checksums` that ``checkpoint`` recorded; empty in one of an older version."""
    return (ocp.checkpointables_metadata(checkpoint).custom_metadata or {}).get(CHECKSUMS, {})


def read_error(error: BaseException) -> str:
    """What is wrong with a checkpoint that cannot be read, in words; empty where not its files are to blame.

    That is memory, or a disk or a store with an error that may pass.
    """
    if is_transient(error):
        return ""
    while error.__cause__:
        error = error.__cause__
    if isinstance(error, (jax.errors.JaxRuntimeError, MemoryError)):
        return ""
    if digest := re.search(r'entry.* in "([^"]+)/c(?:/[0-9/]*)?".*[Dd]igest mismatch', str(error)):
        return CHANGED.format(name=digest[1])
    return " ".join(f"it cannot be read ({error})".split())


def checksums(arrays: dict[str, jax.Array], by_layer: bool = False) -> dict[str, int]:
    """A 32-bit checksum of each array's bits and shape, the same on every mesh; no change of a single element escapes it.

    Each device reads what it has, and sums alone are exchanged. On CPUs the bits of an array are stored before they are summed:
    with ``by_layer`` those of one layer of a stack at a time.
    """
    sums = (_checksums_by_layer if by_layer else _checksums)(arrays)
    return {name: int(value) for name, value in jax.device_get(sums).items()}


def _crc(metadata: dict) -> int:
    plain = {name: value for name, value in metadata.items() if name != SEAL}
    return zlib.crc32(json.dumps(plain, sort_keys=True).encode())


@jax.jit
def _checksums(arrays: dict[str, jax.Array]) -> dict[str, jax.Array]:
    return jax.tree.map(lambda x: part_checksum(_plain(x), [0] * _plain(x).ndim), arrays)


@jax.jit
def _checksums_by_layer(arrays: dict[str, jax.Array]) -> dict[str, jax.Array]:
    def checksum(x: jax.Array) -> jax.Array:
        if x.ndim < 3:
            return part_checksum(x, [0] * x.ndim)
        layers = jnp.arange(len(x), dtype=jnp.uint32)
        sums = jax.lax.map(lambda layer: part_checksum(layer[1], [0] * (x.ndim - 1), layer[0]), (layers, x))
        return jnp.sum(sums, dtype=jnp.uint32)

    return jax.tree.map(lambda x: checksum(_plain(x)), arrays)


def _plain(x: jax.Array) -> jax.Array:
    """``x``, or the numbers of a key."""
    return jax.random.key_data(x) if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key) else x


def part_checksum(x: jax.Array, starts: Sequence[jax.Array | int], place: jax.Array | int = 0) -> jax.Array:
    """u32[]: the sum of the elements' bits, each times an odd number that its place gives, modulo 2^32.

    ``x`` is the part of an array that begins at ``starts``; the sums of its parts make up that of an array. ``place`` is that along
    the axes before those of ``x``.
    """
    bits = jax.lax.bitcast_convert_type(x, f"uint{8 * x.dtype.itemsize}").astype(jnp.uint32)
    place = jnp.full(x.shape, place, jnp.uint32)
    for axis, start in enumerate(starts):
        index = jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis) + jnp.asarray(start, jnp.uint32)
        place = place * MULTIPLIER + index
    return jnp.sum(bits * (2 * place + 1), dtype=jnp.uint32)
