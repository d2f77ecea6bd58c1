"""Dropout: its rate, its scale, and the independence of its masks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lumina_jax.config import MeshConfig
from lumina_jax.model.parts import dropout, keep_local
from lumina_jax.sharding import make_mesh

SHAPE = (8, 64, 256)


def masks(rate: float, seeds, mesh=(2, 4, 1)) -> np.ndarray:
    """The masks of keep_local for each seed on a mesh of (replica, fsdp, tensor): bool[seeds B T D]."""
    cfg = MeshConfig(**dict(zip(("replica", "fsdp", "tensor"), mesh, strict=True)))
    with jax.set_mesh(make_mesh(cfg)):
        draw = jax.jit(lambda key: keep_local(key, rate, SHAPE))
        return np.stack([draw(jax.random.key(seed)) for seed in seeds])


@pytest.mark.smoke
@pytest.mark.parametrize("rate", [0.05, 0.3])
def test_the_share_that_is_dropped_is_the_rate(rate):
    """0.05 is no multiple of 1/256: the shares of single channels lie on both sides of it."""
    dropped = ~masks(rate, range(4))
    spread = np.sqrt(rate / dropped.size)
    shares = dropped.mean((0, 1, 2))
    # Five standard deviations, and the deviation of channels that round their limit up or down.
    assert abs(dropped.mean() - rate) < 5 * (spread + 1 / 512 / np.sqrt(4 * SHAPE[2]))
    assert shares.min() < rate < shares.max()


def test_masks_of_rows_channels_layers_and_steps_are_independent():
    """Between devices (one row each), tokens, channels and keys: no two masks agree more often than independent ones."""
    rate = 0.3
    drawn = masks(rate, range(3))
    chance, pairs = rate**2 + (1 - rate) ** 2, []
    for row in range(1, SHAPE[0]):
        pairs.append((drawn[:, 0], drawn[:, row]))
    pairs += [(drawn[0], drawn[1]), (drawn[1], drawn[2])]
    pairs += [(drawn[:, :, 1:], drawn[:, :, :-1]), (drawn[..., 1:], drawn[..., :-1])]
    for mask, other in pairs:
        assert abs((mask == other).mean() - chance) < 5 * np.sqrt(chance * (1 - chance) / mask.size)


def test_devices_that_split_the_heads_of_a_row_draw_the_same_mask():
    np.testing.assert_array_equal(masks(0.3, [1], (1, 4, 2)), masks(0.3, [1], (4, 1, 2)))


@pytest.mark.parametrize("rng", ["global", "local"])
def test_dropout_keeps_the_mean(rng):
    dropped = np.asarray(dropout(jnp.ones(SHAPE, jnp.bfloat16), 0.25, jax.random.key(0), rng))
    assert dropped.dtype == jnp.bfloat16 and set(np.unique(dropped.astype(np.float32))) == {0.0, np.float32(1.3359375)}
    assert abs(dropped.astype(np.float32).mean() - 1) < 0.01
    assert dropout(dropped, 0.25, None, rng) is dropped
