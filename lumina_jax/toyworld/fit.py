"""Codebook and tokenizer of the embedded world: for text-to-image from sampled scenes, for all tasks from every possible patch."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from lumina_jax.config import DataConfig, VQConfig
from lumina_jax.data.word_tokenizer import TASK_TEMPLATES, build, save
from lumina_jax.errors import InputError
from lumina_jax.model.patchvq import PatchVQ
from lumina_jax.toyworld.judge import ALL_KINDS
from lumina_jax.toyworld.omni import MIX, exercise
from lumina_jax.toyworld.scenes import MINI, OMNI, RELATIONS, Object, Pixels, Scene, is_of_size, radii
from lumina_jax.toyworld.source import STAGES, captioned_scene, stage_sizes
from lumina_jax.toyworld.views import VIEWS, boxed, distance
from lumina_jax.toyworld.words import world_words
from lumina_jax.vocab import IMAGE_SYMBOL

WORLD_PICTURES = 3000
WORLD_SEED = 99
STRIDE = 16
MAX_CODES = 2**16
TEXT_SEED = 98
TEXTS = 60
"""Exercises per task whose texts the tokenizer is built from, besides the words of the world."""


def fit_world(vq: VQConfig, data: DataConfig) -> None:
    """Writes the codebook ``vq.path`` and the tokenizer in ``data.tokenizer``, which all stages share: codes must not change."""
    pictures = (
        captioned_scene(MINI, stage_sizes(area), WORLD_SEED, index)[0].render()
        for area in STAGES
        for index in range(WORLD_PICTURES)
    )
    codebook = PatchVQ.fit(pictures, vq.codes)
    codebook.save(vq.path)
    save(build(codebook.codes, words=world_words()), data.tokenizer)


def fit_omni(vq: VQConfig, data: DataConfig, base: PatchVQ | None = None) -> None:
    """Writes ``vq.path``, a codebook with every patch of every task, and tokenizer.json into ``data.tokenizer``.

    The codes of ``base``, the codebook of an already trained model, keep their numbers, and new ones are appended. Without a
    base, ``vq.codes`` below the number of patches gives a coarse codebook (k-means); with one it raises InputError.
    """
    codebook = PatchVQ.fit(patch_pictures(), vq.codes if base is None else MAX_CODES, STRIDE)
    if base is not None:
        codebook = extended(base, codebook)
        if codebook.codes > vq.codes:
            raise InputError(
                f"vq.codes={vq.codes}, but the old and new patches together are {codebook.codes}; raise it"
            )
    codebook.save(vq.path)
    save(build(codebook.codes, texts(), templates=TASK_TEMPLATES, words=world_words()), data.tokenizer)


def extended(base: PatchVQ, more: PatchVQ) -> PatchVQ:
    """A codebook of the patches of ``base``, followed by those of ``more`` that it lacks."""
    known = {patch.tobytes() for patch in base.codebook}
    new = [patch for patch in more.codebook if patch.tobytes() not in known]
    return PatchVQ(np.concatenate([base.codebook, *(patch[None] for patch in new)]))


def patch_pictures() -> Iterator[np.ndarray]:
    """Pictures u8[Y X 3] that together contain every patch of every task.

    A patch never shows two objects, so pictures of one object suffice: every kind, colour and size on every background, at
    every position that differs modulo the patch size, or in depth.
    """
    for canvas in _canvases():
        for thing in _things(canvas):
            for background in OMNI.backgrounds:
                scene = Scene(*canvas, background, (thing,))
                yield scene.render()
                yield boxed(scene, thing)
            if thing.colour == OMNI.colours[0]:
                yield from (view(scene) for view in VIEWS.values())


def texts() -> Iterator[str]:
    """The texts of exercises of all tasks, and the words of the world on their own, as at the beginning of an answer."""
    yield from (*OMNI.shapes, *OMNI.colours, *OMNI.backgrounds, *RELATIONS, *(f"the {shape}s" for shape in OMNI.shapes))
    for task in MIX:
        for index in range(TEXTS):
            turns = exercise(OMNI, task, (STAGES[0], STAGES[0]), TEXT_SEED, index).turns
            yield from (text for turn in turns for message in turn for text in message.split(IMAGE_SYMBOL))


def _canvases() -> list[Pixels]:
    """One canvas for each pair of radii, the one with the longest short side."""
    by_radii = {tuple(radii(size).values()): size for area in STAGES for size in sorted(stage_sizes(area), key=min)}
    return list(by_radii.values())


def _things(canvas: Pixels) -> Iterator[Object]:
    for size in radii(canvas):
        blanks = [Object("", "", size, x, y) for x, y in OMNI.centres(size, canvas)]
        empty = Scene(*canvas, OMNI.backgrounds[0], ())
        distinct = {(blank.x % STRIDE, blank.y % STRIDE, distance(blank, empty)): blank for blank in blanks}
        for blank in distinct.values():
            for shape, pose in ALL_KINDS:
                for colour in OMNI.colours:
                    thing = replace(blank, shape=shape, colour=colour, pose=pose)
                    if is_of_size(thing, canvas):
                        yield thing
