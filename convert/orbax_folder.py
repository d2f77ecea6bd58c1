"""Our own checkpoints, read and written a weight at a time: Orbax's files, without a model or a training state in memory."""

import math
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import jax
import numpy as np
import tensorstore
from jax.sharding import Mesh, NamedSharding
from orbax.checkpoint import v1 as ocp

from convert.files import Scratch, copy_into, writing
from convert.sources import VQ_PATH, Source, kinds_of, layers_of, vq_row, vq_sizes
from convert.table import ROWS, Index, Row, groups, shape_of, sizes_of
from lumina_jax.config import Experiment, ModelConfig
from lumina_jax.errors import InputError
from lumina_jax.progress import ProgressDisplay
from lumina_jax.sharding import STORE, spec
from lumina_jax.train.checkpoint import EXPERIMENT, STATE, WEIGHTS, newest, read_experiment

FIRST = "checkpoints/0"
"""Where an imported checkpoint lies in its folder: as a run's own, after no steps."""
ORIGIN = "origin"
"""Under this key of a checkpoint's metadata stands where its weights came from."""
BATCH_BYTES = 1 << 28
"""Weights are written together up to this size."""

Read = Callable[[Row, int, Index], np.ndarray]


class Ours:
    """A run's folder, one checkpoint of it, or what ``run.py convert import`` wrote."""

    layout = "ours"

    def __init__(self, folder: Path):
        self.checkpoint = newest(folder)
        self.folder = folder
        stored, said = _contents(self.checkpoint)
        self.experiment: Experiment = read_experiment(self.checkpoint)
        self.cfg: ModelConfig = self.experiment.model
        self.settings: dict = said.get(ORIGIN, {})
        self.training_state = sorted(name for name in stored if not name.startswith((WEIGHTS, VQ_PATH)))
        encoder = {name.removeprefix(VQ_PATH): at.shape for name, at in stored.items() if name.startswith(VQ_PATH)}
        self.rows = (*ROWS, *(vq_row(name, len(shape)) for name, shape in encoder.items()))
        self.sizes = {row.path: sizes_of(self.cfg, row) for row in ROWS} | vq_sizes(encoder)
        self._check(stored)
        self.dtypes = {row.path: np.dtype(stored[_stored(row)].dtype) for row in self.rows}
        self.kinds = kinds_of(self.dtypes)
        self._row, self._store, self._scratch = None, None, Scratch()

    def read(self, row: Row, layer: int, index: Index) -> np.ndarray:
        where = tuple(index.get(letter, slice(None)) for letter, *_ in groups(row.ours))
        try:
            if self._row is not row:
                self._row, self._store = row, _open(self.checkpoint, _stored(row))
            piece = self._store[(layer, *where) if row.per_layer else where]
            self._scratch.reset(math.prod(piece.shape) * self.dtypes[row.path].itemsize)
            array = self._scratch.take(piece.shape, self.dtypes[row.path])
            tensorstore.array(array, dtype=self._store.dtype).write(piece).result()
        except ValueError as error:
            what = f"{_stored(row)} in {self.checkpoint}"
            raise InputError(f"{what} is damaged or cut short ({error}); copy or write it again") from None
        return array

    def _check(self, stored: dict) -> None:
        wrong = [
            f"{_stored(row)} {list(stored[_stored(row)].shape) if _stored(row) in stored else 'absent'}"
            for row in ROWS
            if _stored(row) not in stored or tuple(stored[_stored(row)].shape) != _stacked(row, self)
        ]
        known = {_stored(row) for row in self.rows}
        unknown = [name for name in stored if name.startswith(WEIGHTS) and name not in known]
        if wrong or unknown:
            raise InputError(
                f"{self.checkpoint} does not hold the model its experiment tells of: {'; '.join((wrong + unknown)[:8])}"
            )


def _contents(checkpoint: Path) -> tuple[dict, dict]:
    """(What is stored, {name: shape and dtype}; what else the checkpoint says of itself). Raises ValueError if unreadable."""
    try:
        found = ocp.checkpointables_metadata(checkpoint)
    except ValueError:
        found = None
    if not found or not found.metadata.get(STATE) or EXPERIMENT not in found.custom_metadata:
        raise InputError(
            f"{checkpoint} does not say what it holds: it is damaged or incomplete; copy or write it again"
        )
    return found.metadata[STATE], found.custom_metadata


