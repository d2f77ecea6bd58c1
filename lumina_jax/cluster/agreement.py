"""Values that the processes of a run exchange through JAX's collectives; all of them call these functions together."""

from collections.abc import Callable

import jax
import numpy as np
from jax.experimental import multihost_utils

TEXT_BYTES = 512
"""The most of a text that is sent."""


def from_first(numbers: list[int]) -> list[int]:
    """The ``numbers`` (below 2^31) of process 0, whatever those of this process are."""
    count = multihost_utils.broadcast_one_to_all(np.int32(len(numbers)))
    return multihost_utils.broadcast_one_to_all(np.resize(np.array(numbers, np.int32), int(count))).tolist()


def text_from_first(make: Callable[[], str]) -> str:
    """The text that process 0 makes; the others wait for it, and neither read nor list what it is made of."""
    if jax.process_count() == 1:
        return make()
    return bytes(from_first(list(make().encode()) if jax.process_index() == 0 else [])).decode()


def first_text(text: str) -> str:
    """The ``text`` of the first process whose text is not empty; empty when there is none."""
    if jax.process_count() == 1:
        return text
    letters = np.frombuffer(text.encode()[:TEXT_BYTES].ljust(TEXT_BYTES), np.uint8)
    rows = (
        bytes(row).decode(errors="ignore").strip() for row in np.asarray(multihost_utils.process_allgather(letters))
    )
    return next(filter(None, rows), "")
