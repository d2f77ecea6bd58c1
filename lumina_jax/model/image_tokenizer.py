"""The image tokenizer as the rest of the project sees it: pictures to codes and back, whichever of VQVAE and PatchVQ it is.

``convert.load_image_tokenizer`` reads either kind from disk.
"""

import hashlib
from collections.abc import Callable
from typing import Protocol

import jax
import numpy as np
from PIL import Image

from lumina_jax.errors import InputError
from lumina_jax.pictures.pixels import to_image, to_pixels


class ImageTokenizer(Protocol):
    """What VQVAE and PatchVQ have in common."""

    on_devices: bool
    """Whether ``encode`` and ``decode`` are jitted and run on JAX devices; else they run on the host, in numpy."""

    @property
    def stride(self) -> int:
        """Pixels per code, along either axis."""

    @property
    def codes(self) -> int:
        """E, the number of codes."""

    def encode(self, pixels: jax.Array | np.ndarray) -> jax.Array | np.ndarray:
        """f32[B Y X 3] in [-1, 1] -> i32[B R C]. Raises InputError for a size off the stride."""

    def decode(self, codes: jax.Array | np.ndarray) -> jax.Array | np.ndarray:
        """i32[B R C] -> f32[B Y X 3], about [-1, 1] but not clipped."""

    def encoder_weights(self) -> list[jax.Array | np.ndarray]:
        """The arrays that codes depend on, in a fixed order."""


class EncoderOnly:
    """An image tokenizer whose decoder is not at hand, as in transformers' checkpoints of Chameleon: it reads pictures only."""

    def __init__(self, tokenizer: ImageTokenizer, source: str):
        """``tokenizer`` may lack what its ``decode`` needs; ``source`` is where it comes from, for messages."""
        self.tokenizer, self.source = tokenizer, source
        self.on_devices, self.stride, self.codes = tokenizer.on_devices, tokenizer.stride, tokenizer.codes
        self.encode, self.encoder_weights = tokenizer.encode, tokenizer.encoder_weights

    def decode(self, codes: jax.Array | np.ndarray) -> jax.Array | np.ndarray:
        raise InputError(
            f"{self.source} holds the encoder of the image tokenizer alone, which paints no pictures; put vqgan.ckpt and "
            "vqgan.yaml of Meta's Chameleon release beside it, or name them with --vq"
        )


def encode_image(
    tokenizer: ImageTokenizer, image: Image.Image, scaled: Callable[[Image.Image], np.ndarray] = to_pixels
) -> np.ndarray:
    """A picture whose sides are multiples of the stride -> its codes i32[R C]; ``scaled`` makes f32[Y X 3] of it."""
    return np.asarray(tokenizer.encode(scaled(image)[None]))[0]


def decode_image(tokenizer: ImageTokenizer, codes: np.ndarray) -> Image.Image:
    """Codes i32[R C] -> an RGB picture of R * stride by C * stride pixels."""
    return to_image(np.asarray(tokenizer.decode(codes[None]))[0])


def fingerprint(tokenizer: ImageTokenizer) -> str:
    """16 hex digits of the SHA-256 of :meth:`ImageTokenizer.encoder_weights`: they differ where pictures get other codes."""
    digest = hashlib.sha256()
    for array in tokenizer.encoder_weights():
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()[:16]
