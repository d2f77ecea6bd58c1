"""A simulated model of image tokens whose next-token entropy and drift are those measured on Lumina-mGPT 7B.

Drift is how far the next-token distribution moves when one earlier token changes: its total variation, by the offset of that
token. Speculative decoding lives on it: a draft that was drawn behind other tokens stands as often as p has not moved.

Logits are ``head`` times a hidden state, as in a real model. The hidden state of a place is a random vector of that place (all that
does not change within a window: the prompt, and the picture so far) plus, for each earlier token of the picture up to
REACH places back, a random vector of token and offset, scaled by a weight of its offset. The weights are fitted to DRIFT and the
overall scale to the entropy wanted at a place (:func:`calibrated`). SimulatedModel has the methods of Chameleon that the sampler
calls, so it is decoded by the code that decodes real models; its "cache" holds the tokens.

Assumed, because it has not been measured: entropies are spread evenly over ENTROPIES and equal within blocks of BLOCK x BLOCK
codes; between the measured offsets, and beyond them in a row, drift follows power laws; the picture is isotropic (the code above
moves a place as much as the code to the left); tokens have no likeness, so a draft copied from a neighbour is no better than any
other; and the conditional stream differs from the unconditional one by
STREAMS of its size. Entropy and drift are fitted to the distribution that tokens are drawn from, with a guidance of 4.
"""

from dataclasses import dataclass, field, replace

import jax
import jax.numpy as jnp
import numpy as np
from tokenizers import Tokenizer, models

from lumina_jax.config import ModelConfig
from lumina_jax.model.attention import KVCache, Order, write_slots
from lumina_jax.vocab import BEGIN, BEGIN_IMAGE, END_IMAGE, END_OF_LINE, END_OF_TURN, Vocab, image_code_name, size_name

DRIFT = {1: 0.32, 3: 0.06, 5: 0.042, 7: 0.034, 15: 0.024}
"""Offset of a changed token -> total variation of the next-token distribution, on Lumina-mGPT 7B (figures of arXiv 2603.18599)."""
ENTROPIES = (3.0, 7.0)
"""Lowest and highest entropy of a place, nats."""
GUIDANCE = 4.0
STREAMS = 0.25
PUBLISHED = 1.35
"""Drift in units of DRIFT with which "sjd" takes as many passes as is published. DRIFT is of one changed token among true ones; in
a window all tokens behind the first change, and many are no likely continuation."""
BLOCK = 8
REACH = 64
"""Tokens before a place that it depends on."""
HIDDEN = 128
"""Size of the hidden state."""
SIZE_UNITS = 24
"""The largest side of a picture, in units of two codes."""


