"""Checkpoints: ``{path: array}`` in Orbax, without framework objects, restored onto any mesh.

Besides the state, resuming needs the step alone: the data order is a pure function of (seed, step).
"""

from pathlib import Path

import jax
from flax import nnx
from jax.experimental import multihost_utils
from orbax.checkpoint import v1 as ocp

from lumina_jax.config import Experiment, MeshConfig, ModelConfig, from_dict, to_dict
from lumina_jax.errors import InputError, MissingFileError
from lumina_jax.model.chameleon import Chameleon
from lumina_jax.sharding import make_mesh, shardings
from lumina_jax.train.step import TrainState, with_shardings

FOLDER = "checkpoints"
STATE = "state"
WEIGHTS = "model/"
EXPERIMENT = "experiment"
"""Key in a checkpoint's metadata of the experiment that wrote it."""
COMMITTED = "commit_success.txt"
"""The file that Orbax writes last; a folder without it is a write or a copy that never finished."""


def flatten(tree) -> dict[str, jax.Array]:
    """A tree -> {path: array}, with paths such as ``model/blocks/mlp/up``."""
    return {_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def unflatten(like, arrays: dict[str, jax.Array]):
    """The inverse of :func:`flatten`; ``like`` is a tree of the same structure."""
    return jax.tree_util.tree_map_with_path(lambda path, _: arrays[_name(path)], like)


def _name(path) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/").removesuffix("/value")


class Saver:
    """Saves and restores the checkpoints of one run, ``cfg.out``/checkpoints/<step>; saving does not block the training loop.

    Interrupted writes never count: Orbax renames a checkpoint when it is complete, and a numbered folder without
    :data:`COMMITTED` is renamed to <step>.unfinished, since Orbax would take it for a checkpoint.
    """

    def __init__(self, cfg: Experiment):
        self._cfg = cfg
        self._folder = Path(cfg.out).absolute() / FOLDER
        _rename_unfinished(self._folder)
        with _uncompressed():
            self._checkpointer = ocp.training.Checkpointer(
                self._folder,
                preservation_policy=ocp.training.preservation_policies.LatestN(cfg.keep),
                cleanup_tmp_directories=True,
            )

    def save(self, step: int, state: TrainState) -> None:
        """Saves ``state``, which is that after ``step`` steps, in the background."""
        with _uncompressed():
            self._checkpointer.save_checkpointables_async(
                step, {STATE: flatten(state)}, force=True, custom_metadata={EXPERIMENT: to_dict(self._cfg)}
            )

    def restore(self, shapes: TrainState) -> tuple[int, TrainState] | None:
        """(steps done, state) of the newest complete checkpoint, or None when there is none.

        ``shapes`` gives the dtype and sharding of every array. Raises InputError when the checkpoint belongs to another experiment,
        naming the fields that differ.
        """
        checkpoint = next(filter(_is_complete, _step_folders(self._folder)), None)
        if checkpoint is None:
            return None
        self._check_same(read_experiment(checkpoint))
        arrays = ocp.load_checkpointables(checkpoint, {STATE: flatten(shapes)})[STATE]
        return int(checkpoint.name), unflatten(shapes, arrays)

    def close(self) -> None:
        """Waits until all checkpoints are on disk."""
        self._checkpointer.close()

    def _check_same(self, saved: Experiment) -> None:
        """On resuming, paths and placement may differ; fields that change what is computed may not."""
        old, new = _result_fields(saved), _result_fields(self._cfg)
        changed = ", ".join(f"{name} ({old[name]} there, {new[name]} here)" for name in new if old[name] != new[name])
        if changed:
            raise InputError(
                f"{self._folder} holds a run with another {changed}; give this run its own out=FOLDER, "
                "or delete that folder to start again"
            )


def newest(folder: Path | str) -> Path:
    """The newest complete checkpoint of the run folder ``folder``, or ``folder`` itself when it is a checkpoint.

    Raises MissingFileError when there is none.
    """
    folder = Path(folder).absolute()
    for checkpoint in (folder, *_step_folders(folder / FOLDER)):
        if _is_complete(checkpoint):
            return checkpoint
    raise MissingFileError(f"{folder} holds no checkpoint; expected {folder / FOLDER}/<step>, as run.py train writes")


def read_experiment(checkpoint: Path) -> Experiment:
    """The experiment that wrote ``checkpoint``. Raises InputError when its metadata has none."""
    metadata = ocp.checkpointables_metadata(checkpoint).custom_metadata or {}
    if EXPERIMENT not in metadata:
        raise InputError(f"{checkpoint} does not say which experiment wrote it; it is not a checkpoint of run.py")
    return from_dict(Experiment, metadata[EXPERIMENT])


def load_weights(checkpoint: Path, shapes: Chameleon) -> Chameleon:
    """Reads the weights alone of a checkpoint, with the dtypes and shardings of ``shapes``.

    Raises InputError listing the weights whose shape differs or that are absent.
    """
    stored = ocp.checkpointables_metadata(checkpoint).metadata[STATE]
    expected = {WEIGHTS + name: shape for name, shape in flatten(shapes).items()}
    mismatches = [
        f"{name.removeprefix(WEIGHTS)} {tuple(stored[name].shape) if name in stored else 'absent'} (here {shape.shape})"
        for name, shape in expected.items()
        if name not in stored or tuple(stored[name].shape) != shape.shape
    ]
    if mismatches:
        raise InputError(f"{checkpoint} holds another model: {'; '.join(mismatches[:5])}; make model.* agree with it")
    context = ocp.Context()
    context.pytree.loading.partial_load = True  # some of the checkpoint's arrays
    with context:
        arrays = ocp.load_checkpointables(checkpoint, {STATE: expected})[STATE]
    return unflatten(shapes, {name.removeprefix(WEIGHTS): array for name, array in arrays.items()})


def restore_model(checkpoint: Path, cfg: ModelConfig) -> Chameleon:
    """The model of ``checkpoint``, without optimizer state, on the first device."""
    mesh = make_mesh(MeshConfig(fsdp=1), jax.devices()[:1])
    shapes = jax.eval_shape(lambda: Chameleon(cfg, nnx.Rngs(0)))
    return load_weights(checkpoint, with_shardings(shapes, shardings(shapes, mesh)))


def _step_folders(folder: Path) -> list[Path]:
    """The folders in ``folder`` whose name is a step, newest first."""
    return sorted((path for path in folder.glob("*") if path.name.isdigit()), key=lambda p: int(p.name), reverse=True)


def _is_complete(folder: Path) -> bool:
    return (folder / COMMITTED).is_file()


def _rename_unfinished(folder: Path) -> None:
    if jax.process_index() == 0:
        for path in _step_folders(folder):
            if not _is_complete(path):
                path.rename(path.with_name(f"{path.name}.unfinished"))
    multihost_utils.sync_global_devices(f"unfinished writes in {folder} renamed")


def _result_fields(cfg: Experiment) -> dict[str, object]:
    """The fields that change the numbers a run computes, by dotted name."""
    fields = {"seed": cfg.seed, "mesh.compute": cfg.mesh.compute, "mesh.dropout_rng": cfg.mesh.dropout_rng}
    for group in ("model", "optim", "data"):
        fields |= {f"{group}.{name}": value for name, value in vars(getattr(cfg, group)).items()}
    for name in ("path", "tokenizer", "threads", "fetchers", "fetch_seconds", "fetch_mb"):
        del fields[f"data.{name}"]
    return fields


def _uncompressed() -> ocp.Context:
    """Without compression, which saves 8% of the size of float32 weights and triples the time."""
    context = ocp.Context()
    context.array.saving.use_compression = False
    return context
