"""How much of each folder an epoch takes."""

from collections.abc import Sequence

import numpy as np


def quotas(counts: np.ndarray, weights: Sequence[float], by: str) -> np.ndarray:
    """How many records of each length an epoch takes from each folder, i64[F L], of the ``counts`` i64[F L] it has.

    Without ``weights`` each record once. Else the folders have shares like their ``weights`` in the epoch's records or, ``by``
    "tokens", in its tokens: the folder that its weight makes last longest gives each record once, and the others go round
    as often as that takes, at every length alike up to rounding.
    """
    if not weights:
        return counts
    held = counts.sum(1) if by == "records" else counts @ np.arange(counts.shape[1])
    rate = np.asarray(weights) / held
    ends = np.floor(np.cumsum(counts, 1) * (rate / rate.min())[:, None] + 0.5).astype(np.int64)
    return np.diff(ends, axis=1, prepend=0)
