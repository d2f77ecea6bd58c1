"""The model as a refiner of its own tokenizer's pictures: "No edit." (paper section 4), measured against the original."""

from dataclasses import dataclass

import jax
import numpy as np
from PIL import Image

from lumina_jax.config import SampleConfig
from lumina_jax.errors import InputError
from lumina_jax.evaluate.reconstruction import psnr
from lumina_jax.layout import answer_tokens
from lumina_jax.model.chameleon import Chameleon
from lumina_jax.pictures.metrics import ssim
from lumina_jax.pictures.pixels import to_image, to_pixels
from lumina_jax.sample import generate
from lumina_jax.sample.picture import pictures
from lumina_jax.sample.prompt import PromptBuilder


@dataclass(frozen=True)
class Refined:
    """A picture as it was cropped, as the tokenizer gives it back, and as the model repeats it."""

    original: Image.Image
    decoded: Image.Image
    refined: Image.Image

    def table(self) -> dict[str, dict[str, float]]:
        """PSNR in dB and SSIM against the original, before and after."""
        truth = np.asarray(self.original)
        sides = {"before": np.asarray(self.decoded), "after": np.asarray(self.refined)}
        return {name: {"psnr_db": psnr(truth, seen), "ssim": ssim(truth, seen)} for name, seen in sides.items()}


def refine(model: Chameleon, builder: PromptBuilder, image: Image.Image, cfg: SampleConfig, key: jax.Array) -> Refined:
    """``image``, cropped to a size the model knows, through the task "refine". Raises InputError when no picture comes back."""
    prompt = builder.task("refine", "", [image], cfg)
    original = builder.cropped(image)
    codes = np.asarray(builder.vq.encode(to_pixels(original)[None]))
    cfg = cfg.limited(answer_tokens([codes.shape[1:]]))
    (answer,) = generate(model, [prompt.ids], key, cfg, builder.vocab, sizes=[prompt.size])
    refined = pictures(answer, builder.vq, builder.vocab)
    if not refined or refined[0].size != original.size:
        raise InputError(
            f"the model answers without a picture of {original.width}x{original.height} px; refining takes a model of Omni-SFT"
        )
    return Refined(original, to_image(np.asarray(builder.vq.decode(codes))[0]), refined[0])
