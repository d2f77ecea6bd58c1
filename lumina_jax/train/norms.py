"""Norms of gradients and weights by kind of weight and group of layers (``watch.norms``)."""

import jax
import jax.numpy as jnp
import numpy as np

from lumina_jax.model.chameleon import Chameleon


def group_norms(prefix: str, tree: Chameleon, groups: int) -> dict[str, jax.Array]:
    """{"PREFIX/KIND/FIRST-LAST": f32[]} of weights or gradients, for ``groups`` groups of neighbouring layers.

    Kinds are attention, mlp and norms of the blocks, and "PREFIX/KIND" of embedding, head and the last norm.
    """
    squares: dict[str, jax.Array] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        names = jax.tree_util.keystr(path, simple=True, separator="/").split("/")
        in_blocks = names[0] == "blocks"
        kind = "norms" if any("norm" in name for name in names) and in_blocks else names[1 if in_blocks else 0]
        square = jnp.square(leaf.astype(jnp.float32))
        parts = {f"{prefix}/{kind}": square}
        if in_blocks:
            layers = np.array_split(np.arange(len(leaf)), min(groups, len(leaf)))
            parts = {f"{prefix}/{kind}/{part[0]}-{part[-1]}": square[part[0] : part[-1] + 1] for part in layers}
        for name, part in parts.items():
            squares[name] = squares.get(name, 0.0) + jnp.sum(part)
    return {name: jnp.sqrt(square) for name, square in squares.items()}
