"""One training step, the state it carries, and the generator that runs it."""

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh

from lumina_jax.batch import Batch
from lumina_jax.config import Experiment
from lumina_jax.model.backend import step_options
from lumina_jax.model.chameleon import Chameleon
from lumina_jax.model.quant import check_quant
from lumina_jax.sharding import STORE, ZERO, constrain, constrain_weights, shardings
from lumina_jax.train.loss import LossSums, step_loss
from lumina_jax.train.norms import group_norms
from lumina_jax.train.optim import optimizer, schedule
from lumina_jax.train.weighting import token_weights


class TrainState(NamedTuple):
    """Everything that changes: steps done i32[], float32 master weights, optimizer state, and the dropout key."""

    step: jax.Array
    model: Chameleon
    opt: optax.OptState
    key: jax.Array


class Metrics(NamedTuple):
    """f32[] of one step: means over learned tokens (``loss`` is xent + z_loss, the latter weighted), gradient norm before clipping,
    learning rate, number of learned tokens. The means count every learned token alike, so that runs are comparable, whatever
    ``optim.loss_weight`` makes of the gradient. ``norms`` are those of ``watch.norms`` by name (None: not asked for)."""

    loss: jax.Array
    xent: jax.Array
    z_loss: jax.Array
    grad_norm: jax.Array
    lr: jax.Array
    tokens: jax.Array
    norms: dict[str, jax.Array] | None = None


Step = Callable[[TrainState, Batch], tuple[TrainState, Metrics]]
Rows = tuple[Batch, jax.Array]
"""Rows of a batch, and the weights f32[B T] of their tokens in the loss."""
Gradient = Callable[[Chameleon, Rows, jax.Array], tuple[Chameleon, LossSums]]


def new_state(cfg: Experiment) -> TrainState:
    """A fresh state from ``cfg.seed``. Large models are built under jit (:func:`init_state`) or eval_shape."""
    weights_key, dropout_key = jax.random.split(jax.random.key(cfg.seed))
    model = Chameleon(cfg.model, nnx.Rngs(weights_key))
    return TrainState(jnp.zeros((), jnp.int32), model, optimizer(cfg.optim).init(model), dropout_key)


def state_shapes(cfg: Experiment, mesh: Mesh) -> TrainState:
    """The abstract state: shapes, dtypes and shardings of :func:`new_state` without any memory."""
    return with_shardings(jax.eval_shape(lambda: new_state(cfg)), state_shardings(cfg, mesh))


def with_shardings(tree, placement):
    """ShapeDtypeStructs of the arrays of ``tree``, with the shardings of the tree ``placement``."""
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), tree, placement)


def state_shardings(cfg: Experiment, mesh: Mesh) -> TrainState:
    """The NamedSharding of every array of the state on ``mesh``."""
    return shardings(jax.eval_shape(lambda: new_state(cfg)), mesh, _rules(cfg))


def _rules(cfg: Experiment) -> dict:
    return ZERO if cfg.mesh.zero1 else STORE


def init_state(cfg: Experiment, mesh: Mesh) -> TrainState:
    """A fresh state, sharded over ``mesh`` from the start: no device ever holds a whole copy of a split array."""
    return jax.jit(lambda: new_state(cfg), out_shardings=state_shardings(cfg, mesh))()


