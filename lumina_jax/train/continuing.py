"""How a run may go on from its checkpoint with other settings: which differences are refused, allowed, and recorded."""

from collections.abc import Sequence

from lumina_jax.config import Experiment, OptimConfig
from lumina_jax.errors import InputError
from lumina_jax.history import Change, Folders, changed_now
from lumina_jax.train.optim import first_other_rate

ROUNDING = ("compute", "dropout_rng", "quant", "quant_skip")
"""The fields of ``mesh`` that change what a step computes."""
READING = (
    "path",
    "tokenizer",
    "threads",
    "verify_mb",
    "fetchers",
    "fetch_seconds",
    "fetch_mb",
    "cache",
    "cache_gb",
    "max_consecutive_rejects",
)
"""The fields of ``data`` that change no batch; the content of ``data.path`` is compared by fingerprints."""
RATE = ("lr", "min_lr", "warmup", "hold", "decay")
"""The fields of ``optim`` that, with its steps, make the learning rate."""
PATH, STEPS, DROPOUT = "data.path", "optim.steps", "model.dropout"
FIXED = ("seed", "model")
"""Fields and groups that no run can change, but for DROPOUT: the draws and the shapes of all that was done."""
OTHER_OUT = "give this run its own out=FOLDER, or delete that folder to start again"


def result_fields(cfg: Experiment) -> dict[str, object]:
    """The fields that change the numbers a run computes, by dotted name; without ``optim.steps`` and ``data.path``."""
    found = {"seed": cfg.seed} | {f"mesh.{name}": getattr(cfg.mesh, name) for name in ROUNDING}
    for group in ("model", "optim", "data"):
        found |= {f"{group}.{name}": value for name, value in vars(getattr(cfg, group)).items()}
    return {name: value for name, value in found.items() if name not in (STEPS, *(f"data.{name}" for name in READING))}


def continuation(
    saved: Experiment, cfg: Experiment, done: int, saved_folders: Folders, folders: Folders, where: object
) -> Change | None:
    """What changes when the run of ``saved`` goes on as ``cfg`` after ``done`` steps; None when nothing does.

    ``saved_folders`` and ``folders`` are the fingerprints of its token folders then and now (empty: unknown); ``where`` names the
    folder of its checkpoints. Paths, placement and logging may always differ, and ``optim.steps`` where the learning rates of the
    steps done stay as they were. Raises InputError for any other difference that ``cfg.resume.allow`` does not name, with both
    values and the cure.
    """
    old = result_fields(saved) | {PATH: saved.data.path, STEPS: saved.optim.steps}
    new = result_fields(cfg) | {PATH: cfg.data.path, STEPS: cfg.optim.steps}
    names = [name for name in new if old[name] != new[name] and name != PATH]
    moved = bool(saved_folders and folders) and saved_folders != folders
    names += [PATH] * moved
    allowed = _allowed(cfg.resume.allow, list(new))
    if refused := [name for name in names if name not in allowed and name != STEPS]:
        raise _refusal(where, refused, old, new)
    if done > cfg.optim.steps:
        raise InputError(
            f"{where} holds a run of {done} steps, more than optim.steps={cfg.optim.steps}; raise it, or {OTHER_OUT}"
        )
    if STEPS not in allowed:
        _check_rates(saved.optim, cfg.optim, done, where)
    if not names:
        return None
    before, after = ({name: _plain(values[name]) for name in names} for values in (old, new))
    return changed_now(done, "resumed", before=before, after=after, folders=saved_folders if moved else ())


def in_words(change: Change) -> str:
    """The changed fields with both values, in one line."""
    return ", ".join(f"{name} {change.before[name]} -> {change.after[name]}" for name in change.before)


def _allowed(names: Sequence[str], known: Sequence[str]) -> set[str]:
    """The fields that ``names``, fields or groups of them, stand for. Raises InputError for unknown and FIXED ones."""
    free = {field for field in known if field.split(".")[0] not in FIXED or field == DROPOUT}
    allowed: set[str] = set()
    for name in names:
        chosen = {field for field in free if field == name or field.startswith(f"{name}.")}
        if not chosen or name in FIXED:
            fixed = name.split(".")[0] in FIXED
            reason = "no run can change it" if fixed else "it does not change what a run computes, or is unknown"
            raise InputError(
                f"resume.allow={name}: {reason}; name optim, data or mesh for all of their fields, or one of "
                f"{', '.join(sorted(free))}"
            )
        allowed |= chosen
    return allowed


def _refusal(where: object, refused: list[str], old: dict[str, object], new: dict[str, object]) -> InputError:
    others = ", ".join(f"{name} ({old[name]} there, {new[name]} here)" for name in refused)
    changeable = all(name.split(".")[0] not in FIXED or name == DROPOUT for name in refused)
    allow = f"resume.allow={','.join(refused)} to go on with the new, " * changeable
    return InputError(
        f"{where} holds a run with another {others}; give the values there to go on with it, {allow}or {OTHER_OUT}"
    )


def _check_rates(before: OptimConfig, now: OptimConfig, done: int, where: object) -> None:
    """Raises InputError where another number of steps makes another learning rate of the steps done."""
    if any(getattr(before, name) != getattr(now, name) for name in RATE):
        return  # another schedule, which was allowed: it rules the steps to come
    if (step := first_other_rate(before, now, done)) is not None:
        raise InputError(
            f"{where} holds {done} steps of a run of optim.steps={before.steps}; in one of {now.steps} the learning "
            f"rate of step {step} is another. A constant rate (optim.min_lr equal to optim.lr), or one on its plateau "
            f"(optim.hold), goes on as if the steps had been asked for at once; give resume.allow={STEPS} to follow the new "
            f"schedule from here on, or {OTHER_OUT}"
        )


def _plain(value: object) -> object:
    """As JSON has it."""
    return list(value) if isinstance(value, tuple) else value
