"""AdamW with global-norm clipping and the learning-rate schedule (xllmx finetune.py); optionally Muon for the matrices."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from optax.contrib import MuonDimensionNumbers, muon

from lumina_jax.config import OptimConfig
from lumina_jax.model.params import is_param


def schedule(cfg: OptimConfig) -> Callable[[jax.Array], jax.Array]:
    """step i32[] -> learning rate f32[]: linear warm-up to ``lr``, a plateau, then decay to ``min_lr`` (OptimConfig)."""
    remaining = max(cfg.steps - cfg.warmup, 1)

    def rate(step: jax.Array) -> jax.Array:
        climb = jnp.minimum((step + 1) / max(cfg.warmup, 1), 1.0) if cfg.warmup else 1.0
        share = jnp.clip((step - cfg.warmup) / remaining, 0, 1)
        share = jnp.clip((share - cfg.hold) / max(1 - cfg.hold, 1e-6), 0, 1)
        fall = 0.5 * (1 + jnp.cos(jnp.pi * share)) if cfg.decay == "cosine" else 1 - share
        return climb * (cfg.min_lr + (cfg.lr - cfg.min_lr) * fall)

    return rate


def first_other_rate(old: OptimConfig, new: OptimConfig, steps: int) -> int | None:
    """The first of ``steps`` steps, counted from 1, at which the two schedules differ; None where there is none."""
    done = jnp.arange(steps)
    other = jnp.flatnonzero(schedule(old)(done) != schedule(new)(done))
    return int(other[0]) + 1 if len(other) else None


def optimizer(cfg: OptimConfig) -> optax.GradientTransformation:
    """Clip to ``cfg.clip``, then AdamW; every parameter decays, norms and embeddings too, as in the original.

    With ``cfg.muon_lr`` the matrices of the blocks are updated by Muon instead (Jordan et al. 2024; optax.contrib.muon): by the
    orthogonal matrix nearest to their momentum, times that rate on the same schedule. Their weight decay is as strong as under
    AdamW; the other weights are updated by AdamW with Nesterov momentum.
    ``update`` accepts the global norm of the gradients as ``norm=``, which saves computing it again.
    """
    rate = schedule(cfg)
    if not cfg.muon_lr:
        adam = optax.adamw(rate, b1=cfg.b1, b2=cfg.b2, eps=cfg.eps, weight_decay=cfg.weight_decay)
        return optax.chain(_clip(cfg.clip), adam)
    ratio = cfg.muon_lr / cfg.lr
    mixed = muon(
        lambda step: ratio * rate(step),
        eps=cfg.eps,
        weight_decay=cfg.weight_decay / ratio,
        muon_weight_dimension_numbers=_matrices,
        adam_learning_rate=rate,
        adam_b1=cfg.b1,
        adam_b2=cfg.b2,
        adam_weight_decay=cfg.weight_decay,
    )
    return optax.chain(_clip(cfg.clip), mixed)


def _matrices(weights):
    """The input and output axes of each weight that is a matrix of a block, D on one side and the others on the other; None for the
    rest."""

    def axes(node) -> MuonDimensionNumbers | None:
        letters = node.get_metadata()["letters"]
        if "D" not in letters or "V" in letters or len(letters) == 1 or not jax.tree.leaves(node):
            return None
        all_axes = tuple(range(-len(letters), 0))
        split = 1 if letters[0] == "D" else -1
        return MuonDimensionNumbers(all_axes[:split], all_axes[split:])

    return jax.tree.map(axes, weights, is_leaf=is_param)


def _clip(limit: float) -> optax.GradientTransformation:
    """Scales gradients down to the global norm ``limit``.

    As a product with one number, which XLA recomputes where it is read. optax.clip_by_global_norm divides by the norm, and XLA
    keeps the quotients, a copy of all gradients.
    """

    def update(grads, state, params=None, norm=None, **_):
        factor = limit / jnp.maximum(optax.tree.norm(grads) if norm is None else norm, limit)
        return jax.tree.map(lambda g: factor * g, grads), state

    return optax.GradientTransformationExtraArgs(optax.init_empty_state, update)
