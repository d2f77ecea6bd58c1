"""Checkpoints: ``{path: array}`` in Orbax, without framework objects, restored onto any mesh.

Besides the state, resuming needs the step alone: the data order is a pure function of (seed, step).
"""

from collections.abc import Callable
from contextlib import nullcontext, suppress
from functools import cached_property, partial

import jax
from etils import epath
from flax import nnx
from jax.experimental import multihost_utils
from orbax.checkpoint import v1 as ocp

from lumina_jax.cluster.agreement import first_text
from lumina_jax.config import Experiment, MeshConfig, ModelConfig, to_dict
from lumina_jax.errors import InputError, MissingFileError
from lumina_jax.history import Folders, from_json, to_json
from lumina_jax.model.chameleon import Chameleon
from lumina_jax.sharding import make_mesh, shardings
from lumina_jax.train.background_save import BackgroundSave
from lumina_jax.train.carry import carried, stored_shapes
from lumina_jax.train.chunks import axes_of, saving_context
from lumina_jax.train.continuing import continuation
from lumina_jax.train.integrity import (
    STATE,
    UNFINISHED,
    changed,
    check_folder,
    checksums,
    damage,
    is_complete,
    read_error,
    sealed,
)
from lumina_jax.train.keeping import HELDOUT, preservation
from lumina_jax.train.run_folder import (
    EXPERIMENT,
    FOLDER,
    agreed_steps,
    folder_at,
    none_whole,
    read_experiment,
    set_aside,
    step_folders,
    unseen,
    warn,
)
from lumina_jax.train.step import TrainState, with_shardings
from lumina_jax.train.store_checkpoints import write_in_place

