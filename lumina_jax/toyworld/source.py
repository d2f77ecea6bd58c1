"""The embedded world as records to pretokenize and as prompts for evaluation."""

import hashlib
from collections.abc import Sequence

import numpy as np
from PIL import Image

from lumina_jax.data.sources import Record
from lumina_jax.errors import InputError
from lumina_jax.layout import crop_sizes
from lumina_jax.toyworld.captions import Caption, random_caption
from lumina_jax.toyworld.scenes import Pixels, Scene, World

STAGES = (64, 96, 128)
"""Square roots in px of the canvas areas of the three stages."""

REVIEW = 3
"""How many times as frequent a stage's own canvases are in its training as those of earlier stages."""

LEAST_SHARE = 0.65
"""Minimum area of a stage's canvases, as a share of its target area."""

EVALUATION = 2**32
"""Offset of evaluation seeds. Training seeds are smaller, so the streams are disjoint."""


def stage_sizes(target: int) -> list[Pixels]:
    """The canvases (width, height) in px of a stage of about ``target``² px: its crop sizes that are not too small."""
    return [size for size in crop_sizes(target) if size[0] * size[1] >= LEAST_SHARE * target**2]


def training_sizes(target: int) -> list[Pixels]:
    """The canvases that a stage trains on: its own REVIEW times, those of earlier stages once.

    The published stages train on one area each. A model as small as this one would soon forget the earlier areas.
    """
    earlier = [size for stage in STAGES if stage < target for size in stage_sizes(stage)]
    return REVIEW * stage_sizes(target) + earlier


def captioned_scene(
    world: World, sizes: Sequence[Pixels], seed: int, index: int, held_out: bool = False
) -> tuple[Scene, Caption]:
    """Scene ``index`` of stream ``seed`` and its caption; ``sizes`` take turns. A pure function of its arguments."""
    scene = world.scene(sizes[index % len(sizes)], seed, index, held_out)
    return scene, random_caption(scene, np.random.default_rng((seed, index)))


class WorldSource:
    """``count`` records of ``world``, made on access: a data source for pretokenizing. ``option`` is a subclass's own setting.

    A canvas size that ``sizes`` list twice comes twice as often; the attribute ``sizes`` has no duplicates. Raises InputError
    unless there are sizes and records, and the seed is below those of evaluation.
    """

    def __init__(self, world: World, sizes: Sequence[Pixels], count: int, seed: int, option: object):
        if not sizes or count < 1 or not 0 <= seed < EVALUATION:
            raise InputError(
                f"{len(sizes)} sizes, count={count}, seed={seed}: need at least 1, 1, and 0 <= seed < 2**32"
            )
        self.sizes = sorted(set(sizes))
        self._settings = (world, tuple(sizes), count, seed, option)

    @property
    def fingerprint(self) -> str:
        """Hash of all settings, 16 hex digits: it changes when the records do."""
        return hashlib.sha256(repr(self._settings).encode()).hexdigest()[:16]

    def __len__(self) -> int:
        return self._settings[2]

    def _check(self, index: int) -> None:
        if not 0 <= index < len(self):
            raise IndexError(f"record {index} of {len(self)}")


class ToySource(WorldSource):
    """Captioned scenes; the canvas ``sizes`` take turns."""

    def __init__(self, world: World, sizes: Sequence[Pixels], count: int, seed: int, held_out: bool = False):
        super().__init__(world, sizes, count, seed, held_out)

    def __getitem__(self, index: int) -> Record:
        self._check(index)
        world, sizes, _, seed, held_out = self._settings
        scene, caption = captioned_scene(world, sizes, seed, index, held_out)
        return Record([], [Image.fromarray(scene.render())], caption.text)


def prompts(
    world: World, sizes: Sequence[Pixels], count: int, seed: int, held_out: bool = False
) -> list[tuple[Caption, Pixels]]:
    """``count`` captions and the canvas (width, height) of each, from streams that training never uses."""
    pairs = [captioned_scene(world, sizes, EVALUATION + seed, index, held_out) for index in range(count)]
    return [(caption, scene.canvas) for scene, caption in pairs]
