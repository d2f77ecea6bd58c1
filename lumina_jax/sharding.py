"""Where arrays live: a mesh of (replica, fsdp, tensor) and two short tables from axis letters to mesh axes.

Weights and optimizer state are stored by STORE; activations, and the weights of the block at work, follow COMPUTE. A letter
in neither table is not split. The same code serves one CPU, eight fake devices, several processes and a pod.
"""

import math

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from lumina_jax.batch import Batch
from lumina_jax.config import MeshConfig

AXES = ("replica", "fsdp", "tensor")
ROWS = ("replica", "fsdp")
STORE = {"D": "fsdp", "H": "tensor", "N": "tensor", "F": "tensor", "V": "tensor"}
COMPUTE = {"B": ROWS, "H": "tensor", "N": "tensor", "F": "tensor", "V": "tensor"}


def make_mesh(cfg: MeshConfig, devices: list[jax.Device] | None = None) -> Mesh:
    """The mesh that ``cfg`` asks for over ``devices`` (default: all). An axis of -1 takes what the others leave.

    Raises ValueError when the axes do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    shape = [cfg.replica, cfg.fsdp, cfg.tensor]
    given = math.prod(n for n in shape if n != -1)
    if -1 in shape and len(devices) % given == 0:
        shape[shape.index(-1)] = len(devices) // given
    if math.prod(shape) != len(devices):
        raise ValueError(
            f"mesh.replica={cfg.replica}, mesh.fsdp={cfg.fsdp}, mesh.tensor={cfg.tensor} do not multiply to the "
            f"{len(devices)} devices here; set one of them to -1 to let it take what the others leave"
        )
    return jax.make_mesh(tuple(shape), AXES, axis_types=(AxisType.Auto,) * 3, devices=devices)


def spec(letters: str, shape: tuple[int, ...], rules: dict, mesh: Mesh | jax.sharding.AbstractMesh) -> P:
    """The placement of an array whose last axes are named by ``letters``; axes stacked before them are not split.

    Raises ValueError naming both letters when two claim one mesh axis, or the sizes when a dimension does not divide.
    """
    placed, taken = [None] * (len(shape) - len(letters)), {}
    for letter, size in zip(letters, shape[len(placed) :], strict=True):
        axis = rules.get(letter)
        parts = math.prod(mesh.shape[name] for name in ((axis,) if isinstance(axis, str) else axis or ()))
        if parts == 1:
            placed.append(None)
            continue
        if axis in taken:
            raise ValueError(f"axes {taken[axis]} and {letter} of {letters} both claim mesh axis {axis!r}")
        if size % parts:
            raise ValueError(
                f"axis {letter} of an array {letters} has size {size}, which mesh axis {axis!r} of {parts} does not "
                f"divide; choose a smaller mesh.{axis if isinstance(axis, str) else axis[-1]}"
            )
        taken[axis] = letter
        placed.append(axis)
    return P(*placed)


def shardings(tree, mesh: Mesh):
    """The same tree with a NamedSharding for every array: weights (and what is shaped like them) by STORE, the rest whole."""

    def place(node):
        if not hasattr(node, "get_metadata"):
            return NamedSharding(mesh, P())
        return node.replace(NamedSharding(mesh, spec(node.get_metadata()["letters"], node.shape, STORE, mesh)))

    return jax.tree.map(place, tree, is_leaf=lambda node: hasattr(node, "get_metadata"))


def constrain(x: jax.Array, letters: str) -> jax.Array:
    """Places an activation by COMPUTE on the mesh that is set (jax.set_mesh); without one, returns it as it is."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return x
    return jax.lax.with_sharding_constraint(x, spec(letters, x.shape, COMPUTE, mesh))


def for_compute(tree):
    """Weights as the block at work needs them: whole over fsdp, split over tensor (COMPUTE)."""

    def place(node):
        return node.replace(constrain(node[...], node.get_metadata()["letters"]))

    return jax.tree.map(place, tree, is_leaf=lambda node: hasattr(node, "get_metadata"))


def check_rows(rows: int, mesh: Mesh) -> None:
    """Raises ValueError when a batch of ``rows`` does not split evenly over the mesh, or not by processes."""
    parts = math.prod(mesh.shape[axis] for axis in ROWS)
    if rows % parts:
        raise ValueError(
            f"a batch of {rows} rows does not split over {parts} devices (mesh replica x fsdp); "
            "make data.batch / optim.accumulate a multiple of that"
        )
    if parts % jax.process_count():
        raise ValueError(
            f"{jax.process_count()} processes, each with rows of its own, do not share {parts} parts of the batch "
            "(mesh replica x fsdp) evenly; choose a smaller mesh.tensor"
        )


def global_batch(local: Batch, mesh: Mesh) -> Batch:
    """Host-local numpy rows -> one global batch, rows over (replica, fsdp)."""
    rows = NamedSharding(mesh, P(ROWS))
    if jax.process_count() == 1:
        return jax.device_put(local, rows)
    return Batch(*(jax.make_array_from_process_local_data(rows, np.asarray(part)) for part in local))
