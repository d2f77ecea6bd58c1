"""The types of sampling: a request, what a program is compiled for, what stays the same in every pass, and what changes.

With guidance every row of tokens has two rows of the cache, side by side so that a pair shares a device: they hold the same
tokens, and the second (unconditional) row does not see what stands before its last begin-image.
"""

from dataclasses import dataclass, field
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lumina_jax.model.attention import KVCache
from lumina_jax.model.chameleon import CachedLayers, Chameleon
from lumina_jax.sample.guidance import DynamicConfig, code_ids
from lumina_jax.sample.position import ImagePosition
from lumina_jax.sample.tree import Tree, tree_of
from lumina_jax.vocab import Vocab


class Request(NamedTuple):
    """A batch of prompts as arrays. The first axis of each is B; equal prompts are neighbours.

    ``ids`` i32[B P] are padded on the left by ``padding`` i32[B]; ``image_slot`` i32[B] is the slot of the last begin-image;
    ``position`` is that of the first answer token; ``sizes`` i32[B 2] are rows and columns of the images to come, 0 for free;
    ``keys`` are one per row; ``idle`` bool[B] marks rows that only fill up the mesh.
    """

    ids: np.ndarray
    padding: np.ndarray
    image_slot: np.ndarray
    position: ImagePosition
    sizes: np.ndarray
    keys: jax.Array
    idle: np.ndarray


class RequestRows(NamedTuple):
    """A request in which each prompt fills ``copies`` consecutive rows; the answer to prompt i is row ``rows[i]``."""

    request: Request
    copies: int
    rows: np.ndarray


class ProgramKey(NamedTuple):
    """What a program is compiled for beside the shapes of its arguments.

    ``slots`` of the cache; ``pairs``: two rows of the cache per row of tokens, for guidance; ``method``: SampleConfig.parallel;
    ``window``: the number of tokens in a pass; ``branches``: how many more it feeds that branch off (:mod:`.tree`);
    ``int8``: whether the cache is (SampleConfig.cache).
    """

    slots: int
    pairs: bool
    method: str
    window: int
    branches: int = 0
    int8: bool = False


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class Context:
    """All that stays the same in every pass. ``head`` [D E] holds the output head's columns of the image codes.

    ``layers`` are set inside a program only, for its loop over passes (Chameleon.unstack).
    """

    model: Chameleon
    head: jax.Array
    request: Request
    config: DynamicConfig
    vocab: Vocab = field(metadata={"static": True})
    program: ProgramKey = field(metadata={"static": True})
    layers: CachedLayers | None = field(default=None, metadata={"static": True})

    @property
    def code_ids(self) -> np.ndarray:
        """i32[E]: the token ids of the image codes."""
        return code_ids(self.vocab, self.model.cfg.vocab)

    @property
    def code_index(self) -> jax.Array:
        """i32[V]: a token's index in :attr:`code_ids`; 0 for other tokens."""
        return jnp.zeros(self.model.cfg.vocab, jnp.int32).at[self.code_ids].set(np.arange(len(self.code_ids)))

    @property
    def tree(self) -> Tree:
        """The tokens of a pass."""
        return tree_of(self.program.window, self.program.branches)

    @property
    def answer_slot(self) -> int:
        """The slot of the first answer token."""
        return self.request.ids.shape[1]


class State(NamedTuple):
    """What a pass changes.

    ``tokens`` i32[B S] hold prompt and answer by cache slot. ``count`` i32[B] of them belong to the answer, and all but the last
    are in the ``cache``, which has B rows, or 2B with guidance. Drafts stand behind them, drawn from the probabilities ``q``
    f32[B T-1 E] (E values per draft; no drafts: f32[B 0 E]). ``replacements`` i32[B P RANKS-1] may stand in the place of the first
    P drafts (:mod:`.tree`; P is 0 without branches). ``position`` is that of the next token; ``passes`` i32[B] counts
    those that a row has taken; ``done`` bool[B]; ``finite`` bool[] is False once logits were NaN or infinite.
    """

    tokens: jax.Array
    count: jax.Array
    cache: KVCache
    q: jax.Array
    replacements: jax.Array
    position: ImagePosition
    passes: jax.Array
    done: jax.Array
    finite: jax.Array


def paired(rows, pairs: bool) -> jax.Array:
    """[B ...] -> [2B ...], each row twice, when ``pairs``."""
    return jnp.repeat(rows, 2, axis=0) if pairs else jnp.asarray(rows)


def at_slot(rows: jax.Array, slot: jax.Array) -> jax.Array:
    """[B T ...] -> [B ...] at slot i32[B]."""
    return rows[jnp.arange(len(rows)), slot]


def slots_from(tokens: jax.Array, slot: jax.Array, n: int) -> jax.Array:
    """i32[B S] -> i32[B n]: those from slot i32[B] on."""
    return jax.vmap(lambda row, first: jax.lax.dynamic_slice(row, (first,), (n,)))(tokens, slot)


def write_slots(tokens: jax.Array, written: jax.Array, slot: jax.Array) -> jax.Array:
    """tokens i32[B S] with ``written`` i32[B n] from slot i32[B] on."""
    return jax.vmap(jax.lax.dynamic_update_slice)(tokens, written, slot[:, None])
