"""The former name of lumina_jax.pictures.pixels, kept for code that imports it."""

from lumina_jax.pictures.pixels import *  # noqa: F403
