"""The knobs of a run that survives: how it goes on, what guards it, and what is watched while it trains."""

from dataclasses import dataclass

from lumina_jax.errors import require


@dataclass(frozen=True)
class ResumeConfig:
    """From which checkpoint a run goes on, and how. ``resume=VALUE`` is short for ``resume.point=VALUE``.

    ``point`` "newest" is the newest whole checkpoint: newer ones that are damaged are renamed, with a line for each. With
    "strict" a damaged one ends the run. A number is the step of the checkpoint to go back to: newer ones are renamed, and a later
    start with the same number goes on from what the run saved since.

    ``allow`` names the fields, with commas, that may have another value than the run was saved with: ``optim.steps,optim.lr``, or
    a whole group, ``optim`` or ``data``. The run then goes on with the new values from that step on, and its history
    (history.jsonl) keeps who changed what.
    """

    point: str = "newest"
    allow: tuple[str, ...] = ()

    def __post_init__(self):
        require(
            self.point in ("newest", "strict") or (self.point.isascii() and self.point.isdigit()),
            f"resume={self.point!r}; choose 'newest', 'strict' or the step of a checkpoint, such as 2000",
        )


@dataclass(frozen=True)
class GuardConfig:
    """What a run does about losses and gradients that are not finite, and about spikes of them.

    A step whose loss or gradient norm is NaN or infinite changes neither weights nor optimizer state. With ``nonfinite`` "stop"
    the run then ends, naming and saving the records of the batch; with "skip" it goes on, and ends after more than
    ``max_skipped`` such steps in a row; with "back" it goes back (see below).

    A spike is a cross-entropy or a gradient norm more than ``spike_z`` standard deviations above its mean over the last
    ``spike_window`` steps (0: nothing is noticed), ``spike_steps`` steps in a row. With ``on_spike`` "note" it is printed and
    kept in the history; with "back" the run goes back to its newest checkpoint and goes on behind the batches that it has read
    since, and behind ``skip_batches`` more. A run goes back at most ``max_backs`` times, then ends.
    """

    nonfinite: str = "stop"
    max_skipped: int = 3
    spike_z: float = 10.0
    spike_window: int = 200
    spike_steps: int = 1
    on_spike: str = "note"
    skip_batches: int = 0
    max_backs: int = 3

    def __post_init__(self):
        choices = {"nonfinite": ("stop", "skip", "back"), "on_spike": ("note", "back")}
        for name, known in choices.items():
            value = getattr(self, name)
            require(value in known, f"guard.{name}={value!r}; choose {' or '.join(map(repr, known))}")
        limits = {
            "max_skipped": 1,
            "spike_z": 0,
            "spike_window": 20,
            "spike_steps": 1,
            "skip_batches": 0,
            "max_backs": 0,
        }
        for name, least in limits.items():
            value = getattr(self, name)
            require(value >= least, f"guard.{name}={value}; it must be at least {least}")


@dataclass(frozen=True)
class WatchConfig:
    """What is measured of a model while it trains.

    ``norms`` is into how many groups of neighbouring layers the norms of gradients and weights are divided, for each kind of
    weights (0: none are computed); metrics.jsonl gets them. Every ``held_out_every`` steps (0: never), and at the end, the mean
    cross-entropy over ``held_out_batches`` batches (0: all, once) of the token folder ``held_out`` is measured; metrics.jsonl gets
    it as "held_out". Every ``sheet_every`` steps (0: never), and at the end, the first ``sheet_prompts`` lines of the text file
    ``prompts`` are painted, with the same draws each time, and written as a sheet into ``out``/sheets; the first device needs
    room for a whole copy of the weights in ``mesh.compute``. The first time, as many of ``pictures`` (a picture or a folder of
    them) are shown on a sheet of their own beside what the image tokenizer keeps of them.
    """

    norms: int = 0
    held_out: str = ""
    held_out_every: int = 0
    held_out_batches: int = 16
    prompts: str = ""
    pictures: str = ""
    sheet_every: int = 0
    sheet_prompts: int = 8

    def __post_init__(self):
        for name in ("norms", "held_out_every", "held_out_batches", "sheet_every"):
            require(getattr(self, name) >= 0, f"watch.{name}={getattr(self, name)}; it must not be negative")
        require(1 <= self.sheet_prompts <= 64, f"watch.sheet_prompts={self.sheet_prompts} is not from 1 to 64")
        for every, sources in (("held_out_every", ("held_out",)), ("sheet_every", ("prompts", "pictures"))):
            names = " or ".join(f"watch.{name}" for name in sources)
            require(
                not getattr(self, every) or any(getattr(self, name) for name in sources),
                f"watch.{every}={getattr(self, every)} needs {names}; give it, or 0",
            )


LOGGERS = ("tensorboard", "wandb", "mlflow")


@dataclass(frozen=True)
class LogConfig:
    """Where the numbers and sheets of a run are shown, beside its metrics.jsonl.

    ``to`` names loggers: tensorboard, wandb (Weights & Biases), mlflow; the last two are packages to install. ``project`` is W&B's
    project and MLflow's experiment. They get a point every ``every`` steps.
    """

    to: tuple[str, ...] = ("tensorboard",)
    project: str = "lumina_jax"
    every: int = 10

    def __post_init__(self):
        for name in self.to:
            require(name in LOGGERS, f"log.to={name}; the loggers are {', '.join(LOGGERS)}")
        require(len(set(self.to)) == len(self.to), f"log.to={','.join(self.to)}; name each logger once")
        require(bool(self.project), "log.project is empty; give a name")
        require(self.every >= 1, f"log.every={self.every}; it must be at least 1")
