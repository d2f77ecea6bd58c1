"""Continuous batching: many prompts in a fixed number of rows; a row whose answer has ended takes the next prompt at once.

Every answer is the one :func:`lumina_jax.sample.generate` gives: a row's tokens depend on its own key, position and logits only.
"""

import functools
import math
import operator
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lumina_jax.config import SampleConfig
from lumina_jax.errors import InputError, NotFiniteError
from lumina_jax.model.chameleon import Chameleon
from lumina_jax.sample.decode import NO_LIMIT, OVERFLOW, check_finite, cut, decode, prefill, program_key, start
from lumina_jax.sample.guidance import DynamicConfig
from lumina_jax.sample.memory import check_memory
from lumina_jax.sample.request import arrange, lay_out
from lumina_jax.sample.state import Context, Request, State
from lumina_jax.sharding import ROWS, axis_size
from lumina_jax.vocab import Vocab


class Partial(NamedTuple):
    """The answer to prompt ``index`` so far: ``tokens`` i32[n] after ``passes`` passes of the model.

    When it is ``done``, the answer is complete and cut before its end of turn.
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
    opens: Sequence[bool] | None = None,
) -> Iterator[Partial]:
    """Yields each answer when it ends, in any order; the other arguments are those of :func:`lumina_jax.sample.generate`.

    At most ``rows`` prompts (rounded up to what the mesh divides) are answered at a time. With ``every``, unfinished answers are
    yielded too, after every so many passes. ``opens``: per prompt, whether its answer must begin with a picture. All prompts share
    one program, compiled for the longest.

    Raises the errors of generate; those for wrong input are raised before anything is compiled.
    """
    if rows < 1 or (every is not None and every < 1):
        raise InputError(f"rows={rows}, every={every}; both must be at least 1")
    groups = math.prod(map(axis_size, ROWS))
    rows = -(-min(rows, len(prompts) or 1) // groups) * groups
    laid_out = lay_out(prompts, key, vocab, model.cfg.vocab, sizes, keys, opens=opens)
    check_finite(model)
    request = jax.tree.map(lambda x: x[laid_out.rows], laid_out.request)
    program = program_key(request, cfg)
    sequences, distinct = (
        (1 + program.pairs) * count for count in (rows, min(rows, len(np.unique(request.ids, axis=0))))
    )
    check_memory(model, request.ids.shape[1], program.slots, sequences, distinct, program.int8)
    return _Slots(model, request, cfg, vocab, rows, groups).run(every)


def compile_ahead(
    form: Chameleon,
    prompts: Sequence[np.ndarray],
    key: jax.Array,
    cfg: SampleConfig,
    vocab: Vocab,
    *,
    sizes: Sequence[tuple[int, int] | None],
    keys: Sequence[jax.Array],
    rows: int,
    opens: Sequence[bool],
) -> None:
    """Compiles the programs that :func:`stream` of the same arguments begins with; of the model only its ``form`` is known.

    ``form`` has the shapes, dtypes and placements of the weights. Where no mesh is set, the first call of stream finds the programs
    in JAX's caches.
    """
    laid_out = lay_out(prompts, key, vocab, form.cfg.vocab, sizes, keys, opens=opens)
    request = jax.tree.map(lambda x: x[laid_out.rows], laid_out.request)
    program = program_key(request, cfg)
    first = arrange(jax.tree.map(operator.itemgetter(np.arange(min(rows, len(prompts)))), request), 1)
    options = dict(copies=first.copies, vocab=vocab, program=program)
    placed = prefill.lower(form, first.request, **options).compile().output_shardings
    shapes = jax.eval_shape(functools.partial(prefill, **options), form, first.request)
    state, head = jax.tree.map(
        lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where, weak_type=x.weak_type), shapes, placed
    )
    ctx = Context(form, head, jax.tree.map(jnp.asarray, first.request), DynamicConfig.of(cfg), vocab, program)
    decode.lower(ctx, state, NO_LIMIT, np.int32(1)).compile()


class _Slots:
    """``rows`` rows of the running program, and the prompt that each answers (-1: none)."""

    def __init__(self, model: Chameleon, request: Request, cfg: SampleConfig, vocab: Vocab, rows: int, groups: int):
        self._model, self._request, self._cfg, self._vocab, self._groups = model, request, cfg, vocab, groups
        self._waiting = deque(range(len(request.ids)))
        self._prompt = np.full(rows, -1)
        self._program = program_key(request, cfg)
        self._running: tuple[Context, State] | None = None

    def run(self, every: int | None) -> Iterator[Partial]:
        max_passes = NO_LIMIT if every is None else np.int32(every)
        while self._waiting or (self._prompt >= 0).any():
            self._fill()
            ctx, state = self._running
            state = decode(ctx, state, max_passes, np.int32((self._prompt < 0).sum() + 1))
            self._running = ctx, state
            if not state.finite:
                raise NotFiniteError(OVERFLOW)
            tokens, counts, passes, done = map(np.asarray, (state.tokens, state.count, state.passes, state.done))
            for row in np.flatnonzero(self._prompt >= 0):
                if not done[row] and every is None:
                    continue
                stop = ctx.answer_slot + min(counts[row], self._cfg.max_new_tokens)
                answer = tokens[row, ctx.answer_slot : stop]
                answer = cut(answer, self._vocab) if done[row] else answer
                yield Partial(int(self._prompt[row]), answer, int(passes[row]), bool(done[row]))
            self._prompt[done] = -1

    def _fill(self) -> None:
        """Starts waiting prompts in free rows: at first in all rows, later a power of two at a time, so that few batch sizes are
        compiled."""
        while self._waiting and len(free := np.flatnonzero(self._prompt < 0)):
            count = min(len(free), len(self._waiting))
            count = count if self._running is None else 1 << (count.bit_length() - 1)
            prompts = np.array([self._waiting.popleft() for _ in range(count)])
            laid_out = arrange(jax.tree.map(operator.itemgetter(prompts), self._request), self._groups)
            new_ctx, new = start(self._model, laid_out, self._cfg, self._vocab, self._program)
            # Idle rows, which only fill up the mesh, get an index behind the last row.
            rows = np.full(len(laid_out.request.ids), len(self._prompt))
            rows[laid_out.rows] = laid_out.rows if self._running is None else free[:count]
            if self._running is None:
                self._running = replace(new_ctx, request=jax.tree.map(jnp.asarray, laid_out.request)), new
            else:
                ctx, state = self._running
                state, request = _admit(state, ctx.request, new, laid_out.request, rows, pairs=self._program.pairs)
                self._running = replace(ctx, request=request), state
            self._prompt[rows[laid_out.rows]] = prompts


@functools.partial(jax.jit, static_argnames="pairs", donate_argnames=("state", "request"))
def _admit(
    state: State, request: Request, new: State, new_request: Request, rows: jax.Array, *, pairs: bool
) -> tuple[State, Request]:
    """``state`` and ``request`` with those of new prompts in ``rows`` i32[n]; rows behind the last are dropped."""
    cache_rows = (2 * rows[:, None] + jnp.arange(2)).ravel() if pairs else rows

    def put(old, fresh):
        return old.at[rows].set(fresh, mode="drop")

    def put_cache(old, fresh):
        return (old.at[:, cache_rows] if old.ndim > 1 else old.at[cache_rows]).set(fresh, mode="drop")

    cache = jax.tree.map(put_cache, state.cache, new.cache)
    rowwise = {name: jax.tree.map(put, getattr(state, name), getattr(new, name)) for name in ROWWISE}
    state = state._replace(cache=cache, finite=state.finite & new.finite, **rowwise)
    return state, jax.tree.map(put, request, new_request)


ROWWISE = ("tokens", "count", "q", "replacements", "position", "passes", "done")
"""The fields of State whose first axis is B."""