WEIGHTS = "model/"
HISTORY, FOLDERS = "history", "data_folders"
"""Keys in a checkpoint's metadata: of the changes of its run, and of the fingerprints of its token folders."""


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

    Interrupted writes never count: Orbax renames or marks a checkpoint when it is complete. A numbered folder that is not whole (a
    copy that was cut, a file that is gone, a number that changed on disk) is passed over; :meth:`restore` renames it and says so.
    ``may_write`` is called before each write, and raises where the folder is no longer this run's.

    Each checkpoint carries the ``history`` of its run and the fingerprints ``folders`` of its token folders; :meth:`restore` sets
    ``history``, and ``change`` to what changes with this start (None: nothing).
    """

    def __init__(self, cfg: Experiment, may_write: Callable[[], None] = lambda: None, folders: Folders = ()):
        self._cfg, self._may_write = cfg, may_write
        self.folders, self.history, self.change = folders, (), None
        self._folder = folder_at(cfg.out) / FOLDER
        self._background = BackgroundSave(self._folder)
        check_folder(self._folder)

    @cached_property
    def _checkpointer(self) -> ocp.training.Checkpointer:
        """Opened by the first save: it takes all numbered folders that it finds for checkpoints."""
        return ocp.training.Checkpointer(
            self._folder, preservation_policy=preservation(self._cfg), cleanup_tmp_directories=True
        )

    def save(self, step: int, state: TrainState, heldout: float | None = None) -> None:
        """Saves ``state``, which is that after ``step`` steps, in the background, with its ``heldout`` loss, if it was measured.

        Waits for the save before. Raises StorageError when that failed, or when this one cannot begin.
        """
        self.check(wait=True)
        self._may_write()
        arrays = flatten(state)
        metadata = {EXPERIMENT: to_dict(self._cfg), HISTORY: to_json(self.history), FOLDERS: list(self.folders)}
        metadata = sealed(metadata, checksums(arrays))
        metrics = None if heldout is None else {HELDOUT: heldout}
        options = dict(force=True, metrics=metrics, custom_metadata=metadata)
        context = saving_context(axes_of(state))
        write_in_place(context, self._folder)
        with context:
            save = partial(self._checkpointer.save_checkpointables_async, step, {STATE: arrays}, **options)
            self._background.begin(step, save)

    @property
    def idle(self) -> bool:
        """Whether no save is under way in the background."""
        return self._background.idle

    def check(self, wait: bool = False) -> None:
        """Raises StorageError when the save in the background failed, or the folder is lost; takes no time.

        With ``wait`` waits for the end of that save.
        """
        if not wait:
            self._may_write()
        self._background.check(wait)

    def restore(self, shapes: TrainState) -> tuple[int, TrainState] | None:
        """(steps done, state) of the checkpoint that ``cfg.resume`` says, the same in all processes; None without any.

        Process 0 chooses, and nothing is read before all processes see its choice. ``shapes`` gives the dtype and sharding of every
        array. Newer ones that are not whole are renamed to <step>.unfinished or <step>.damaged, those behind the step that
        ``cfg.resume`` names to <step>.unused, with a line for each. Raises InputError when the checkpoint belongs to another
        experiment, naming the fields that differ, when none of several is whole, and where ``cfg.resume`` is strict for any damage.
        """
        passed_over, point = {}, self._cfg.resume.point
        self.history, self.change = (), None
        for step in agreed_steps(self._folder, point):
            checkpoint = self._folder / str(step)
            reason, state = self._load(checkpoint, shapes)
            if not reason:
                self._set_aside(passed_over, step)
                return step, state
            if point == "strict" and reason != UNFINISHED:
                raise InputError(
                    f"{checkpoint} is not whole: {reason}; copy it again from where it is whole, or give resume=newest, "
                    "which renames it and goes on from the next one that is whole"
                )
            passed_over[checkpoint] = reason
        if point.isdigit() or len(passed_over) > 1 or set(passed_over.values()) - {UNFINISHED}:
            raise none_whole(self._folder, passed_over)
        self._set_aside(passed_over, 0)
        return None

    def close(self) -> None:
        """Waits until all checkpoints are on disk. Raises StorageError when the last one failed."""
        try:
            self.check(wait=True)
        finally:
            self._close_checkpointer()

    def _close_checkpointer(self) -> None:
        """Until the next save, which finds what is in the folder then."""
        if "_checkpointer" in vars(self):
            # Orbax repeats the error of a save that failed, which was raised.
            with suppress(Exception) if self._background.failed else nullcontext():
                self._checkpointer.close()
            del self._checkpointer

    def _load(self, checkpoint: epath.Path, shapes: TrainState) -> tuple[str, TrainState | None]:
        """("", the state), or (what is wrong with the checkpoint in the first process that finds something, None)."""
        # Each process reads for itself: Orbax would wait forever for one that fails.
        context = ocp.Context()
        context.multiprocessing.primary_host = jax.process_index()
        context.multiprocessing.active_processes = {jax.process_index()}
        with context:
            if reason := first_text(damage(checkpoint) if jax.process_index() == 0 else ""):
                return reason, None
            if refusal := first_text(unseen(checkpoint)):
                raise InputError(refusal)
            saved = self._continue(checkpoint)
            shapes, arrays = stored_shapes(saved.optim, self._cfg, shapes), {}
            try:
                arrays = ocp.load_checkpointables(checkpoint, {STATE: flatten(shapes)})[STATE]
            except Exception as error:  # damaged files make Orbax raise errors of any kind
                if not (reason := read_error(error)):
                    raise
            if reason := first_text(reason) or changed(checkpoint, arrays):
                return reason, None
            return "", carried(saved.optim, self._cfg, unflatten(shapes, arrays))

    def _continue(self, checkpoint: epath.Path) -> Experiment:
        """The experiment that wrote ``checkpoint``; sets the history. Raises InputError where this run may not go on from it."""
        metadata = ocp.checkpointables_metadata(checkpoint).custom_metadata or {}
        saved, done, folders = read_experiment(checkpoint), int(checkpoint.name), tuple(metadata.get(FOLDERS, ()))
        self.history = from_json(metadata.get(HISTORY, ()))
        self.change = continuation(saved, self._cfg, done, folders, self.folders, self._folder)
        if self.change:
            self.history += (self.change,)
        return saved

    def _set_aside(self, passed_over: dict[epath.Path, str], step: int) -> None:
        """Renames the checkpoints that are not whole, and those behind the step that ``cfg.resume`` names."""
        if jax.process_index() == 0:
            first = "training starts from step 0, since this is its first checkpoint"
            outcome = f"training goes on from step {step}" if step else first
            set_aside(passed_over, "damaged", outcome)
            if self._cfg.resume.point.isdigit():
                set_aside({path: "" for path in step_folders(self._folder) if int(path.name) > step}, "unused", outcome)
        multihost_utils.sync_global_devices(f"checkpoints in {self._folder} that are not whole renamed")
        self._close_checkpointer()


def newest(folder: epath.PathLike) -> epath.Path:
    """The newest whole checkpoint of the run folder ``folder``, or ``folder`` itself when it is a checkpoint.

    Newer ones that are not whole are passed over, with a line for each. Raises MissingFileError when there is no finished
    checkpoint, InputError when all that finished are damaged.
    """
    folder = folder_at(folder)
    passed_over = {}
    for checkpoint in [folder] if is_complete(folder) else step_folders(folder / FOLDER):
        if not (reason := damage(checkpoint)):
            for path, reason in passed_over.items():
                warn(f"{path} is not whole: {reason}; {checkpoint} is read")
            return checkpoint
        passed_over[checkpoint] = reason
    if set(passed_over.values()) - {UNFINISHED}:
        raise none_whole(folder, passed_over)
    raise MissingFileError(
        f"{folder} holds no checkpoint; expected {folder / FOLDER}/<step>, as run.py train writes; a model of another "
        f"layout becomes one by run.py convert import {folder} DST"
    )


def load_weights(checkpoint: epath.Path, shapes: Chameleon) -> Chameleon:
    """Reads the weights alone of a checkpoint, with the dtypes and shardings of ``shapes``.

    Raises InputError listing the weights whose shape differs or that are absent, or naming one that changed on disk.
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
    try:
        with context:
            arrays = ocp.load_checkpointables(checkpoint, {STATE: expected})[STATE]
        as_stored = {name: array for name, array in arrays.items() if array.dtype == stored[name].dtype}
        reason = changed(checkpoint, as_stored)
    except Exception as error:  # damaged files make Orbax raise errors of any kind
        if not (reason := read_error(error)):
            raise
    if reason:
        raise InputError(
            f"{checkpoint} is damaged: {reason}; copy it again from where it is whole, or name an older one"
        )
    return unflatten(shapes, {name.removeprefix(WEIGHTS): array for name, array in arrays.items()})


def restore_model(checkpoint: epath.Path, cfg: ModelConfig) -> Chameleon:
    """The model of ``checkpoint``, without optimizer state, on the first device."""
    mesh = make_mesh(MeshConfig(fsdp=1), jax.devices()[:1])
    shapes = jax.eval_shape(lambda: Chameleon(cfg, nnx.Rngs(0)))
    return load_weights(checkpoint, with_shardings(shapes, shardings(shapes, mesh)))
