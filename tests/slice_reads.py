"""What one of many hosts reads of a checkpoint on a store: its slices along fsdp, as Orbax restores them."""

from collections.abc import Mapping

import numpy as np
import tensorstore
from gcs_server import GcsServer
from orbax.checkpoint._src.serialization import tensorstore_utils

from lumina_jax.sharding import STORE
from lumina_jax.train.integrity import STATE


def host_reads(
    store: GcsServer,
    checkpoint: str,
    letters: Mapping[str, str],
    shapes: Mapping[str, tuple[int, ...]],
    host: int,
    hosts: int,
) -> tuple[int, int]:
    """(bytes that ``store`` sends, bytes of the slices) when host ``host`` of ``hosts`` reads its part of a checkpoint.

    ``letters`` and ``shapes`` are those of its arrays by name; one that nothing splits over fsdp is read whole.
    """
    before, share, context = store.sent, 0, tensorstore_utils.get_ts_context()
    for name, shape in shapes.items():
        spec = tensorstore_utils.ArrayReadSpec(f"{checkpoint}/{STATE}", name, use_zarr3=True, use_ocdbt=True).json
        array = tensorstore.open(spec, open=True, read=True, context=context).result()
        part = array[_cuts(letters[name], shape, host, hosts)].read().result()
        share += np.asarray(part).nbytes
    return store.sent - before, share


def _cuts(letters: str, shape: tuple[int, ...], host: int, hosts: int) -> tuple[slice, ...]:
    stacked, cuts = len(shape) - len(letters), [slice(None)] * len(shape)
    for axis, letter in enumerate(letters, stacked):
        if STORE.get(letter) == "fsdp" and shape[axis] % hosts == 0:
            size = shape[axis] // hosts
            cuts[axis] = slice(host * size, (host + 1) * size)
            break
    return tuple(cuts)
