"""The released checkpoints of Lumina-mGPT, recognised by name: the pictures each was trained on, and what its authors show by it.
Those of Chameleon are recognised too.

A checkpoint in a published layout does not say for which pictures it was made: the original leaves that to the option
--target_size of its demos, "consistent with the checkpoint". Sources: the list of checkpoints, the demos and "Simple Inference" in
the original's README; the paper's section 3.2.2 for the stages and 3.2.3 for Omni-SFT.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from lumina_jax.errors import InputError

UNIT = 32
"""A target size is a multiple of this many px, the unit of a size token."""
SMALLEST, LARGEST = 64, 2048
"""The target sizes that are accepted, in px; the largest is twice that of any stage."""
FAMILY = "Lumina-mGPT"
CHAMELEON_NAMES = re.compile(r"(?<![a-z0-9])chameleon-(7b|30b|34b)(?![a-z0-9])")
"""In lower case with hyphens: Meta's models, as transformers has them and as the original starts from."""


@dataclass(frozen=True)
class Release:
    """A released checkpoint: its ``name``, the ``model`` ("7B" or "34B"), the ``target_size`` in px whose square is the largest
    area of its pictures, what it was trained for (``training``), and what the original serves by it (``served``)."""

    name: str
    model: str
    target_size: int
    training: str
    served: str

    @property
    def short(self) -> str:
        """The name without that of the family, such as "7B-768"."""
        return self.name.removeprefix(f"{FAMILY}-")


RELEASES = tuple(
    Release(f"{FAMILY}-{short}", short.partition("-")[0], target_size, training, served)
    for short, target_size, training, served in (
        ("7B-512", 512, "FP-SFT, stage 1", "text to picture; describing a picture"),
        ("7B-768", 768, "FP-SFT, stage 2", "text to picture, the page's default"),
        ("7B-768-Omni", 768, "Omni-SFT", "the seven tasks from picture to picture, and free dialog"),
        ("7B-1024", 1024, "FP-SFT, stage 3", "text to picture"),
        (
            "7B-512-MultiImage",
            512,
            "FP-SFT, stage 1, with several pictures a prompt",
            "questions about several pictures",
        ),
        ("34B-512", 512, "FP-SFT, stage 1", "text to picture"),
    )
)
"""All of them; published as Alpha-VLLM/NAME. That README does not list 7B-512-MultiImage: only its name tells what it is."""


def released_as(names: Iterable[str]) -> Release | None:
    """The release that the first of ``names`` that names one stands for; None where none does.

    A name of a folder, a repository or a model names a release where it contains its whole name between letters that belong to no
    word ("models--Alpha-VLLM--Lumina-mGPT-7B-768", "lumina_mgpt_7b_768_bf16"), or where it is the short name ("7B-768"). Capitals
    do not matter, and - _ and spaces are equal. The longest name counts: "Lumina-mGPT-7B-768-Omni" is not Lumina-mGPT-7B-768.
    """
    longest_first = sorted(RELEASES, key=lambda release: -len(release.name))
    plain = (re.sub(r"[_\s]", "-", name.lower()) for name in names)
    return next((release for name in plain for release in longest_first if _names(name, release)), None)


def is_chameleon(names: Iterable[str]) -> bool:
    """Whether one of ``names`` is that of a release of Chameleon, such as "chameleon-7b" or "Chameleon_7B_mGPT"."""
    return any(CHAMELEON_NAMES.search(re.sub(r"[_\s]", "-", name.lower())) for name in names)


def _names(name: str, release: Release) -> bool:
    whole = rf"(?<![a-z0-9]){re.escape(release.name.lower())}(?![a-z0-9])"
    return name == release.short.lower() or re.search(whole, name) is not None


def check_target_size(size: int) -> int:
    """``size`` in px; InputError where it is no multiple of UNIT from SMALLEST to LARGEST."""
    if size % UNIT or not SMALLEST <= size <= LARGEST:
        raise InputError(
            f"a target size of {size}: it must be a multiple of {UNIT} px from {SMALLEST} to {LARGEST}; the released "
            f"checkpoints have {', '.join(map(str, sorted({release.target_size for release in RELEASES})))}"
        )
    return size
