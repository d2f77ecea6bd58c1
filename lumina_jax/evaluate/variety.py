"""How various the pictures of one prompt are (paper Figure 5): their mean pairwise distance."""

from collections.abc import Callable, Sequence
from itertools import combinations

import numpy as np

from lumina_jax.pictures.metrics import ssim

Distance = Callable[[np.ndarray, np.ndarray], float]
"""Two pictures u8[Y X 3] of one size -> a distance."""


def rms(first: np.ndarray, second: np.ndarray) -> float:
    """Root of the mean squared difference of two pictures u8[Y X 3], in levels 0 to 255."""
    return float(np.sqrt(np.mean(np.square(first.astype(np.float64) - second))))


def variety(pictures: Sequence[np.ndarray], lpips: Distance | None = None) -> dict[str, float | int | None]:
    """Numbers of pictures u8[Y X 3] of one size: how many there are (``pictures``), how many differ (``different``), and over all
    pairs the mean ``rms`` (levels 0 to 255), the mean ``one_minus_ssim`` (0 for equal ones) and with ``lpips`` its mean.

    The means of fewer than two pictures are None.
    """
    distances = {"rms": rms, "one_minus_ssim": lambda *pair: 1 - ssim(*pair)} | ({"lpips": lpips} if lpips else {})
    pairs = list(combinations(pictures, 2))
    means = {
        name: float(np.mean([distance(*pair) for pair in pairs])) if pairs else None
        for name, distance in distances.items()
    }
    return {"pictures": len(pictures), "different": len({picture.tobytes() for picture in pictures})} | means


def mean_of(tables: Sequence[dict[str, float | int | None]]) -> dict[str, float | None]:
    """The mean of each number over the tables that have it; None where none has."""
    values = {name: [table[name] for table in tables if table[name] is not None] for name in tables[0]}
    return {name: float(np.mean(numbers)) if numbers else None for name, numbers in values.items()}
