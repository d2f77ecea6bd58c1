"""The embedded world as records to pretokenize, and as prompts to evaluate with."""

import hashlib
from collections.abc import Sequence

import numpy as np
from PIL import Image

from lumina_jax.data.sources import Record
from lumina_jax.errors import InputError
from lumina_jax.layout import crop_sizes
from lumina_jax.toyworld.captions import Caption, caption
from lumina_jax.toyworld.scenes import Pixels, Scene, World

STAGES = (64, 96, 128)
"""Edges in px of the areas of the three stages."""

REVIEW = 3
"""A canvas of the stage at hand is this many times as frequent as one of an earlier stage."""

LEAST_SHARE = 0.65
"""Canvases of a stage have at least this share of the area aimed at."""

EVALUATION = 2**32
"""Added to the seed of prompts, so that their stream is never one of training, whose seeds are smaller."""


def stage_sizes(target: int) -> list[Pixels]:
    """The canvases (width, height) in px of a stage of about ``target``² px: its crop sizes that are not too small."""
    return [size for size in crop_sizes(target) if size[0] * size[1] >= LEAST_SHARE * target**2]


def training_sizes(target: int) -> list[Pixels]:
    """The canvases a stage trains on: its own, and now and then those of earlier stages.

    The published stages see one area each. A model this small forgets the others at once, and every size should be had.
    """
    earlier = [size for stage in STAGES if stage < target for size in stage_sizes(stage)]
    return REVIEW * stage_sizes(target) + earlier


def captioned(
    world: World, sizes: Sequence[Pixels], seed: int, index: int, held_out: bool = False
) -> tuple[Scene, Caption]:
    """Scene ``index`` of a stream, on each of ``sizes`` in turn, and its caption: a pure function of its arguments."""
    scene = world.scene(sizes[index % len(sizes)], seed, index, held_out)
    return scene, caption(scene, np.random.default_rng((seed, index)))


class ToySource:
    """``count`` captioned scenes of ``world``, made when asked for; a data source for pretokenizing.

    Canvases take turns; one listed twice comes twice as often. ``sizes`` holds each of them once.
    """

    def __init__(self, world: World, sizes: Sequence[Pixels], count: int, seed: int, held_out: bool = False):
        if not sizes or count < 1 or not 0 <= seed < EVALUATION:
            raise InputError(
                f"{len(sizes)} sizes, count={count}, seed={seed}: need at least 1, 1, and 0 <= seed < 2**32"
            )
        self.sizes = sorted(set(sizes))
        self._world, self._sizes, self._count, self._seed, self._held_out = world, tuple(sizes), count, seed, held_out

    @property
    def fingerprint(self) -> str:
        """16 hex digits that change when the records do."""
        made_from = (self._world, self._sizes, self._count, self._seed, self._held_out)
        return hashlib.sha256(repr(made_from).encode()).hexdigest()[:16]

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> Record:
        if not 0 <= index < self._count:
            raise IndexError(f"record {index} of {self._count}")
        scene, said = captioned(self._world, self._sizes, self._seed, index, self._held_out)
        return Record([], [Image.fromarray(scene.render())], said.text)


def prompts(
    world: World, sizes: Sequence[Pixels], count: int, seed: int, held_out: bool = False
) -> list[tuple[Caption, Pixels]]:
    """``count`` captions with the canvas each is for, from streams no training record comes from."""
    drawn = [captioned(world, sizes, EVALUATION + seed, index, held_out) for index in range(count)]
    return [(said, scene.canvas) for scene, said in drawn]
