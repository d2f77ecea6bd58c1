"""AdamW with global-norm clipping and the learning-rate schedule (xllmx finetune.py)."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from lumina_jax.config import OptimConfig


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

    ``update`` takes the global norm of the gradients as ``norm=`` where it is known.
    """
    return optax.chain(
        _clip(cfg.clip),
        optax.adamw(schedule(cfg), b1=cfg.b1, b2=cfg.b2, eps=cfg.eps, weight_decay=cfg.weight_decay),
    )


def _clip(limit: float) -> optax.GradientTransformation:
    """Scales gradients down to the global norm ``limit``.

    By one number: optax's divides every gradient by the norm, which compilers do once and keep, a copy of all gradients.
    """

    def update(grads, state, params=None, norm=None, **_):
        share = limit / jnp.maximum(optax.tree.norm(grads) if norm is None else norm, limit)
        return jax.tree.map(lambda g: share * g, grads), state

    return optax.GradientTransformationExtraArgs(optax.init_empty_state, update)
