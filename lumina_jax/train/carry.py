"""Optimizer state carried into another optimizer, so that no run loses its moments by a change of settings."""

from dataclasses import replace

import jax
import optax

from lumina_jax.config import Experiment, OptimConfig
from lumina_jax.train.optim import optimizer
from lumina_jax.train.step import TrainState, state_shapes, state_shardings

FIRST, SECOND, COUNT = "/mu/", "/nu/", "/count"


def same_arrays(before: OptimConfig, now: OptimConfig) -> bool:
    """Whether both optimizers keep the same arrays: all settings but whether Muon updates the matrices leave them as they are."""
    return bool(before.muon_lr) == bool(now.muon_lr)


def stored_shapes(saved: OptimConfig, cfg: Experiment, shapes: TrainState) -> TrainState:
    """The abstract state of ``cfg`` as a run with the optimizer ``saved`` stored it; ``shapes`` is that of ``cfg`` itself."""
    if same_arrays(saved, cfg.optim):
        return shapes
    return state_shapes(replace(cfg, optim=saved), shapes.step.sharding.mesh)


def carried(saved: OptimConfig, cfg: Experiment, state: TrainState) -> TrainState:
    """``state``, which the optimizer ``saved`` left, for that of ``cfg``.

    Each weight keeps its first moment, which Adam and Muon average alike, and its second one. One that Muon updated has none: it
    gets the square of the first, as Adam has it after a first step, so that its next update is at most the learning rate.
    """
    if same_arrays(saved, cfg.optim):
        return state
    mesh = state.step.sharding.mesh

    def carry(opt: optax.OptState, model) -> optax.OptState:
        stored, fresh = _by_name(opt), optimizer(cfg.optim).init(model)
        names = _by_name(fresh)
        moments = {kind: _after(stored, kind) for kind in (FIRST, SECOND)}

        def value(name: str) -> jax.Array:
            for kind, of_weight in moments.items():
                if kind in name:
                    weight = name.partition(kind)[2]
                    return of_weight[weight] if weight in of_weight else moments[FIRST][weight] ** 2
            return _count(stored, _is_of_moments(name, names)) if name.endswith(COUNT) else names[name]

        return jax.tree_util.tree_map_with_path(lambda path, _: value(_name(path)), fresh)

    run = jax.jit(carry, out_shardings=state_shardings(cfg, mesh).opt)
    with jax.set_mesh(mesh):
        return state._replace(opt=run(state.opt, state.model))


def _name(path) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _by_name(tree) -> dict[str, jax.Array]:
    return {_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def _after(arrays: dict[str, jax.Array], kind: str) -> dict[str, jax.Array]:
    """The moments of a ``kind`` by the name of their weight."""
    return {name.partition(kind)[2]: array for name, array in arrays.items() if kind in name}


def _is_of_moments(name: str, names: dict[str, jax.Array]) -> bool:
    """Whether the count ``name`` is that of averaged moments; else it is that of a schedule."""
    return any(other.startswith(name.removesuffix(COUNT) + FIRST) for other in names)


def _count(stored: dict[str, jax.Array], of_moments: bool) -> jax.Array:
    """The stored count of updates, or of steps, as :func:`_is_of_moments` tells them apart."""
    counts = [name for name in stored if name.endswith(COUNT) and _is_of_moments(name, stored) == of_moments]
    return stored[counts[0]]
