"""Orbax checkpoints, lumina_jax's own layout ("ours"), read and written a weight at a time without a model in memory."""

import math
from contextlib import suppress
from pathlib import Path

import jax
import numpy as np
import tensorstore
from etils import epath
from jax.sharding import Mesh, NamedSharding
from orbax.checkpoint import v1 as ocp

from convert.buffers import Scratch, copy_into
from convert.errors import field_errors, write_errors
from convert.sources import VQ_PATH, Checkpoint, Read, dtype_examples, layers_of, vq_rows, vq_sizes
from convert.table import ROWS, Index, WeightRow, axis_groups, shape_of, sizes_of
from lumina_jax.config import Experiment, ModelConfig
from lumina_jax.errors import InputError
from lumina_jax.places import Place, absolute
from lumina_jax.progress import ProgressDisplay
from lumina_jax.sharding import STORE, spec
from lumina_jax.train.checkpoint import EXPERIMENT, WEIGHTS, newest, read_experiment
from lumina_jax.train.chunks import cut_axes, saving_context
from lumina_jax.train.integrity import STATE, check_folder, checksums, open_array, sealed

IMPORTED = "checkpoints/0"
"""Where an imported checkpoint is in its folder: where a run's checkpoint after 0 steps would be."""
ORIGIN = "origin"
"""Key of a checkpoint's metadata under which it is recorded where the weights came from."""
ORBAX_STORES = ("gs", "s3")
BATCH_BYTES = 1 << 28
"""Consecutive weights are saved together up to this size."""


class OrbaxSource:
    """A run's folder (its newest checkpoint is read), a single checkpoint, or what ``run.py convert import`` wrote."""

    layout = "ours"
    vq = None

    def __init__(self, folder: Place):
        self.checkpoint = newest(orbax_address(folder))
        self.folder = folder
        stored, metadata = _contents(self.checkpoint)
        with field_errors(self.checkpoint):
            self.experiment: Experiment = read_experiment(self.checkpoint)
        self.cfg: ModelConfig = self.experiment.model
        self.settings: dict = metadata.get(ORIGIN, {})
        self.training_state = sorted(name for name in stored if not name.startswith((WEIGHTS, VQ_PATH)))
        encoder = {name.removeprefix(VQ_PATH): info.shape for name, info in stored.items() if name.startswith(VQ_PATH)}
        self.rows = (*ROWS, *vq_rows(encoder))
        self.sizes = {row.path: sizes_of(self.cfg, row) for row in ROWS} | vq_sizes(encoder)
        self._check(stored)
        self.dtypes = {row.path: np.dtype(stored[_name(row)].dtype) for row in self.rows}
        self.dtype_examples = dtype_examples(self.dtypes)
        self._row, self._store, self._scratch = None, None, Scratch()

    def read(self, row: WeightRow, layer: int, index: Index) -> np.ndarray:
        slices = tuple(index.get(letter, slice(None)) for letter, *_ in axis_groups(row.axes))
        try:
            if self._row is not row:
                self._row, self._store = row, open_array(self.checkpoint, _name(row), file_io_mode={"mode": "memmap"})
            part = self._store[(layer, *slices) if row.per_layer else slices]
            self._scratch.reset(math.prod(part.shape) * self.dtypes[row.path].itemsize)
            array = self._scratch.take(part.shape, self.dtypes[row.path])
            tensorstore.array(array, dtype=self._store.dtype).write(part).result()
        except ValueError as error:  # tensorstore's error for whatever it cannot read
            weight = f"{_name(row)} in {self.checkpoint}"
            raise InputError(f"{weight} is damaged or cut short ({error}); copy or write it again") from None
        return array

    def _check(self, stored: dict) -> None:
        """Raises InputError unless the weights are exactly those of the experiment's model."""
        expected = {_name(row): _stacked_shape(row, self) for row in ROWS}
        shapes = {name: tuple(info.shape) for name, info in stored.items() if name.startswith(WEIGHTS)}
        if wrong := [name for name in expected | shapes if expected.get(name) != shapes.get(name)]:
            names = [f"{name} {list(shapes[name]) if name in shapes else 'absent'}" for name in wrong[:8]]
            raise InputError(
                f"{self.checkpoint} does not hold the model that its experiment describes: {'; '.join(names)}; "
                "copy or write it again"
            )