def simulated_vocab(codes: int, pictures: int) -> Vocab:
    """A tokenizer of ``codes`` image codes, whose ids begin at 0, the markers and sizes, and a word for each of ``pictures``."""
    markers = (BEGIN, BEGIN_IMAGE, END_IMAGE, END_OF_LINE, END_OF_TURN)
    names = [*map(image_code_name, range(codes)), *markers, *map(size_name, range(1, SIZE_UNITS + 1))]
    names += [f"picture{number}" for number in range(pictures)]
    return Vocab(Tokenizer(models.WordLevel({name: index for index, name in enumerate(names)}, unk_token=BEGIN)))


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class SimulatedModel:
    """``table`` f32[V HIDDEN] of unit vectors, ``signs`` f32[2 REACH HIDDEN] and ``weights`` f32[REACH] by offset - 1, of the two
    parts of a hidden state; ``head`` f32[HIDDEN V]; ``scales`` f32[n] of evenly spaced entropies from ENTROPIES[0] to [1]."""

    table: jax.Array
    signs: jax.Array
    weights: jax.Array
    head: jax.Array
    scales: jax.Array
    begin_image: int = field(metadata={"static": True})
    cols: int = field(metadata={"static": True})
    cfg: ModelConfig = field(metadata={"static": True})

    @classmethod
    def drawn(cls, vocab: Vocab, cols: int, seed: int = 0) -> "SimulatedModel":
        """A model of pictures with ``cols`` columns, without drift and with an equal scale everywhere."""
        V = len(vocab)
        table, head, signs = jax.random.split(jax.random.key(seed), 3)
        table = jax.random.normal(table, (V, HIDDEN))
        return cls(
            table=table / jnp.linalg.norm(table, axis=1, keepdims=True),
            signs=jax.random.rademacher(signs, (2, REACH, HIDDEN), jnp.float32),
            weights=jnp.zeros(REACH),
            head=jax.random.normal(head, (HIDDEN, V)),
            scales=jnp.ones(2),
            begin_image=vocab.boi,
            cols=cols,
            cfg=ModelConfig(vocab=V, width=HIDDEN, layers=1, heads=1, kv_heads=1, head_dim=HIDDEN),
        )

    def empty_cache(self, rows: int, slots: int, int8: bool = False) -> KVCache:
        """``keys`` hold the tokens, i32[1 rows 1 slots 1]; ``values`` nothing. They are exact; ``int8`` changes nothing."""
        empty = jnp.zeros((1, rows, 1, slots, 1), jnp.int32)
        return KVCache(empty, empty, jnp.zeros((), jnp.int32), jnp.zeros(rows, jnp.int32))

    def unstack(self, cache: KVCache) -> tuple[None, KVCache]:
        return None, cache

    def logits(self, hidden: jax.Array) -> jax.Array:
        """[B T HIDDEN] -> f32[B T V]."""
        return jnp.einsum("BTD,DV->BTV", hidden, self.head)

    def cached(
        self, ids: jax.Array, cache: KVCache, reaches=None, layers=None, order: Order | None = None
    ) -> tuple[jax.Array, KVCache]:
        """Ids i32[B T] -> (hidden f32[B T HIDDEN], the cache with them); arguments as of Chameleon.cached.

        A row is unconditional where the first token that it sees begins the image.
        """
        B, T = ids.shape
        order = order or Order.of_chain(T)
        keys = write_slots(cache.keys, ids[None, :, None, :, None], cache.length)
        tokens, length = keys[0, :, 0, :, 0], jnp.broadcast_to(cache.length, B)
        padded = jnp.pad(tokens, ((0, 0), (REACH, 0)))
        past = jax.vmap(lambda row, start: jax.lax.dynamic_slice(row, (start,), (REACH + T,)))(padded, length)
        begin = jnp.argmax(tokens == self.begin_image, axis=1)
        picture = tokens[jnp.arange(B), jnp.maximum(begin - 1, 0)]
        place = length[:, None] + order.depth - begin[:, None]
        shared, apart = self._hidden(past[:, _earlier(order)], picture, place)
        visible = cache.visible_from if cache.visible_from.shape == begin.shape else jnp.zeros_like(begin)
        conditional = (visible < begin)[:, None, None]
        hidden = (shared + jnp.where(conditional, STREAMS * apart, 0)) / np.sqrt(1 + (GUIDANCE * STREAMS) ** 2)
        return hidden, cache._replace(keys=keys, length=cache.length + T)

    def _hidden(self, earlier: jax.Array, picture: jax.Array, place: jax.Array) -> jax.Array:
        """f32[2 B T HIDDEN]: the two parts of the hidden states at ``place`` i32[B T] of ``picture`` i32[B].

        ``earlier`` i32[B T REACH] are the tokens up to there, the last one first.
        """
        still = _normal(picture, place, 2, (2, HIDDEN)) / HIDDEN**0.5
        vectors = self.table[earlier] * self.weights[:, None]
        parts = jnp.moveaxis(still, 2, 0) + jnp.einsum("BTOD,POD->PBTD", vectors, self.signs)
        return parts * self._scale(picture, place) / jnp.sqrt(1 + jnp.sum(self.weights**2))

    def _scale(self, picture: jax.Array, place: jax.Array) -> jax.Array:
        """f32[B T 1]: the scale of the entropy that a block of places has."""
        row, col = place // (self.cols + 1), place % (self.cols + 1)
        block = row // BLOCK * (self.cols // BLOCK + 1) + col // BLOCK

        drawn = jax.scipy.stats.norm.cdf(_normal(picture, block, 1, ()))
        return jnp.interp(drawn, jnp.linspace(0, 1, len(self.scales)), self.scales)[..., None]


