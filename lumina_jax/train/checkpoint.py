"""Checkpoints: ``{path: array}`` in Orbax, without framework objects, restored onto any mesh.

Besides the state, resuming needs the step alone: the data order is a pure function of (seed, step).
"""

import sys
from functools import cache, cached_property
from itertools import chain, count
from pathlib import Path

import jax
from flax import nnx
from jax.experimental import multihost_utils
from orbax.checkpoint import v1 as ocp

from lumina_jax.cluster.agreement import first_text, from_first
from lumina_jax.config import Experiment, MeshConfig, ModelConfig, from_dict, to_dict
from lumina_jax.errors import InputError, MissingFileError
from lumina_jax.model.chameleon import Chameleon
from lumina_jax.sharding import make_mesh, shardings
from lumina_jax.train.chunks import axes_of, saving_context
from lumina_jax.train.integrity import (
    STATE,
    UNFINISHED,
    changed,
    check_folder,
    checksums,
    damage,
    is_complete,
    sealed,
)
from lumina_jax.train.optim import first_other_rate
from lumina_jax.train.step import TrainState, with_shardings

FOLDER = "checkpoints"
WEIGHTS = "model/"
EXPERIMENT = "experiment"
"""Key in a checkpoint's metadata of the experiment that wrote it."""


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

    Interrupted writes never count: Orbax renames a checkpoint when it is complete. A numbered folder that is not whole (a copy
    that was cut, a file that is gone, a number that changed on disk) is passed over; :meth:`restore` renames it and says so.
    """

    def __init__(self, cfg: Experiment):
        self._cfg = cfg
        self._folder = Path(cfg.out).absolute() / FOLDER
        check_folder(self._folder)

    @cached_property
    def _checkpointer(self) -> ocp.training.Checkpointer:
        """Opened by the first save: it takes all numbered folders that it finds for checkpoints."""
        return ocp.training.Checkpointer(
            self._folder,
            preservation_policy=ocp.training.preservation_policies.LatestN(self._cfg.keep),
            cleanup_tmp_directories=True,
        )

    def save(self, step: int, state: TrainState) -> None:
        """Saves ``state``, which is that after ``step`` steps, in the background."""
        arrays = flatten(state)
        metadata = sealed({EXPERIMENT: to_dict(self._cfg)}, checksums(arrays))
        with saving_context(axes_of(state)):
            self._checkpointer.save_checkpointables_async(step, {STATE: arrays}, force=True, custom_metadata=metadata)

    def restore(self, shapes: TrainState) -> tuple[int, TrainState] | None:
        """(steps done, state) of the newest whole checkpoint, the same in all processes; None when nothing was saved yet.

        ``shapes`` gives the dtype and sharding of every array. Newer ones that are not whole are renamed to <step>.unfinished or
        <step>.damaged, with a line for each. Raises InputError when the checkpoint belongs to another experiment, naming the
        fields that differ, and when none of several is whole.
        """
        passed_over = {}
        for step in from_first([int(path.name) for path in _step_folders(self._folder)]):
            checkpoint = self._folder / str(step)
            reason, arrays = self._load(checkpoint, flatten(shapes))
            if not reason:
                self._set_aside(passed_over, f"training goes on from step {step}")
                return step, unflatten(shapes, arrays)
            passed_over[checkpoint] = reason
        if len(passed_over) > 1 or set(passed_over.values()) - {UNFINISHED}:
            raise _none_whole(self._folder, passed_over)
        self._set_aside(passed_over, "training starts from step 0, since this is its first checkpoint")
        return None

    def close(self) -> None:
        """Waits until all checkpoints are on disk."""
        if "_checkpointer" in vars(self):
            self._checkpointer.close()

    def _load(self, checkpoint: Path, shapes: dict[str, jax.Array]) -> tuple[str, dict[str, jax.Array]]:
        """("", arrays by name), or (what is wrong with the checkpoint in the first process that finds something, {})."""
        # Each process reads for itself: Orbax would wait forever for one that fails.
        context = ocp.Context()
        context.multiprocessing.primary_host = jax.process_index()
        context.multiprocessing.active_processes = {jax.process_index()}
        with context:
            if reason := first_text(damage(checkpoint) if jax.process_index() == 0 else ""):
                return reason, {}
            self._check_same(read_experiment(checkpoint), int(checkpoint.name))
            arrays = {}
            try:
                arrays = ocp.load_checkpointables(checkpoint, {STATE: shapes})[STATE]
            except Exception as error:  # damaged files make Orbax raise errors of any kind
                if isinstance(_origin(error), (jax.errors.JaxRuntimeError, MemoryError)):
                    raise
                reason = " ".join(f"it cannot be read ({_origin(error)})".split())
            reason = first_text(reason) or changed(checkpoint, arrays)
            return reason, {} if reason else arrays

    def _set_aside(self, passed_over: dict[Path, str], outcome: str) -> None:
        """Renames the checkpoints that are not whole, so that their numbers can be written again."""
        if jax.process_index() == 0:
            for path, reason in passed_over.items():
                aside = path.rename(_free_name(path, "unfinished" if reason == UNFINISHED else "damaged"))
                warn(f"{path} is not whole: {reason}; it is now {aside.name}, and {outcome}")
        multihost_utils.sync_global_devices(f"checkpoints in {self._folder} that are not whole renamed")

    def _check_same(self, saved: Experiment, done: int) -> None:
        """On resuming, paths and placement may differ; what changes the numbers of this run, or of its ``done`` steps, may not."""
        old, new = _result_fields(saved), _result_fields(self._cfg)
        others = ", ".join(f"{name} ({old[name]} there, {new[name]} here)" for name in new if old[name] != new[name])
        cure = "give this run its own out=FOLDER, or delete that folder to start again"
        if others:
            raise InputError(
                f"{self._folder} holds a run with another {others}; give the values there to go on with it, or {cure}"
            )
        before, now = saved.optim, self._cfg.optim
        if done > now.steps:
            raise InputError(
                f"{self._folder} holds a run of {done} steps, more than optim.steps={now.steps}; raise it, or {cure}"
            )
        if (step := first_other_rate(before, now, done)) is not None:
            raise InputError(
                f"{self._folder} holds {done} steps of a run of optim.steps={before.steps}; in one of {now.steps} the learning "
                f"rate of step {step} is another. Only a constant rate (optim.min_lr equal to optim.lr), or one on its plateau "
                f"(optim.hold), can go on to another number of steps; {cure}"
            )


def newest(folder: Path | str) -> Path:
    """The newest whole checkpoint of the run folder ``folder``, or ``folder`` itself when it is a checkpoint.

    Newer ones that are not whole are passed over, with a line for each. Raises MissingFileError when there is no finished
    checkpoint, InputError when all that finished are damaged.
    """
    folder = Path(folder).absolute()
    passed_over = {}
    for checkpoint in [folder] if is_complete(folder) else _step_folders(folder / FOLDER):
        if not (reason := damage(checkpoint)):
            for path, reason in passed_over.items():
                warn(f"{path} is not whole: {reason}; {checkpoint} is read")
            return checkpoint
        passed_over[checkpoint] = reason
    if set(passed_over.values()) - {UNFINISHED}:
        raise _none_whole(folder, passed_over)
    raise MissingFileError(f"{folder} holds no checkpoint; expected {folder / FOLDER}/<step>, as run.py train writes")


def read_experiment(checkpoint: Path) -> Experiment:
    """The experiment that wrote ``checkpoint``. Raises InputError when its metadata has none."""
    metadata = ocp.checkpointables_metadata(checkpoint).custom_metadata or {}
    if EXPERIMENT not in metadata:
        raise InputError(f"{checkpoint} does not say which experiment wrote it; it is not a checkpoint of run.py")
    return from_dict(Experiment, metadata[EXPERIMENT])


def load_weights(checkpoint: Path, shapes: Chameleon) -> Chameleon:
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
    with context:
        arrays = ocp.load_checkpointables(checkpoint, {STATE: expected})[STATE]
    as_stored = {name: array for name, array in arrays.items() if array.dtype == stored[name].dtype}
    if reason := changed(checkpoint, as_stored):
        raise InputError(
            f"{checkpoint} is damaged: {reason}; copy it again from where it is whole, or name an older one"
        )
    return unflatten(shapes, {name.removeprefix(WEIGHTS): array for name, array in arrays.items()})


def restore_model(checkpoint: Path, cfg: ModelConfig) -> Chameleon:
    """The model of ``checkpoint``, without optimizer state, on the first device."""
    mesh = make_mesh(MeshConfig(fsdp=1), jax.devices()[:1])
    shapes = jax.eval_shape(lambda: Chameleon(cfg, nnx.Rngs(0)))
    return load_weights(checkpoint, with_shardings(shapes, shardings(shapes, mesh)))


def _step_folders(folder: Path) -> list[Path]:
    """The folders in ``folder`` whose name is a step, newest first."""
    return sorted((path for path in folder.glob("*") if path.name.isdigit()), key=lambda p: int(p.name), reverse=True)


def _free_name(path: Path, suffix: str) -> Path:
    """``path`` with ``suffix``, and a number where that exists."""
    names = (path.with_name(f"{path.name}.{suffix}{number}") for number in chain([""], count(2)))
    return next(name for name in names if not name.exists())


def _none_whole(folder: Path, passed_over: dict[Path, str]) -> InputError:
    reasons = "; ".join(f"{path}: {reason}" for path, reason in passed_over.items())
    cure = "copy one again from where it is whole, or delete the folder to start again"
    return InputError(f"{folder} holds no whole checkpoint, all are damaged: {reasons}; {cure}")


def _origin(error: BaseException) -> BaseException:
    """What an error was raised from, at first."""
    return _origin(error.__cause__) if error.__cause__ else error


@cache
def warn(line: str) -> None:
    """Says ``line`` on stderr, once."""
    print(line, file=sys.stderr)


def _result_fields(cfg: Experiment) -> dict[str, object]:
    """The fields that change the numbers a run computes, by dotted name."""
    rounding = ("compute", "dropout_rng", "quant", "quant_skip")
    fields = {"seed": cfg.seed} | {f"mesh.{name}": getattr(cfg.mesh, name) for name in rounding}
    for group in ("model", "optim", "data"):
        fields |= {f"{group}.{name}": value for name, value in vars(getattr(cfg, group)).items()}
    reading = ("threads", "fetchers", "fetch_seconds", "fetch_mb", "max_consecutive_rejects", "cache", "cache_gb")
    for name in ("optim.steps", "data.path", "data.tokenizer", *(f"data.{name}" for name in reading)):
        del fields[name]
    return fields
