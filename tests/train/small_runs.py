"""A run's checkpoints with a state of a few numbers, for tests of what happens to the folders."""

from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
from train_parts import experiment

from lumina_jax.config import Experiment, override
from lumina_jax.sharding import make_mesh
from lumina_jax.train.checkpoint import Saver
from lumina_jax.train.step import TrainState


def small_cfg(out: Path, *changes: str) -> Experiment:
    """The tiny experiment on one device, with its folder ``out``."""
    return override(replace(experiment((1, 1, 1)), out=str(out)), changes)


def small_state(step: int) -> TrainState:
    """A state of 512 numbers and a key; ``step`` makes the numbers."""
    numbers = np.random.default_rng(step).standard_normal(512, np.float32)
    state = TrainState(np.int32(step), {"w": numbers}, {"m": 2 * numbers}, jax.random.key(step))
    return jax.device_put(state, jax.sharding.NamedSharding(_mesh(), jax.sharding.PartitionSpec()))


def _mesh() -> jax.sharding.Mesh:
    return make_mesh(experiment((1, 1, 1)).mesh, jax.devices()[:1])


def save(cfg: Experiment, *steps: int, heldout: dict[int, float] | None = None) -> None:
    """Saves the small state of each of ``steps``, with its held-out loss if there is one."""
    saver = Saver(cfg)
    for step in steps:
        saver.save(step, small_state(step), (heldout or {}).get(step))
    saver.close()


def restored(cfg: Experiment) -> int:
    """The step that ``cfg`` goes on from (0: from the start), after looking at the numbers."""
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), small_state(0))
    found = Saver(cfg).restore(shapes)
    if found is None:
        return 0
    step, state = found
    np.testing.assert_array_equal(state.model["w"], small_state(step).model["w"])
    np.testing.assert_array_equal(jax.random.key_data(state.key), jax.random.key_data(small_state(step).key))
    return step


def names(cfg: Experiment) -> list[str]:
    """What is in the folder of checkpoints."""
    return sorted(path.name for path in Path(cfg.out, "checkpoints").iterdir())


def flip(file: Path, place: int, bits: int = 1) -> None:
    """Changes ``bits`` of the byte at ``place``."""
    content = bytearray(file.read_bytes())
    content[place] ^= bits
    file.write_bytes(content)


def data_file(checkpoint: Path, state: TrainState) -> tuple[Path, int]:
    """The file of a checkpoint that holds the weights of ``state``, and where they begin."""
    numbers = np.asarray(state.model["w"]).tobytes()
    found = ((path, path.read_bytes().find(numbers)) for path in checkpoint.rglob("*") if path.is_file())
    return next((path, place) for path, place in found if place >= 0)
