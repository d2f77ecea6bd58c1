"""From which published model weights derive, and under which licence they are therefore: by names, by the runs that they started
from, or as told."""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from convert.convert import open_source
from convert.metadata import experiment_of
from convert.orbax_folder import OrbaxSource
from convert.sources import Checkpoint
from convert.target_sizes import names_of
from lumina_jax.errors import InputError, UserError
from lumina_jax.hub.address import PART, is_hub
from lumina_jax.released import is_chameleon, released_as

CACHED = re.compile(rf"models--({PART}?)--({PART})")
"""The name of a repository's folder in the hub's cache."""
AUTHORS, META = "Alpha-VLLM", "facebook"
"""The owners of the repositories of Lumina-mGPT and of Chameleon for transformers."""
CHAMELEON = "chameleon"
"""What --license calls Chameleon's licence."""
NONE = "none"
"""What --base-model calls no model."""
NAME = re.compile(r"[a-z0-9][a-z0-9.-]{0,62}")
ANCESTORS = 16
"""Runs that are followed back, each to what it started from."""


@dataclass(frozen=True)
class License:
    """A licence as the hub writes it: an ``identifier`` such as apache-2.0, or "other" with a ``name`` and a ``link``."""

    identifier: str
    name: str = ""
    link: str = ""

    @property
    def words(self) -> str:
        """The licence in a text."""
        return f"[{self.name}]({self.link})" if self.link else self.identifier


CHAMELEON_LICENSE = License(
    "other",
    "chameleon-research-license",
    "https://ai.meta.com/resources/models-and-libraries/chameleon-license/",
)


@dataclass(frozen=True)
class Origin:
    """``base`` is the repository OWNER/NAME of the model that weights were made from ("" for none), ``license`` theirs.

    ``derived`` says whether they come from Meta's Chameleon.
    """

    base: str
    license: License
    derived: bool


def origin_of(source: Checkpoint, license: str = "", base: str = "") -> Origin:
    """The Origin of a checkpoint by what is told, ``license`` as in :func:`read_license` and ``base`` OWNER/NAME, else by names.

    Raises InputError where neither tells the licence, or what the run started from.
    """
    names, started, derived = _names(source)
    if base == NONE:
        names, started, base = [], "", ""
    if base and re.fullmatch(f"{PART}/{PART}", base) is None:
        raise InputError(f"--base-model {base}: give a repository as OWNER/NAME, such as {AUTHORS}/Chameleon_7B_mGPT")
    base = base or next(filter(None, map(_repository, names)), "")
    derived = derived or is_chameleon([base]) or released_as([base]) is not None
    if started and not base:
        raise InputError(
            f"{source.folder}: it was trained from {started}, and no name tells which published model that is; say it by "
            f"--base-model OWNER/NAME, or {NONE} where all began with random weights"
        )
    if not license and not derived:
        raise InputError(
            f"{source.folder}: nothing tells under which licence the weights are; say it by --license, such as apache-2.0, "
            f"{CHAMELEON} or NAME=https://..."
        )
    return Origin(base, read_license(license or CHAMELEON), derived)


def read_license(text: str) -> License:
    """The License that is written ``text``: an identifier of the hub (apache-2.0, cc-by-nc-4.0 ...), "chameleon", or NAME=URL."""
    name, _, link = text.partition("=")
    if NAME.fullmatch(name) is None or (link and not link.startswith("https://")) or text.endswith("="):
        raise InputError(f"--license {text}: give an identifier such as apache-2.0, {CHAMELEON}, or NAME=https://...")
    if name == CHAMELEON:
        return CHAMELEON_LICENSE
    return License("other", name, link) if link else License(name)


def _names(source: Checkpoint) -> tuple[list[str], str, bool]:
    """(what a checkpoint and those that it started from are called, the nearest first; where the oldest known run started; whether
    they come from Chameleon, also by Meta's files)."""
    names, started, derived = [], "", False
    for checkpoint in _lineage(source):
        own = [*names_of(checkpoint)]
        experiment = experiment_of(checkpoint)
        started = experiment.start if experiment else ""
        own += [started.removeprefix("hf://").partition("@")[0].replace("/", "--")] if is_hub(started) else []
        own += [part for part in re.split(r"[/\\]", started) if part]
        names += own
        layout = checkpoint.settings.get("layout", "") if isinstance(checkpoint, OrbaxSource) else checkpoint.layout
        derived = derived or layout == "meta" or is_chameleon(own) or released_as(own) is not None
    return names, started, derived


def _lineage(source: Checkpoint) -> Iterator[Checkpoint]:
    """A checkpoint, then the one that its run started from, and so on, as far as they are there."""
    for _ in range(ANCESTORS):
        yield source
        experiment = experiment_of(source)
        if not experiment or not experiment.start:
            return
        try:
            source = open_source(experiment.start)
        except UserError:  # moved, or of another machine
            return


def _repository(name: str) -> str:
    """The repository that a name of a folder stands for; "" for none."""
    if match := CACHED.fullmatch(name):
        return f"{match[1]}/{match[2]}"
    if release := released_as([name]):
        return f"{AUTHORS}/{release.name}"
    if not is_chameleon([name]):
        return ""
    size = "30b" if re.search("30b|34b", name.lower()) else "7b"
    mgpt = "mgpt" in name.lower()
    return f"{AUTHORS}/Chameleon_{size.upper().replace('30B', '34B')}_mGPT" if mgpt else f"{META}/chameleon-{size}"