def stack(
    source: Source, row: Row, read: Read, dtype: np.dtype, mesh: Mesh, scratch: Scratch | None = None
) -> jax.Array:
    """All layers of ``row`` as one array of ``dtype``, placed on ``mesh`` by the storage rules.

    Each process reads only the parts of its own devices, one layer at a time, into ``scratch`` (:func:`local_bytes` of it) or
    fresh memory. On CPU that memory is the array: a scratch must not be reset before the array is done with.
    """
    axes, shape = groups(row.ours), _stacked(row, source)
    scratch = scratch or Scratch(local_bytes(source, row, dtype, mesh))

    def local(where: tuple[slice, ...]) -> np.ndarray:
        part = scratch.take(tuple(len(range(n)[at]) for n, at in zip(shape, where, strict=True)), dtype)
        # A head's numbers stay together: only single letters are ever cut.
        cuts = zip(axes, where[-len(axes) :], strict=True)
        index = {axis[0]: at for axis, at in cuts if len(axis) == 1}
        for layer in layers_of(source, row):
            copy_into(part[layer] if row.per_layer else part, read(row, layer, index))
        return part

    return jax.make_array_from_callback(shape, _place(row, shape, mesh), local)


def local_bytes(source: Source, row: Row, dtype: np.dtype, mesh: Mesh) -> int:
    """What the parts of ``row`` on the devices of this process take."""
    shape = _stacked(row, source)
    place = _place(row, shape, mesh)
    size = math.prod(place.shard_shape(shape)) * dtype.itemsize
    return len(place.addressable_devices) * Scratch.footprint(size)


def _place(row: Row, shape: tuple[int, ...], mesh: Mesh) -> NamedSharding:
    letters = "".join(axis[0] if len(axis) == 1 else "K" for axis in groups(row.ours))
    return NamedSharding(mesh, spec(letters, shape, {} if row.path.startswith(VQ_PATH) else STORE, mesh))


def write_ours(
    folder: Path,
    source: Source,
    read: Read,
    dtypes: dict[str, np.dtype],
    mesh: Mesh,
    metadata: dict,
    meter: ProgressDisplay,
) -> None:
    """Writes every weight of ``source`` into an Orbax checkpoint in ``folder``; all processes of the mesh call this.

    At most one large stacked weight is being read while the one before it is being written.
    """
    target = folder.absolute() / FIRST
    target.parent.mkdir(parents=True, exist_ok=True)
    context = ocp.Context()
    context.array.saving.use_compression = False  # so that parts of an array can be read back
    context.array.saving.ocdbt_target_data_file_size = 0  # else arrays of over 2 GB are copied before they are written
    batches = _batches(source, dtypes)
    most = max(sum(local_bytes(source, row, dtypes[row.path], mesh) for row in rows) for rows in batches)
    saving, spaces = None, (Scratch(most), Scratch(most))
    try:
        for number, rows in enumerate(batches):
            space = spaces[number % 2]
            space.reset()
            arrays = {_stored(row): stack(source, row, read, dtypes[row.path], mesh, space) for row in rows}
            jax.block_until_ready(arrays)
            with writing(folder), context:
                if saving:
                    saving.result()
                saving = ocp.partial.save_async(target, arrays, custom_metadata=metadata)
            meter.advance(sum(array.nbytes for array in arrays.values()))
        with writing(folder):
            saving.result()
            ocp.partial.finalize(target)
    except BaseException:
        if saving:
            with suppress(Exception):  # the first error is what counts, once nothing writes into the folder any more
                saving.result()
        raise


def _batches(source: Source, dtypes: dict[str, np.dtype]) -> list[list[Row]]:
    """The rows in order, small ones together: every save has its price."""
    batches, size = [[]], 0
    for row in source.rows:
        nbytes = math.prod(_stacked(row, source)) * dtypes[row.path].itemsize
        if batches[-1] and size + nbytes > BATCH_BYTES:
            batches.append([])
            size = 0
        batches[-1].append(row)
        size += nbytes
    return batches


def _stored(row: Row) -> str:
    """The name of a weight in our checkpoints."""
    return row.path if row.path.startswith(VQ_PATH) else WEIGHTS + row.path


def _stacked(row: Row, source: Source) -> tuple[int, ...]:
    return ((source.cfg.layers,) if row.per_layer else ()) + shape_of(row.ours, source.sizes[row.path])


def _open(checkpoint: Path, name: str) -> tensorstore.TensorStore:
    """One array of an Orbax checkpoint, mapped, to be read in parts; Orbax itself reads whole arrays only."""
    files = {"driver": "ocdbt", "base": f"file://{checkpoint / STATE}/", "path": f"{name}/"}
    mapped = {"file_io_mode": {"mode": "memmap"}}
    # What is not there shall not read as zeros.
    store = {"driver": "zarr3", "kvstore": files, "context": mapped, "fill_missing_data_reads": False}
    return tensorstore.open(store, open=True, read=True).result()
