"""Where arrays live: a mesh of (replica, fsdp, tensor) and two short tables from axis letters to mesh axes.

Weights are stored by STORE; activations, and the weights of the block being computed, follow COMPUTE. An axis whose letter a table
lacks is not split. A train state is stored by ZERO, which splits D over the replicas too (ZeRO-1: each replica keeps and updates
a part of the state instead of a copy). The same code runs on one CPU, eight fake devices, several processes, a pod and several
slices; only replicas communicate over the slow network between slices.
"""

import functools
import math
from collections.abc import Callable, Sequence

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from lumina_jax.batch import Batch
from lumina_jax.config import MeshConfig
from lumina_jax.errors import InputError

AXES = ("replica", "fsdp", "tensor")
ROWS = ("replica", "fsdp")
STORE = {"D": "fsdp", "H": "tensor", "N": "tensor", "F": "tensor", "V": "tensor"}
ZERO = {**STORE, "D": ("fsdp", "replica")}
COMPUTE = {"B": ROWS, "H": "tensor", "N": "tensor", "F": "tensor", "V": "tensor"}


def make_mesh(cfg: MeshConfig, devices: list[jax.Device] | None = None) -> Mesh:
    """The mesh of ``cfg`` over ``devices`` (default: all). An axis of -1 takes the devices that the others leave.

    Raises InputError when the axes do not multiply to the number of devices, or replicas do not divide over slices.
    """
    devices = jax.devices() if devices is None else devices
    shape = [cfg.replica, cfg.fsdp, cfg.tensor]
    fixed = math.prod(n for n in shape if n != -1)
    if -1 in shape and len(devices) % fixed == 0:
        shape[shape.index(-1)] = len(devices) // fixed
    if math.prod(shape) != len(devices):
        raise InputError(
            f"mesh.replica={cfg.replica}, mesh.fsdp={cfg.fsdp}, mesh.tensor={cfg.tensor} do not multiply to the "
            f"{len(devices)} devices here; set one of them to -1 to let it take what the others leave"
        )
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    if shape[0] % slices:
        raise InputError(
            f"mesh.replica={shape[0]} does not split over {slices} slices, and only replicas may cross the network "
            f"between them; make mesh.replica a multiple of {slices}"
        )
    if slices > 1:
        inside, across = (shape[0] // slices, *shape[1:]), (slices, 1, 1)
        grid = mesh_utils.create_hybrid_device_mesh(inside, across, devices, allow_split_physical_axes=True)
    else:
        grid = mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * 3)


def spec(letters: str, shape: tuple[int, ...], rules: dict, mesh: Mesh | AbstractMesh) -> P:
    """The PartitionSpec of an array whose last axes are named by ``letters``; axes stacked before them are not split.

    Raises InputError naming both letters when two claim one mesh axis, or the sizes when a dimension does not divide.
    """
    partitions, owners = [None] * (len(shape) - len(letters)), {}
    for letter, size in zip(letters, shape[len(partitions) :], strict=True):
        names = rules.get(letter, ())
        axes = tuple(name for name in ((names,) if isinstance(names, str) else names) if mesh.shape[name] > 1)
        parts = math.prod(mesh.shape[name] for name in axes)
        for name in axes:
            if name in owners:
                raise InputError(f"axes {owners[name]} and {letter} of {letters} both claim mesh axis {name!r}")
            owners[name] = letter
        if size % parts:
            replicated = ["mesh.zero1=false"] if rules is ZERO and len(axes) > 1 else []
            cures = [f"a smaller mesh.{name}" for name in axes] + replicated
            raise InputError(
                f"axis {letter} of an array {letters} has size {size}, which {parts} parts (mesh {' x '.join(axes)}) "
                f"do not divide; choose {' or '.join(cures)}"
            )
        partitions.append(axes if len(axes) > 1 else axes[0] if axes else None)
    return P(*partitions)


def shardings(tree, mesh: Mesh, rules: dict = STORE):
    """The same tree with a NamedSharding for every array: weights, and optimizer state with their letters, by ``rules``; others are
    replicated."""

    def place(node):
        if not _has_letters(node):
            return NamedSharding(mesh, P())
        if not jax.tree.leaves(node):  # a weight masked out because another optimizer updates it
            return node
        return node.replace(NamedSharding(mesh, spec(node.get_metadata()["letters"], node.shape, rules, mesh)))

    return jax.tree.map(place, tree, is_leaf=_has_letters)


