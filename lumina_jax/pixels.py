"""The former name of lumina_jax.pictures.pixels, kept for code that imports it."""

from lumina_jax.pictures.pixels import cover, crop, decode, random_crop, to_image, to_pixels, whiten
from lumina_jax.pictures.viewer import eight_bits

__all__ = ["cover", "crop", "decode", "eight_bits", "random_crop", "to_image", "to_pixels", "whiten"]