def orbax_address(folder: Place) -> str:
    """``folder`` as Orbax is told it: an absolute path, or a URL. Raises InputError for a store that Orbax does not know."""
    if not isinstance(folder, Path) and folder.protocol not in ORBAX_STORES:
        known = ", ".join(f"{scheme}://" for scheme in ORBAX_STORES)
        raise InputError(
            f"{folder}: checkpoints are read and written by Orbax, on a disk or on {known}; give one of these"
        )
    return str(absolute(folder))


def _contents(checkpoint: epath.Path) -> tuple[dict, dict]:
    """({name: shape and dtype} of the stored arrays, the checkpoint's metadata). Raises InputError if unreadable."""
    unreadable = InputError(f"{checkpoint} does not say what it holds: damaged or incomplete; copy or write it again")
    try:
        contents = ocp.checkpointables_metadata(checkpoint)
        stored, metadata = contents.metadata[STATE], contents.custom_metadata
    except Exception as error:  # damaged metadata makes Orbax raise errors of any kind
        raise unreadable from error
    if not stored or not metadata or EXPERIMENT not in metadata:
        raise unreadable
    return stored, metadata


def stack(
    source: Checkpoint, row: WeightRow, read: Read, dtype: np.dtype, mesh: Mesh, scratch: Scratch | None = None
) -> jax.Array:
    """All layers of ``row`` as one array of ``dtype``, placed on ``mesh`` by the storage rules.

    Each process reads only the parts of its own devices, one layer at a time, which it fetches once for all of them, into
    ``scratch`` (:func:`local_bytes` of it) or fresh memory. On CPU that memory becomes the array: a scratch must not be reset while
    the array is in use.
    """
    axes, shape = axis_groups(row.axes), _stacked_shape(row, source)
    scratch = scratch or Scratch(local_bytes(source, row, dtype, mesh))
    sharding = _sharding(row, shape, mesh)
    parts: list[tuple[tuple[slice, ...], np.ndarray]] = []
    indices = list(sharding.addressable_devices_indices_map(shape).values())
    for slices in indices[:1] if sharding.is_fully_replicated else indices:
        sizes = tuple(len(range(size)[cut]) for size, cut in zip(shape, slices, strict=True))
        parts.append((slices, scratch.take(sizes, dtype)))
    for layer in layers_of(source, row):
        for slices, array in parts:
            # The numbers of a head stay together: only axes of a single letter are ever sharded.
            cuts = zip(axes, slices[-len(axes) :], strict=True)
            index = {axis[0]: cut for axis, cut in cuts if len(axis) == 1}
            copy_into(array[layer] if row.per_layer else array, read(row, layer, index))

    def local(slices: tuple[slice, ...]) -> np.ndarray:
        return parts.pop(next(number for number, (cut, _) in enumerate(parts) if cut == slices))[1]

    return jax.make_array_from_callback(shape, sharding, local)


def stacked_form(source: Checkpoint, row: WeightRow, dtype: np.dtype, mesh: Mesh) -> jax.ShapeDtypeStruct:
    """The shape, dtype and placement of what :func:`stack` makes; nothing is read."""
    shape = _stacked_shape(row, source)
    return jax.ShapeDtypeStruct(shape, dtype, sharding=_sharding(row, shape, mesh))


def local_bytes(source: Checkpoint, row: WeightRow, dtype: np.dtype, mesh: Mesh) -> int:
    """Bytes that the parts of ``row`` on the devices of this process take."""
    shape = _stacked_shape(row, source)
    sharding = _sharding(row, shape, mesh)
    size = math.prod(sharding.shard_shape(shape)) * dtype.itemsize
    return len(sharding.addressable_devices) * Scratch.footprint(size)


