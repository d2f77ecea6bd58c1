"""The model as a refiner of its own tokenizer's pictures: "No edit." (paper section 4), measured against the original."""

from dataclasses import dataclass, replace

import jax
import numpy as np
from PIL import Image

from lumina_jax.config import SampleConfig
from lumina_jax.errors import InputError
from lumina_jax.layout import TOKENS_AROUND, grid_tokens
from lumina_jax.model.chameleon import Chameleon
from lumina_jax.model.image_tokenizer import decode_image, encode_image
from lumina_jax.pictures.metrics import psnr, ssim
from lumina_jax.sample import generate
from lumina_jax.sample.picture import pictures
from lumina_jax.sample.prompt import Desk


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


def refine(model: Chameleon, desk: Desk, image: Image.Image, cfg: SampleConfig, key: jax.Array) -> Refined:
    """``image``, cut to a size the model knows, through the task "refine". Raises ValueError when no picture comes back."""
    ask = desk.task("refine", "", [image], cfg)
    original = desk.cropped(image)
    codes = encode_image(desk.vq, original)
    room = min(cfg.max_new_tokens, grid_tokens(*codes.shape) + TOKENS_AROUND)
    (answer,) = generate(model, [ask.ids], key, replace(cfg, max_new_tokens=room), desk.vocab, sizes=[ask.size])
    found = pictures(answer, desk.vq, desk.vocab)
    if not found or found[0].size != original.size:
        raise InputError(
            f"the model answers without a picture of {original.width}x{original.height} px; refining takes a model of Omni-SFT"
        )
    return Refined(original, decode_image(desk.vq, codes), found[0])
