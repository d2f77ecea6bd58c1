"""Batch: the only thing that crosses from data to train."""

from typing import NamedTuple

import jax
import numpy as np

Array = jax.Array | np.ndarray


class Batch(NamedTuple):
    """A global or host-local batch of token rows, already shifted by one.

    ``inputs`` and ``targets`` are i32[B T]; ``learn`` bool[B T] says whose target is learned; ``positions`` i32[B T] count
    from 0 in each segment; ``segments`` i32[B T] number the samples in a row from 1, 0 is padding.
    """

    inputs: Array
    targets: Array
    learn: Array
    positions: Array
    segments: Array
