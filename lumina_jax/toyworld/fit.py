"""Codebook and tokenizer of the embedded world."""

from pathlib import Path

from lumina_jax.config import DataConfig, VQConfig
from lumina_jax.data.word_tokenizer import build, save
from lumina_jax.model.patchvq import PatchVQ
from lumina_jax.toyworld.scenes import MINI, World
from lumina_jax.toyworld.source import STAGES, captioned_scene, stage_sizes
from lumina_jax.toyworld.words import world_words

WORLD_PICTURES = 3000
WORLD_SEED = 99


def fit_world(vq: VQConfig, data: DataConfig, world: World = MINI) -> None:
    """Writes the codebook ``vq.path`` and the tokenizer in ``data.tokenizer``, which all stages share: codes must not change."""
    pictures = (
        captioned_scene(world, stage_sizes(area), WORLD_SEED, index)[0].render()
        for area in STAGES
        for index in range(WORLD_PICTURES)
    )
    codebook = PatchVQ.fit(pictures, vq.codes)
    codebook.save(vq.path)
    save(build(codebook.codes, words=world_words()), Path(data.tokenizer))