def constrain(x: jax.Array, letters: str, rules: dict = COMPUTE) -> jax.Array:
    """with_sharding_constraint by ``rules`` on the mesh that is set (jax.set_mesh); without a mesh returns x itself."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return x
    return jax.lax.with_sharding_constraint(x, spec(letters, x.shape, rules, mesh))


def constrain_weights(tree, rules: dict):
    """:func:`constrain` for every weight of a tree, by its own letters."""
    return _map_weights(lambda x, letters: constrain(x, letters, rules), tree)


def for_compute(tree):
    """Weights as a block computes with them: gathered over fsdp, split over tensor (COMPUTE). Gradients are split by STORE."""
    return _map_weights(gathered, tree)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def gathered(x: jax.Array, letters: str) -> jax.Array:
    """A weight split by COMPUTE whose gradient is split by STORE: devices reduce-scatter it instead of each summing all of it."""
    return _constrain_matrix(x, letters, COMPUTE)


def _gathered_gradient(letters: str, _, g: jax.Array) -> tuple[jax.Array]:
    return (_constrain_matrix(g, letters, STORE),)


gathered.defvjp(lambda x, letters: (gathered(x, letters), None), _gathered_gradient)


def _constrain_matrix(x: jax.Array, letters: str, rules: dict) -> jax.Array:
    """:func:`constrain`, with the heads of [D H K] or [H K D] and their size as one axis.

    Products take the weights as such matrices (block.merged_product), and a part is brought to that form faster than the whole.
    """
    shape = list(x.shape)
    if len(shape) == 3 and "K" in letters:
        at = letters.index("K")
        letters, shape[at - 1 : at + 1] = letters.replace("K", ""), [shape[at - 1] * shape[at]]
    return constrain(x.reshape(shape), letters, rules).reshape(x.shape)


def per_device(run: Callable, inputs: Sequence[str | P], outputs: str | P | tuple[str | P, ...]) -> Callable:
    """shard_map of ``run``: each device runs it on its own part of every array, split by COMPUTE after its letters ("": whole).

    Without a mesh there is one part. Inside, :func:`psum`, :func:`all_gather` and :func:`psum_scatter` reach the others.
    """

    def place(letters: str | P) -> P:
        return P(*(COMPUTE.get(letter) for letter in letters)) if isinstance(letters, str) else letters

    def everywhere(*arrays):
        mesh = jax.sharding.get_abstract_mesh()
        if mesh.empty:
            return run(*arrays)
        for letters, x in zip(inputs, arrays, strict=True):
            if isinstance(letters, str):
                spec(letters, x.shape, COMPUTE, mesh)  # raises where a size does not divide
        outs = tuple(map(place, outputs)) if type(outputs) is tuple else place(outputs)
        return jax.shard_map(run, in_specs=tuple(map(place, inputs)), out_specs=outs, check_vma=False)(*arrays)

    return everywhere


def psum(x: jax.Array, axes: str | tuple[str, ...]) -> jax.Array:
    """Inside :func:`per_device`: the sum over the devices along mesh ``axes``; x without a mesh."""
    return x if jax.sharding.get_abstract_mesh().empty else jax.lax.psum(x, axes)


def pmax(x: jax.Array, axes: str | tuple[str, ...]) -> jax.Array:
    """Inside :func:`per_device`: the largest over the devices along mesh ``axes``; x without a mesh."""
    return x if jax.sharding.get_abstract_mesh().empty else jax.lax.pmax(x, axes)


def all_gather(x: jax.Array, axis: str, dim: int = 0) -> jax.Array:
    """Inside :func:`per_device`: the parts of the devices along mesh ``axis``, concatenated along ``dim``."""
    return x if axis_size(axis) == 1 else jax.lax.all_gather(x, axis, axis=dim, tiled=True)


def psum_scatter(x: jax.Array, axis: str, dim: int = 0) -> jax.Array:
    """Inside :func:`per_device`: this device's part along ``dim`` of the sum over the devices along mesh ``axis``."""
    return x if axis_size(axis) == 1 else jax.lax.psum_scatter(x, axis, scatter_dimension=dim, tiled=True)


def axis_size(axis: str) -> int:
    """The number of devices along ``axis`` of the mesh that is set; 1 without a mesh."""
    return dict(jax.sharding.get_abstract_mesh().shape).get(axis, 1)


def platform() -> str:
    """The kind of device ("tpu", "cpu", "gpu") that programs are compiled for: of the mesh that is set, else JAX's default."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return jax.default_backend() if device is None else device.platform


def device_kind() -> str:
    """The ``device_kind`` of that device: "TPU v5 lite", "cpu"."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return jax.devices()[0].device_kind if device is None else device.device_kind


def check_rows(rows: int, mesh: Mesh) -> None:
    """Raises InputError when a batch of ``rows`` does not split evenly over the mesh."""
    parts = math.prod(mesh.shape[axis] for axis in ROWS)
    if rows % parts:
        raise InputError(
            f"a batch of {rows} rows does not split over {parts} devices (mesh replica x fsdp); "
            "make data.batch / optim.accumulate a multiple of that"
        )


def data_share(mesh: Mesh, process: int) -> tuple[int, int]:
    """(h, H): ``process`` reads part h of H of every batch. Processes whose devices hold the same rows read the same part.

    That is so where a tensor axis crosses processes, which it can on a TPU slice even if it would fit into one process.
    Raises InputError when processes have some of their rows in common, but not all.
    """
    rows_of: dict[int, set[int]] = {}
    for row, devices in enumerate(mesh.devices.reshape(-1, mesh.shape["tensor"])):
        for device in devices:
            rows_of.setdefault(device.process_index, set()).add(row)
    shares = sorted({tuple(sorted(rows)) for rows in rows_of.values()})
    if sum(map(len, shares)) > len({row for share in shares for row in share}) or len(set(map(len, shares))) > 1:
        raise InputError(
            f"mesh.replica={mesh.shape['replica']}, mesh.fsdp={mesh.shape['fsdp']}, mesh.tensor={mesh.shape['tensor']} give "
            "processes rows that are partly the same; choose a mesh.tensor that divides, or is a multiple of, the devices "
            "of one process"
        )
    return shares.index(tuple(sorted(rows_of[process]))), len(shares)


def global_batch(local: Batch, mesh: Mesh) -> Batch:
    """This process's numpy rows (:func:`data_share`) -> one global batch with rows split over (replica, fsdp)."""
    rows = NamedSharding(mesh, P(ROWS))
    if jax.process_count() == 1:
        return jax.device_put(local, rows)
    return Batch(*(jax.make_array_from_process_local_data(rows, np.asarray(x)) for x in local))


def _has_letters(node: object) -> bool:
    return hasattr(node, "get_metadata")


def _map_weights(change: Callable[[jax.Array, str], jax.Array], tree):
    def convert(node):
        return node.replace(change(node[...], node.get_metadata()["letters"]))

    return jax.tree.map(convert, tree, is_leaf=_has_letters)