def _sharding(row: WeightRow, shape: tuple[int, ...], mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, spec(_letters(row), shape, {} if row.path.startswith(VQ_PATH) else STORE, mesh))


def _letters(row: WeightRow) -> str:
    return "".join(axis[0] if len(axis) == 1 else "K" for axis in axis_groups(row.axes))


def _cut_axes(row: WeightRow, source: Checkpoint) -> tuple[int, ...]:
    """The axes along which a weight is cut into chunks; the VQ encoder's, which nobody reads in parts, are left whole."""
    return () if row.path.startswith(VQ_PATH) else cut_axes(_letters(row), len(_stacked_shape(row, source)))


def write_orbax(
    folder: Place,
    source: Checkpoint,
    read: Read,
    dtypes: dict[str, np.dtype],
    mesh: Mesh,
    metadata: dict,
    progress: ProgressDisplay,
) -> None:
    """Writes every weight of ``source`` into an Orbax checkpoint in ``folder``; all processes of the mesh call this.

    At most one large stacked weight is being read while the one before it is being written. Raises StorageError, and InputError
    for a name of ``folder`` that Orbax cannot write to.
    """
    checkpoint = epath.Path(orbax_address(folder)) / IMPORTED
    check_folder(checkpoint)
    if isinstance(folder, Path):
        checkpoint.parent.mkdir(parents=True, exist_ok=True)
    context = saving_context({_name(row): _cut_axes(row, source) for row in source.rows})
    context.array.saving.ocdbt_target_data_file_size = 0  # else arrays of over 2 GB are copied before they are written
    if not isinstance(folder, Path):  # Orbax saves in parts only what it renames in the end: copies within a store
        context.atomicity.mode = ocp.options.AtomicityMode.ATOMIC_RENAME
    batches = _batches(source, dtypes)
    largest = max(sum(local_bytes(source, row, dtypes[row.path], mesh) for row in rows) for rows in batches)
    saving, scratches, sums = None, (Scratch(largest), Scratch(largest)), {}
    try:
        for number, rows in enumerate(batches):
            scratch = scratches[number % 2]
            scratch.reset()
            arrays = {_name(row): stack(source, row, read, dtypes[row.path], mesh, scratch) for row in rows}
            sums |= checksums(arrays, by_layer=True)
            told = sealed(metadata, sums) if rows is batches[-1] else metadata
            with write_errors(folder, ValueError, RuntimeError), context:
                if saving:
                    saving.result()
                saving = ocp.partial.save_async(checkpoint, arrays, custom_metadata=told)
            progress.advance(sum(array.nbytes for array in arrays.values()))
        with write_errors(folder, ValueError, RuntimeError):
            saving.result()
            ocp.partial.finalize(checkpoint)
    except BaseException:
        if saving:
            with suppress(Exception):  # wait until nothing writes into the folder, and report the first error
                saving.result()
        raise


def _batches(source: Checkpoint, dtypes: dict[str, np.dtype]) -> list[list[WeightRow]]:
    """The rows in order, small ones grouped, because every save has a fixed cost."""
    batches, size = [[]], 0
    for row in source.rows:
        nbytes = math.prod(_stacked_shape(row, source)) * dtypes[row.path].itemsize
        if batches[-1] and size + nbytes > BATCH_BYTES:
            batches.append([])
            size = 0
        batches[-1].append(row)
        size += nbytes
    return batches


def _name(row: WeightRow) -> str:
    """The name of a weight in an Orbax checkpoint."""
    return row.path if row.path.startswith(VQ_PATH) else WEIGHTS + row.path


def _stacked_shape(row: WeightRow, source: Checkpoint) -> tuple[int, ...]:
    return ((source.cfg.layers,) if row.per_layer else ()) + shape_of(row.axes, source.sizes[row.path])
