"""Checkpoints: ``{path: array}`` in Orbax, no framework objects, restored onto any mesh.

The data order is a pure function of (seed, step), so the step is all that resuming needs besides the state.
"""

from pathlib import Path

import jax
from flax import nnx
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from orbax.checkpoint import v1 as ocp

from lumina_jax.config import Experiment, MeshConfig, ModelConfig, from_dict, to_dict
from lumina_jax.errors import InputError, MissingFileError
from lumina_jax.model.chameleon import Chameleon
from lumina_jax.sharding import make_mesh, shardings
from lumina_jax.train.step import TrainState

FOLDER = "checkpoints"
STATE = "state"
WEIGHTS = "model/"
EXPERIMENT = "experiment"
"""Under this key of a checkpoint's metadata stands the experiment that wrote it."""
COMMITTED = "commit_success.txt"
"""What Orbax writes last into a checkpoint; without it the folder is a write, or a copy, that never finished."""


def flatten(tree) -> dict[str, jax.Array]:
    """A tree -> {path: array}; paths as ``model/blocks/mlp/up``."""
    return {_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def unflatten(like, arrays: dict[str, jax.Array]):
    """The inverse of :func:`flatten` for a tree shaped as ``like``."""
    return jax.tree_util.tree_map_with_path(lambda path, _: arrays[_name(path)], like)


def _name(path) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/").removesuffix("/value")


class Saver:
    """Writes and finds the checkpoints of one run in ``cfg.out``/checkpoints, without stopping the loop.

    Interrupted writes never count: Orbax renames a checkpoint only when it is whole, and a numbered folder without its
    mark is renamed to <step>.unfinished, since Orbax would take it for a checkpoint.
    """

    def __init__(self, cfg: Experiment):
        self._cfg = cfg
        self._folder = Path(cfg.out).absolute() / FOLDER
        _set_unfinished_aside(self._folder)
        with _uncompressed():
            self._checkpointer = ocp.training.Checkpointer(
                self._folder,
                preservation_policy=ocp.training.preservation_policies.LatestN(cfg.keep),
                cleanup_tmp_directories=True,
            )

    def save(self, step: int, state: TrainState) -> None:
        """Saves ``state`` after ``step`` steps, in the background."""
        with _uncompressed():
            self._checkpointer.save_checkpointables_async(
                step, {STATE: flatten(state)}, force=True, custom_metadata={EXPERIMENT: to_dict(self._cfg)}
            )

    def restore(self, shapes: TrainState) -> tuple[int, TrainState] | None:
        """(steps done, state on the placement of ``shapes``) of the newest whole checkpoint, or None when there is none.

        Raises ValueError when it belongs to another experiment, naming the fields that differ.
        """
        whole = [folder for folder in _numbered(self._folder) if _is_whole(folder)]
        if not whole:
            return None
        self._check_same(read_experiment(whole[0]))
        arrays = ocp.load_checkpointables(whole[0], {STATE: flatten(shapes)})[STATE]
        return int(whole[0].name), unflatten(shapes, arrays)

    def close(self) -> None:
        """Waits until everything is on disk."""
        self._checkpointer.close()

    def _check_same(self, saved: Experiment) -> None:
        """Where things lie and how they are placed may change on resuming; what is computed may not."""
        old, new = _computed(saved), _computed(self._cfg)
        changed = ", ".join(f"{name} ({old[name]} there, {new[name]} here)" for name in new if old[name] != new[name])
        if changed:
            raise InputError(
                f"{self._folder} holds a run with another {changed}; give this run its own out=FOLDER, "
                "or delete that one to start again"
            )


def newest(folder: Path | str) -> Path:
    """The newest whole checkpoint under a run's folder, or ``folder`` itself when it is one; else FileNotFoundError."""
    folder = Path(folder).absolute()
    for found in (folder, *_numbered(folder / FOLDER)):
        if _is_whole(found):
            return found
    raise MissingFileError(
        f"{folder} holds no checkpoint; expected {folder / FOLDER}/<step>, as run.py train writes it"
    )


def read_experiment(checkpoint: Path) -> Experiment:
    """The experiment that wrote ``checkpoint``. Raises ValueError where it does not say."""
    metadata = ocp.checkpointables_metadata(checkpoint).custom_metadata or {}
    if EXPERIMENT not in metadata:
        raise InputError(f"{checkpoint} does not say which experiment wrote it; it is not a checkpoint of run.py")
    return from_dict(Experiment, metadata[EXPERIMENT])


def load_weights(checkpoint: Path, shapes: Chameleon) -> Chameleon:
    """Weights alone of a checkpoint, on the dtype and placement of ``shapes``; nothing else is read.

    Raises ValueError listing weights whose shape differs.
    """
    stored = ocp.checkpointables_metadata(checkpoint).metadata[STATE]
    wanted = {WEIGHTS + name: shape for name, shape in flatten(shapes).items()}
    wrong = [
        f"{name.removeprefix(WEIGHTS)} {tuple(stored[name].shape) if name in stored else 'absent'} (here {shape.shape})"
        for name, shape in wanted.items()
        if name not in stored or tuple(stored[name].shape) != shape.shape
    ]
    if wrong:
        raise InputError(f"{checkpoint} holds another model: {'; '.join(wrong[:5])}; make model.* agree with it")
    with _partial():
        arrays = ocp.load_checkpointables(checkpoint, {STATE: wanted})[STATE]
    return unflatten(shapes, {name.removeprefix(WEIGHTS): array for name, array in arrays.items()})


def restore_model(checkpoint: Path, cfg: ModelConfig, mesh: Mesh | None = None) -> Chameleon:
    """The model of ``checkpoint`` alone, on ``mesh`` (default: all of it on the first device)."""
    mesh = mesh or make_mesh(MeshConfig(fsdp=1), jax.devices()[:1])
    shapes = jax.eval_shape(lambda: Chameleon(cfg, nnx.Rngs(0)))
    places = shardings(shapes, mesh)
    placed = jax.tree.map(lambda w, s: jax.ShapeDtypeStruct(w.shape, w.dtype, sharding=s), shapes, places)
    return load_weights(checkpoint, placed)


def _numbered(folder: Path) -> list[Path]:
    """The folders of ``folder`` named by a step, latest first."""
    return sorted((path for path in folder.glob("*") if path.name.isdigit()), key=lambda p: int(p.name), reverse=True)


def _is_whole(folder: Path) -> bool:
    return (folder / COMMITTED).is_file()


def _set_unfinished_aside(folder: Path) -> None:
    if jax.process_index() == 0:
        for path in _numbered(folder):
            if not _is_whole(path):
                path.rename(path.with_name(f"{path.name}.unfinished"))
    multihost_utils.sync_global_devices(f"unfinished writes in {folder} set aside")


def _computed(cfg: Experiment) -> dict[str, object]:
    """The fields that decide what a run computes, by dotted name."""
    fields = {"seed": cfg.seed, "mesh.compute": cfg.mesh.compute, "mesh.dropout_rng": cfg.mesh.dropout_rng}
    for group in ("model", "optim", "data"):
        fields |= {f"{group}.{name}": value for name, value in vars(getattr(cfg, group)).items()}
    for name in ("data.path", "data.tokenizer", "data.threads"):
        del fields[name]
    return fields


def _uncompressed() -> ocp.Context:
    """Compression saves 8% of float32 weights and triples the time."""
    context = ocp.Context()
    context.array.saving.use_compression = False
    return context


def _partial() -> ocp.Context:
    """Reading some of a checkpoint's arrays."""
    context = ocp.Context()
    context.pytree.loading.partial_load = True
    return context
