"""The model refines its own tokenizer's pictures by the request "No edit." (paper section 4); PSNR and SSIM before and after."""

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
    """A picture as it was cropped, as the tokenizer alone decodes it, and as the model's answer shows it."""

    original: Image.Image
    decoded: Image.Image
    refined: Image.Image

    def table(self) -> dict[str, dict[str, float]]:
        """PSNR in dB and SSIM against the original, "before" (decoded) and "after" (refined)."""
        truth = np.asarray(self.original)
        pictures = {"before": np.asarray(self.decoded), "after": np.asarray(self.refined)}
        return {
            name: {"psnr_db": psnr(truth, pixels), "ssim": ssim(truth, pixels)} for name, pixels in pictures.items()
        }


def refine(model: Chameleon, desk: Desk, image: Image.Image, cfg: SampleConfig, key: jax.Array) -> Refined:
    """``image``, cropped to a size the model knows, through the task "refine".

    Raises InputError when the model answers without a picture of that size, as one does that never learned this task.
    """
    ask = desk.task("refine", "", [image], cfg)
    original = desk.cropped(image)
    codes = encode_image(desk.vq, original)
    max_new_tokens = min(cfg.max_new_tokens, grid_tokens(*codes.shape) + TOKENS_AROUND)
    cfg = replace(cfg, max_new_tokens=max_new_tokens)
    (answer,) = generate(model, [ask.ids], key, cfg, desk.vocab, sizes=[ask.size])
    painted = pictures(answer, desk.vq, desk.vocab)
    if not painted or painted[0].size != original.size:
        raise InputError(
            f"the model answers without a picture of {original.width}x{original.height} px; refining takes a model of Omni-SFT"
        )
    return Refined(original, decode_image(desk.vq, codes), painted[0])
