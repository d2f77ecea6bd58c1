"""How run.py sample draws its answers: the options, the table of tasks, and a line that says what is used."""

from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterable

from lumina_jax.cli.arguments import at_least, number
from lumina_jax.errors import InputError

FIELDS = (
    "guidance",
    "temperature",
    "image_top_k",
    "text_top_k",
    "min_p",
    "max_new_tokens",
    "parallel",
    "window",
    "tree",
    "cache",
)
"""The fields of SampleConfig that are options."""
SHOWN = ("guidance", "image_top_k", "text_top_k", "temperature")
"""Those that are always said."""
RULE = """\
What holds, from the strongest: an option (--guidance, --top-k, --text-top-k, --temperature ...); the settings of a model that was
trained by run.py (`sample` of its config), for generate and chat; this table. What it leaves open (min-p, length, decoding) is the
model's own. Guidance and image top-k act inside pictures only, text top-k outside of them.
Text top-k and temperature are those of the original's three demo pages."""


OWN, MODEL = "default: the task's, see run.py sample --list-tasks", "default: the model's own"


def settings_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--guidance", type=number, help=f"classifier-free guidance scale; 1 is off ({OWN})")
    parser.add_argument("--temperature", type=number, help=f"below 1 safer, above 1 wilder ({OWN})")
    parser.add_argument(
        "--top-k",
        type=at_least(1),
        metavar="K",
        dest="image_top_k",
        help=f"image tokens to draw from; 1 is greedy ({OWN})",
    )
    other_settings_arguments(parser)


def other_settings_arguments(parser: ArgumentParser) -> None:
    """The options of FIELDS that the paper's Figure 8 does not vary."""
    parser.add_argument(
        "--text-top-k", type=at_least(1), metavar="K", help=f"text tokens to draw from; 1 is greedy ({OWN})"
    )
    parser.add_argument(
        "--parallel", metavar="METHOD", help=f"decoding method: off, matched, sjd, coupled, continued ({MODEL})"
    )
    parser.add_argument("--window", type=at_least(0), metavar="W", help=f"with --parallel: tokens in a pass ({MODEL})")
    tree_help = f"with --parallel matched: further tokens in a pass, in the places of drafts that may fail ({MODEL})"
    parser.add_argument("--tree", type=at_least(0), metavar="N", help=tree_help)
    cache_help = f"keys and values of attention: exact, or int8, which halves their memory ({MODEL})"
    parser.add_argument("--cache", choices=("exact", "int8"), help=cache_help)
    parser.add_argument(
        "--min-p", type=number, help=f"drop tokens less likely than this share of the likeliest ({MODEL})"
    )
    parser.add_argument(
        "--max-new-tokens", type=at_least(1), metavar="N", help=f"tokens of the longest answer ({MODEL})"
    )


def default_settings(base) -> Callable:
    """A function task -> SampleConfig: how a model whose own settings are ``base`` does it when nothing else is asked for."""
    from lumina_jax.conversation import served

    return lambda task: served(task, base)


def asked_settings(options: Namespace, base) -> Callable:
    """A function task -> SampleConfig: its :func:`default_settings` with the changes of the command line."""
    default = default_settings(base)
    return lambda task: asked_changes(options, default(task))


def asked_changes(options: Namespace, cfg):
    """The SampleConfig ``cfg`` with the changes of the command line."""
    from dataclasses import replace

    changes = {name: vars(options)[name] for name in FIELDS if vars(options).get(name) is not None}
    cfg = replace(cfg, **changes)
    if changes.get("window") and cfg.parallel == "off":
        raise InputError(
            f"window={cfg.window}: parallel=off draws one token in a pass; choose a method too, such as matched"
        )
    return cfg


def used_settings(asked: Iterable[tuple], default: Callable) -> str:
    """A line for each (task, SampleConfig) of ``asked``, the first time it comes, with what is not the ``default`` of the task."""
    return "\n".join(_used(task, cfg, default(task)) for task, cfg in dict.fromkeys(asked))


def _used(task: str, cfg, default) -> str:
    changed = [name for name in FIELDS if getattr(cfg, name) != getattr(default, name)]
    shown = [*SHOWN, *["min_p"] * (cfg.min_p > 0)]
    shown += [name for name in changed if name not in shown]

    def values(names: Iterable[str], settings) -> str:
        return ", ".join(f"{_spoken(name)} {getattr(settings, name)}" for name in names)

    usual = f"by default {values(changed, default)}" if changed else "the defaults; all tasks: --list-tasks"
    return f"{task}: {values(shown, cfg)} ({usual})"


def _spoken(name: str) -> str:
    return name.replace("top_k", "top-k").replace("min_p", "min-p").replace("_", " ")


def task_table() -> str:
    """The tasks with the words of their requests, how they are sampled, and the source of these numbers."""
    from lumina_jax.conversation import TASKS

    width = max(map(len, TASKS))
    lines = [" ".join([f"{'task':{width}}", *(f"{_spoken(name):>11}" for name in SHOWN)])]
    for name, task in TASKS.items():
        lines.append(" ".join([f"{name:{width}}", *(f"{getattr(task, field):>11}" for field in SHOWN)]))
        lines.append(f"    words:  {task.request!r}")
        lines.append(f"    source: {task.source}")
    return "\n".join([*lines, RULE])