def make_step(cfg: Experiment, mesh: Mesh) -> Step:
    """The train step on ``mesh``: :func:`jitted_step`, called with the mesh set."""
    jitted = jitted_step(cfg, mesh)

    def run(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        with jax.set_mesh(mesh):
            return jitted(state, batch)

    return run


def jitted_step(cfg: Experiment, mesh: Mesh) -> jax.stages.Wrapped:
    """The jitted train step for ``mesh``, to be called or lowered under ``jax.set_mesh(mesh)``; its state is donated.

    The gradient is that of the mean over all learned tokens of the global batch, weighted by ``cfg.optim.loss_weight``
    (:mod:`lumina_jax.train.weighting`), whatever the number of microbatches. A step whose loss or gradient norm is not finite
    leaves weights and optimizer state as they were. Raises InputError for a ``cfg.mesh.quant`` by which the devices gain nothing.
    """
    check_quant(cfg.mesh.quant, mesh.devices.flat[0].device_kind)
    tx, rate = optimizer(cfg.optim), schedule(cfg.optim)
    compute, groups = jnp.dtype(cfg.mesh.compute), cfg.watch.norms

    def loss(model: Chameleon, rows: Rows, key: jax.Array) -> tuple[jax.Array, LossSums]:
        batch, weights = rows
        names = ("remat", "unroll", "attention", "dropout_rng", "quant", "quant_skip")
        options = {name: getattr(cfg.mesh, name) for name in names}
        hidden = model(batch.inputs, batch.positions, batch.segments, key=key, **options)
        return step_loss(hidden, model.head[...], batch.targets, weights, cfg.optim.z_loss, cfg.mesh.loss_chunk)

    def gradient(model: Chameleon, rows: Rows, key: jax.Array) -> tuple[Chameleon, LossSums]:
        grads, total = jax.grad(loss, has_aux=True)(model, rows, key)
        return constrain_weights(jax.tree.map(lambda g: g.astype(jnp.float32), grads), _rules(cfg)), total

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(state.key, state.step)
        # Cast once, before anything is gathered: each layer's matrices travel in the dtype they are used in.
        model = constrain_weights(jax.tree.map(lambda w: w.astype(compute), state.model), STORE)
        weights, weight = token_weights(batch, cfg.optim.loss_weight)
        grads, total = _accumulate(gradient, model, (batch, weights), key, cfg.optim.accumulate)
        weight, tokens = jnp.maximum(weight, 1), jnp.maximum(total.tokens, 1)
        norm = optax.tree.norm(grads) / weight
        # XLA recomputes a product with one number wherever it is read; quotients it would keep, a copy of all gradients.
        grads = jax.tree.map(lambda g: g * (1 / weight), grads)
        updates, opt = tx.update(grads, state.opt, state.model, norm=norm)
        xent, z_loss = total.xent / tokens, cfg.optim.z_loss * total.z / tokens
        finite = jnp.isfinite(xent + z_loss) & jnp.isfinite(norm)
        model, opt = keep_unless(finite, (optax.apply_updates(state.model, updates), opt), (state.model, state.opt))
        norms = group_norms("grad_norm", grads, groups) | group_norms("weight_norm", model, groups) if groups else None
        metrics = Metrics(xent + z_loss, xent, z_loss, norm, rate(state.step), total.tokens, norms)
        return TrainState(state.step + 1, model, opt, state.key), metrics

    out_shardings = (state_shardings(cfg, mesh), None)
    return jax.jit(step, donate_argnums=0, out_shardings=out_shardings, compiler_options=step_options(mesh))


def keep_unless(finite: jax.Array, new, old):
    """The tree ``new`` where ``finite`` bool[], else ``old``. A schedule counts on: it follows the steps of the run.

    The update reads the old arrays anyway, and XLA chooses while it writes. On a CPU that takes four more passes over the weights:
    0.9% of a step with 4,096 tokens (tests/bench/guards.py), more with fewer.
    """

    def choose(new_node, old_node):
        if isinstance(new_node, optax.ScaleByScheduleState):
            return new_node
        return jnp.where(finite, new_node, old_node)

    return jax.tree.map(choose, new, old, is_leaf=lambda node: isinstance(node, optax.ScaleByScheduleState))


def _accumulate(gradient: Gradient, model: Chameleon, rows: Rows, key: jax.Array, count: int):
    """Gradient and sums over ``count`` microbatches; each takes every count-th row, so that no row changes its device."""
    if count == 1:
        return gradient(model, rows, key)
    microbatches = jax.tree.map(lambda x: jnp.moveaxis(x.reshape(len(x) // count, count, -1), 1, 0), rows)

    def add(total, numbered: tuple[jax.Array, Rows]):
        index, microbatch = numbered
        microbatch = jax.tree.map(lambda x: constrain(x, "BT"), microbatch)
        return jax.tree.map(jnp.add, total, gradient(model, microbatch, jax.random.fold_in(key, index))), None

    zero = (jax.tree.map(lambda w: jnp.zeros(w.shape, jnp.float32), model), LossSums.zero())
    return jax.lax.scan(add, zero, (jnp.arange(count), microbatches))[0]


def steps(
    state: TrainState, batches: Iterable[Batch], step: Step, start: int
) -> Iterator[tuple[int, TrainState, Metrics]]:
    """Runs ``step`` over global ``batches`` and yields (steps done, counted from ``start``; state; metrics of this step).

    Nothing here waits for the device: state and metrics are computed asynchronously; read them once later steps are queued.
    """
    for done, batch in enumerate(batches, start + 1):
        state, metrics = step(state, batch)
        yield done, state, metrics
