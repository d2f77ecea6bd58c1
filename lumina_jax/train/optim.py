"""AdamW with global-norm clipping and the learning-rate schedule (xllmx finetune.py); Muon for matrices where asked for."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from optax.contrib import MuonDimensionNumbers, muon

from lumina_jax.config import OptimConfig
from lumina_jax.model.params import is_param


def schedule(cfg: OptimConfig) -> Callable[[jax.Array], jax.Array]:
    """step i32[] -> learning rate f32[]: a straight climb, a plateau, then the fall to ``min_lr``."""
    falling = max(cfg.steps - cfg.warmup, 1)

    def rate(step: jax.Array) -> jax.Array:
        climb = jnp.minimum((step + 1) / max(cfg.warmup, 1), 1.0) if cfg.warmup else 1.0
        share = jnp.clip((step - cfg.warmup) / falling, 0, 1)
        share = jnp.clip((share - cfg.hold) / max(1 - cfg.hold, 1e-6), 0, 1)
        fall = 0.5 * (1 + jnp.cos(jnp.pi * share)) if cfg.decay == "cosine" else 1 - share
        return climb * (cfg.min_lr + (cfg.lr - cfg.min_lr) * fall)

    return rate


def optimizer(cfg: OptimConfig) -> optax.GradientTransformation:
    """Clip to ``cfg.clip``, then AdamW; every parameter decays, norms and embeddings too, as in the original.

    With ``cfg.muon_lr`` the matrices of the blocks take Muon's steps instead (Jordan et al. 2024; optax.contrib.muon): the
    orthogonal matrix next to their momentum, times that rate on the same schedule. They decay as AdamW would have it; the
    other weights take AdamW's steps with Nesterov's momentum.
    ``update`` takes the global norm of the gradients as ``norm=`` where it is known.
    """
    rate = schedule(cfg)
    if not cfg.muon_lr:
        adam = optax.adamw(rate, b1=cfg.b1, b2=cfg.b2, eps=cfg.eps, weight_decay=cfg.weight_decay)
        return optax.chain(_clip(cfg.clip), adam)
    share = cfg.muon_lr / cfg.lr
    mixed = muon(
        lambda step: share * rate(step),
        eps=cfg.eps,
        weight_decay=cfg.weight_decay / share,
        muon_weight_dimension_numbers=_matrices,
        adam_learning_rate=rate,
        adam_b1=cfg.b1,
        adam_b2=cfg.b2,
        adam_weight_decay=cfg.weight_decay,
    )
    return optax.chain(_clip(cfg.clip), mixed)


def _matrices(weights):
    """Which axes of each weight lead in and out: D and all others, where it is a matrix of a block; None for other weights."""

    def axes(node) -> MuonDimensionNumbers | None:
        letters = node.get_metadata()["letters"]
        if "D" not in letters or "V" in letters or len(letters) == 1 or not jax.tree.leaves(node):
            return None
        ways = tuple(letters.index(one) - len(letters) for one in letters)
        return (
            MuonDimensionNumbers(ways[:1], ways[1:])
            if letters[0] == "D"
            else MuonDimensionNumbers(ways[:-1], ways[-1:])
        )

    return jax.tree.map(axes, weights, is_leaf=is_param)


def _clip(limit: float) -> optax.GradientTransformation:
    """Scales gradients down to the global norm ``limit``.

    By one number: optax's divides every gradient by the norm, which compilers do once and keep, a copy of all gradients.
    """

    def update(grads, state, params=None, norm=None, **_):
        share = limit / jnp.maximum(optax.tree.norm(grads) if norm is None else norm, limit)
        return jax.tree.map(lambda g: share * g, grads), state

    return optax.GradientTransformationExtraArgs(optax.init_empty_state, update)
