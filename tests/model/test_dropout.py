"""Dropout: its rate, and masks that have nothing to do with one another."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lumina_jax.config import MeshConfig
from lumina_jax.model.parts import dropout, keep_local
from lumina_jax.sharding import make_mesh

SHAPE = (8, 64, 256)


def masks(rate: float, seeds, mesh=(2, 4, 1)) -> np.ndarray:
    """What keep_local draws for each seed on a mesh of (replica, fsdp, tensor): bool[seeds B T D]."""
    places = MeshConfig(**dict(zip(("replica", "fsdp", "tensor"), mesh, strict=True)))
    with jax.set_mesh(make_mesh(places)):
        draw = jax.jit(lambda key: keep_local(key, rate, SHAPE))
        return np.stack([draw(jax.random.key(seed)) for seed in seeds])


@pytest.mark.smoke
@pytest.mark.parametrize("rate", [0.05, 0.3])
def test_the_share_that_is_dropped_is_the_rate(rate):
    """0.05 is no multiple of 1/256: the channels' own shares lie on both sides of it."""
    dropped = ~masks(rate, range(4))
    spread = np.sqrt(rate / dropped.size)
    shares = dropped.mean((0, 1, 2))
    # Five standard deviations, and what a channel's choice of the 256th part above or below adds.
    assert abs(dropped.mean() - rate) < 5 * (spread + 1 / 512 / np.sqrt(4 * SHAPE[2]))
    assert shares.min() < rate < shares.max()


def test_masks_of_rows_channels_layers_and_steps_are_independent():
    """Devices (each has one row), tokens, channels and keys: no two agree more often than chance has it."""
    rate = 0.3
    drawn = masks(rate, range(3))
    chance, pairs = rate**2 + (1 - rate) ** 2, []
    for row in range(1, SHAPE[0]):
        pairs.append((drawn[:, 0], drawn[:, row]))
    pairs += [(drawn[0], drawn[1]), (drawn[1], drawn[2])]
    pairs += [(drawn[:, :, 1:], drawn[:, :, :-1]), (drawn[..., 1:], drawn[..., :-1])]
    for one, other in pairs:
        assert abs((one == other).mean() - chance) < 5 * np.sqrt(chance * (1 - chance) / one.size)


def test_local_masks_are_the_same_for_all_heads_of_a_row():
    """Devices that share rows must drop the same: splitting heads over 2 devices changes no mask."""
    np.testing.assert_array_equal(masks(0.3, [1], (1, 4, 2)), masks(0.3, [1], (4, 1, 2)))


@pytest.mark.parametrize("rng", ["global", "local"])
def test_what_is_kept_is_scaled_so_that_the_mean_stays(rng):
    given = np.asarray(dropout(jnp.ones(SHAPE, jnp.bfloat16), 0.25, jax.random.key(0), rng))
    assert given.dtype == jnp.bfloat16 and set(np.unique(given.astype(np.float32))) == {0.0, np.float32(1.3359375)}
    assert abs(given.astype(np.float32).mean() - 1) < 0.01
    still = dropout(given, 0.25, None, rng)
    assert still is given