def _earlier(order: Order) -> np.ndarray:
    """i32[T REACH]: where the tokens up to each new one stand, the last one first, among REACH old tokens and the T new ones."""
    depths = order.depth[:, None] - np.arange(REACH)
    at_depth = [{int(order.depth[node]): node for node in np.flatnonzero(seen)} for seen in order.ancestors]
    return REACH + np.array([[seen.get(int(d), d) for d in row] for seen, row in zip(at_depth, depths, strict=True)])


def _normal(picture: jax.Array, place: jax.Array, use: int, shape: tuple[int, ...]) -> jax.Array:
    """f32[B T *shape]: standard normal numbers of ``place`` i32[B T] in ``picture`` i32[B], others for each ``use``."""

    def draw(picture, place):
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(use), picture), place)
        return jax.random.normal(key, shape)

    return jax.vmap(jax.vmap(draw, (None, 0)))(picture, place)


def drift_by_offset(cols: int) -> np.ndarray:
    """f64[REACH]: the total variation wanted for a changed token 1 to REACH places back, in a picture of ``cols`` columns.

    In a row log-linear between the offsets of DRIFT, and beyond them. A token in the line above counts by its distance, and 0
    offsets lie further up, since lines are longer than half of REACH.
    """
    known = np.log(list(DRIFT)), np.log(list(DRIFT.values()))
    slope = (known[1][-1] - known[1][-2]) / (known[0][-1] - known[0][-2])

    def by_distance(distance):
        inside = np.interp(np.log(distance), *known)
        return np.exp(np.where(distance > max(DRIFT), known[1][-1] + slope * (np.log(distance) - known[0][-1]), inside))

    offsets, line = np.arange(1, REACH + 1), cols + 1
    above = np.hypot(1, np.abs(offsets - line))
    return by_distance(np.minimum(offsets, above).astype(float))


def entropy(logits: jax.Array) -> jax.Array:
    """f32[... E] -> f32[...], nats."""
    logp = jax.nn.log_softmax(logits)
    return -jnp.sum(jnp.exp(logp) * logp, axis=-1)


def total_variation(a: jax.Array, b: jax.Array) -> jax.Array:
    """f32[...]: of the distributions with logits f32[... E]."""
    return jnp.abs(jax.nn.softmax(a) - jax.nn.softmax(b)).sum(axis=-1) / 2


def calibrated(model: SimulatedModel, codes: int, drift: float = 1.0, places: int = 256) -> SimulatedModel:
    """The model with ``scales`` fitted to ENTROPIES, and ``weights`` to ``drift`` times :func:`drift_by_offset`."""
    state, one, other = jax.random.normal(jax.random.key(3), (3, places, HIDDEN)) / HIDDEN**0.5
    head = model.head[:, :codes]
    grid = jnp.linspace(0.2, 8, 40)
    mean = jax.lax.map(lambda scale: entropy(scale * state @ head).mean(), grid)
    scales = jnp.interp(-jnp.linspace(*ENTROPIES, 17), -mean, grid)
    by_place = jnp.interp(jnp.linspace(0, 1, places), jnp.linspace(0, 1, len(scales)), scales)[:, None]

    def variation(share):
        """f32[]: of a token with this share of the squared hidden state."""
        pair = (by_place * (jnp.sqrt(1 - share) * state + jnp.sqrt(share) * token) @ head for token in (one, other))
        return total_variation(*pair).mean()

    shares = jnp.geomspace(1e-7, 1, 60)
    fitted = jnp.interp(drift * drift_by_offset(model.cols), jax.lax.map(variation, shares), shares)
    return replace(model, scales=scales, weights=jnp.sqrt(fitted / (1 - fitted.sum())))
