"""Answering many prompts in a fixed number of rows: a row that ends takes the next prompt at once (continuous batching).

Every answer is the one :func:`lumina_jax.sample.generate` gives: a row's tokens depend on its own key, place and logits only.
"""

import functools
import math
import operator
from collections import deque
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lumina_jax.config import SampleConfig
from lumina_jax.errors import InputError, NotFiniteError
from lumina_jax.model.attention import KVCache
from lumina_jax.model.chameleon import Chameleon
from lumina_jax.sample.decode import ALL, OVERFLOW, check_finite, cut, decode, prefill, shape_of
from lumina_jax.sample.guidance import Knobs
from lumina_jax.sample.loop import State
from lumina_jax.sample.request import Request, arranged, lay_out
from lumina_jax.sharding import ROWS, axis_size
from lumina_jax.vocab import Vocab


class News(NamedTuple):
    """The answer to prompt ``index`` as far as it is known: ``tokens`` i32[n] after so many ``passes`` of the model.

    The answer is whole, and cut before its end of turn, when it is ``done``.
    """

    index: int
    tokens: np.ndarray
    passes: int
    done: bool


def stream(
    model: Chameleon,
    prompts: Sequence[np.ndarray],
    key: jax.Array,
    cfg: SampleConfig,
    vocab: Vocab,
    *,
    sizes: Sequence[tuple[int, int] | None] | None = None,
    keys: Sequence[jax.Array] | jax.Array | None = None,
    rows: int = 16,
    every: int | None = None,
) -> Iterator[News]:
    """Yields each answer as it ends, in whatever order they do; arguments as of :func:`lumina_jax.sample.generate`.

    At most ``rows`` prompts (rounded up to what the mesh divides) are at work at a time. With ``every``, unfinished answers
    are yielded as well after so many passes each. All prompts share one program, laid out for the longest.

    Raises as generate does: what is wrong is told before anything is compiled.
    """
    if rows < 1 or (every is not None and every < 1):
        raise InputError(f"rows={rows}, every={every}; both must be at least 1")
    parts = math.prod(map(axis_size, ROWS))
    rows = -(-min(rows, len(prompts) or 1) // parts) * parts
    whole, _, order = lay_out(prompts, key, vocab, model.cfg.vocab, sizes, keys)
    check_finite(model)
    table = _Table(model, jax.tree.map(lambda part: part[order], whole), cfg, vocab, rows, parts)
    return table.run(every)


class _Table:
    """``rows`` rows, and which prompt each is at work on (-1: none)."""

    def __init__(self, model: Chameleon, whole: Request, cfg: SampleConfig, vocab: Vocab, rows: int, parts: int):
        self._model, self._whole, self._cfg, self._vocab, self._parts = model, whole, cfg, vocab, parts
        self._waiting = deque(range(len(whole.ids)))
        self._prompt = np.full(rows, -1)
        self._shape = shape_of(whole, 1, cfg)
        self._state, self._head, self._request = None, None, None

    def run(self, every: int | None) -> Iterator[News]:
        knobs, start = Knobs.of(self._cfg), self._whole.ids.shape[1]
        most = ALL if every is None else np.int32(every)
        while self._waiting or (self._prompt >= 0).any():
            self._fill()
            leave = np.int32((self._prompt < 0).sum() + 1)
            arguments = (self._model, self._head, self._state, self._request, knobs, most, leave)
            self._state = decode(*arguments, vocab=self._vocab, shape=self._shape)
            if not self._state.sound:
                raise NotFiniteError(OVERFLOW)
            tokens, counts, passes, done = map(
                np.asarray, (self._state.tokens, self._state.count, self._state.passes, self._state.done)
            )
            for row in np.flatnonzero(self._prompt >= 0):
                if not done[row] and every is None:
                    continue
                answer = tokens[row, start : start + min(counts[row], self._cfg.max_new_tokens)]
                answer = cut(answer, self._vocab) if done[row] else answer
                yield News(int(self._prompt[row]), answer, int(passes[row]), bool(done[row]))
            self._prompt[done] = -1

    def _fill(self) -> None:
        """Gives waiting prompts to rows that have none: at first to all, then to as many as a power of two at a time, so that
        only few sizes are compiled."""
        while self._waiting and len(free := np.flatnonzero(self._prompt < 0)):
            most = min(len(free), len(self._waiting))
            count = most if self._state is None else 1 << (most.bit_length() - 1)
            taken = np.array([self._waiting.popleft() for _ in range(count)])
            asked = jax.tree.map(operator.itemgetter(taken), self._whole)
            request, copies, places = arranged(asked, self._parts)
            state, self._head = prefill(
                self._model, request, vocab=self._vocab, shape=self._shape._replace(copies=copies)
            )
            # Rows that only fill up the mesh have no place among the others.
            rows = np.full(len(request.ids), len(self._prompt))
            rows[places] = places if self._state is None else free[:count]
            if self._state is None:
                self._state, self._request = state, jax.tree.map(jnp.asarray, request)
            else:
                self._state, self._request = _admit(
                    self._state, self._request, state, request, rows, pairs=self._shape.pairs
                )
            self._prompt[rows[places]] = taken


@functools.partial(jax.jit, static_argnames="pairs", donate_argnames=("state", "request"))
def _admit(
    state: State, request: Request, new: State, asked: Request, rows: jax.Array, *, pairs: bool
) -> tuple[State, Request]:
    """Puts ``new`` rows, and what they were asked, in the places ``rows`` i32[n]; places beyond the last are dropped."""
    cached = (2 * rows[:, None] + jnp.arange(2)).ravel() if pairs else rows

    def put(old, fresh):
        return old.at[rows].set(fresh, mode="drop")

    cache = state.cache
    changes = {}
    for name, fresh in new.cache._asdict().items():
        slots = (slice(None), cached) if name in ("keys", "values") else cached
        changes[name] = getattr(cache, name).at[slots].set(fresh, mode="drop")
    rest = {name: jax.tree.map(put, getattr(state, name), getattr(new, name)) for name in ROWWISE}
    merged = state._replace(cache=KVCache(**changes), sound=state.sound & new.sound, **rest)
    return merged, jax.tree.map(put, request, asked)


ROWWISE = ("tokens", "count", "q", "place", "passes", "done")
