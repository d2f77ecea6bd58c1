"""Sampling: guidance and constraints, one-by-one decoding, answers as text and pictures."""

from lumina_jax.sample.decode import generate

__all__ = ["generate"]
