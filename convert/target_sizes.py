"""For which pictures a checkpoint was made: the target size that is given, recorded, its experiment's, or known by its name."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from convert.errors import field_errors
from convert.metadata import SNAPSHOTS, TARGET_SIZE, experiment_of
from convert.sources import Checkpoint
from lumina_jax.errors import InputError
from lumina_jax.places import Place
from lumina_jax.released import RELEASES, released_as

GIVEN, RECORDED, EXPERIMENT, NAME, UNKNOWN = "given", "recorded", "experiment", "name", "unknown"
"""Where a target size comes from: the caller, the checkpoint's metadata, its experiment, the name of a release, nowhere."""


@dataclass(frozen=True)
class TargetSize:
    """The target ``size`` in px, whose square is the largest area of a checkpoint's pictures; None where nothing tells it.

    ``source`` is one of GIVEN, RECORDED, EXPERIMENT, NAME and UNKNOWN; ``reason`` says it in words, and ``line`` is what a person
    should know before it is used: an assumption, or a contradiction. "" for nothing.
    """

    size: int | None
    source: str
    reason: str
    line: str = ""


def target_size_of(source: Checkpoint, option: int | None = None) -> TargetSize:
    """The target size of a checkpoint: ``option``, what its metadata record, that of its experiment, or that of its name.

    Metadata record a size only where a person gave one or a name told it, so they are newer than the experiment. Raises InputError
    for a damaged record, and for an ``option`` with a model of patches, whose pictures are not resized.
    """
    found = _recorded(source) or _of_experiment(source) or _of_name(source)
    if option is None:
        return found or TargetSize(None, UNKNOWN, "nothing tells it")
    experiment = experiment_of(source)
    if experiment and experiment.vq.kind == "patch":
        raise InputError(
            f"a target size of {option} for {source.folder}, whose image tokenizer holds patches of pictures as they were drawn, "
            f"{found.reason}: it resizes none; leave the target size out, and give --size WIDTHxHEIGHT for a canvas"
        )
    line = ""
    if found and found.size != option:
        line = (
            f"{source.folder}: the target size {option} that was given takes the place of {found.size}, {found.reason}"
        )
    return TargetSize(option, GIVEN, "as given", line)


def known_size(found: TargetSize, folder: str | Place, purpose: str) -> int:
    """The size of ``found``; InputError where it is None, naming the ``folder``, what needs it and the cure."""
    if found.size is None:
        names = ", ".join(release.short for release in RELEASES)
        raise InputError(
            f"{folder}: nothing tells for which sizes of pictures this model was trained, and {purpose} needs them: neither an "
            f"experiment, nor its metadata, nor a name (Lumina-mGPT- and one of {names}); give --target-size 512, 768, 1024 ..., "
            "or --image-layout chameleon for a model of Meta's Chameleon"
        )
    return found.size


def _recorded(source: Checkpoint) -> TargetSize | None:
    size = source.settings.get(TARGET_SIZE)
    if size is None:
        return None
    with field_errors(source.folder):
        if type(size) is not int or size < 1:
            raise InputError(f"{TARGET_SIZE} is {size!r}, but a whole number of px is expected")
    return TargetSize(size, RECORDED, "which its metadata record")


def _of_experiment(source: Checkpoint) -> TargetSize | None:
    experiment = experiment_of(source)
    return experiment and TargetSize(experiment.data.size, EXPERIMENT, f"that of its experiment {experiment.name}")


def _of_name(source: Checkpoint) -> TargetSize | None:
    if (release := released_as(names_of(source))) is None:
        return None
    whose = "whose name it has"
    if released_as(folder_names(source)) is None:
        whose = "which its config.json names: as itself, or as the model that it was tuned from"
    size, reason = release.target_size, f"that of {release.name}, {whose}"
    line = (
        f"{source.folder}: its target size is recorded nowhere; {size} is assumed, {reason} (another: --target-size N)"
    )
    return TargetSize(size, NAME, reason, line)


def names_of(source: Checkpoint) -> Iterator[str]:
    """What a checkpoint is called: its :func:`folder_names`, then its model's name in config.json."""
    yield from folder_names(source)
    name = source.settings.get("settings", source.settings).get("_name_or_path")
    if isinstance(name, str):
        yield from reversed(Path(name).parts)


def folder_names(source: Checkpoint) -> Iterator[str]:
    """The names of a checkpoint's folder, as given and without links, and of the folder that it was imported from."""
    for folder in (source.folder.absolute(), source.folder.resolve()):
        yield folder.name
        if folder.parent.name == SNAPSHOTS:
            yield folder.parents[1].name
    origin = source.settings.get("name") if source.layout == "ours" else None
    if isinstance(origin, str):
        yield from reversed(Path(origin).parts)
