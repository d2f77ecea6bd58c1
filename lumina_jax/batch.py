"""Batch: the only thing that crosses from data to train."""

from typing import NamedTuple

import jax
import numpy as np

Array = jax.Array | np.ndarray


class Batch(NamedTuple):
    """A global or host-local batch of token rows; targets are the inputs shifted by one.

    ``inputs`` and ``targets`` are i32[B T]; ``learn`` bool[B T] masks the targets that count in the loss; ``positions``
    i32[B T] start at 0 in each segment; ``segments`` i32[B T] number the samples of a row from 1, and 0 is padding.
    """

    inputs: Array
    targets: Array
    learn: Array
    positions: Array
    segments: Array


DTYPES = (np.int32, np.int32, np.bool_, np.int32, np.int32)
"""The dtypes of a Batch's fields, in their order."""
