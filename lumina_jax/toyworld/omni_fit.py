"""Codebook and tokenizer of the embedded world with all its tasks, enumerated: no patch and no word is left to chance."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from lumina_jax.config import DataConfig, VQConfig
from lumina_jax.data.word_tokenizer import TASK_TEMPLATES, build, save
from lumina_jax.errors import InputError
from lumina_jax.model.patchvq import PatchVQ
from lumina_jax.toyworld.judge import ALL_KINDS
from lumina_jax.toyworld.omni import MIX, exercise
from lumina_jax.toyworld.scenes import OMNI, RELATIONS, Object, Pixels, Scene, World, is_of_size, radii
from lumina_jax.toyworld.source import STAGES, stage_sizes
from lumina_jax.toyworld.views import VIEWS, boxed, distance
from lumina_jax.toyworld.words import world_words
from lumina_jax.vocab import IMAGE_SYMBOL

STRIDE = 16
MOST_CODES = 2**16
TEXT_SEED = 98
TEXTS = 60
"""Exercises of each task whose words the tokenizer knows, besides the words of the world."""


def fit_omni(vq: VQConfig, data: DataConfig, base: PatchVQ | None = None, world: World = OMNI) -> None:
    """Writes ``vq.path``, a codebook of every picture of every task, and tokenizer.json into ``data.tokenizer``.

    With ``base``, the codebook a model knows already, its codes keep their numbers and new ones follow. When ``vq.codes``
    are fewer than there are patches, the codebook is that coarse, by k-means; ValueError if there is a ``base`` as well.
    """
    codebook = PatchVQ.fit(alphabet(world), vq.codes if base is None else MOST_CODES, STRIDE)
    if base is not None:
        codebook = extended(base, codebook)
        if codebook.codes > vq.codes:
            raise InputError(
                f"vq.codes={vq.codes}, but the old and new patches together are {codebook.codes}; raise it"
            )
    codebook.save(vq.path)
    save(build(codebook.codes, texts(world), templates=TASK_TEMPLATES, words=world_words()), Path(data.tokenizer))


def extended(base: PatchVQ, more: PatchVQ) -> PatchVQ:
    """The patches of ``base`` under their numbers, then those of ``more`` that it lacks."""
    known = {patch.tobytes() for patch in base.codebook}
    new = [patch for patch in more.codebook if patch.tobytes() not in known]
    return PatchVQ(np.concatenate([base.codebook, *(patch[None] for patch in new)]))


def alphabet(world: World = OMNI) -> Iterator[np.ndarray]:
    """Pictures u8[Y X 3] that hold every patch of every task.

    A patch never shows two objects, so one object at a time is enough: each kind, colour and size on each background, in
    each of the places that differ by more than whole patches, or in depth.
    """
    for canvas in _canvases():
        for thing in _things(world, canvas):
            for background in world.backgrounds:
                scene = Scene(*canvas, background, (thing,))
                yield scene.render()
                yield boxed(scene, thing)
            if thing.colour == world.colours[0]:
                yield from (view(scene) for view in VIEWS.values())


def texts(world: World = OMNI) -> Iterator[str]:
    """What is said in exercises of all tasks; the words of the world also as they begin an answer."""
    yield from (*world.shapes, *world.colours, *world.backgrounds, *RELATIONS)
    yield from (f"the {shape}s" for shape in world.shapes)
    for task in MIX:
        for index in range(TEXTS):
            turns = exercise(world, task, (STAGES[0], STAGES[0]), TEXT_SEED, index).turns
            yield from (part for turn in turns for message in turn for part in message.split(IMAGE_SYMBOL))


def _canvases() -> list[Pixels]:
    """One canvas for each pair of radii, the roomiest."""
    found = {tuple(radii(size).values()): size for area in STAGES for size in sorted(stage_sizes(area), key=min)}
    return list(found.values())


def _things(world: World, canvas: Pixels) -> Iterator[Object]:
    for size in radii(canvas):
        some = Object("", "", size, 0, 0)
        places = [replace(some, x=x, y=y) for x, y in world.centres(size, canvas)]
        empty = Scene(*canvas, world.backgrounds[0], ())
        distinct = {(at.x % STRIDE, at.y % STRIDE, distance(at, empty)): at for at in places}
        for at in distinct.values():
            for shape, pose in ALL_KINDS:
                for colour in world.colours:
                    thing = replace(at, shape=shape, colour=colour, pose=pose)
                    if shape in world.shapes and is_of_size(thing, canvas):
                        yield thing
