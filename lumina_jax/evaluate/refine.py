"""The model refines its own tokenizer's pictures by the request "No edit." (paper section 4); PSNR and SSIM before and after."""

from dataclasses import dataclass

import jax
import numpy as np
from PIL import Image

from lumina_jax.config import SampleConfig
from lumina_jax.errors import InputError
from lumina_jax.layout import answer_tokens
from lumina_jax.model.chameleon import Chameleon
from lumina_jax.model.image_tokenizer import decode_image
from lumina_jax.pictures.metrics import psnr, ssim
from lumina_jax.sample import generate
from lumina_jax.sample.picture import pictures
from lumina_jax.sample.prompt import PromptBuilder


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


def refine(model: Chameleon, builder: PromptBuilder, image: Image.Image, cfg: SampleConfig, key: jax.Array) -> Refined:
    """``image``, cropped to a size the model knows, through the task "refine".

    Raises InputError when the model answers without a picture of that size, as one does that never learned this task.
    """
    prompt = builder.task("refine", "", [image], cfg)
    original = builder.cropped(image)
    codes = builder.codes(original)
    cfg = cfg.limited(answer_tokens([codes.shape], builder.vocab.image_layout))
    (answer,) = generate(model, [prompt.ids], key, cfg, builder.vocab, sizes=[prompt.size])
    painted = pictures(answer, builder.vq, builder.vocab)
    if not painted or painted[0].size != original.size:
        raise InputError(
            f"the model answers without a picture of {original.width}x{original.height} px; refining takes a model of Omni-SFT"
        )
    return Refined(original, decode_image(builder.vq, codes), painted[0])
