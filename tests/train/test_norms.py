"""Norms by kind of weight and group of layers make up the whole norm."""

import numpy as np
import optax
import pytest
from train_parts import experiment, host_state

from lumina_jax.train.norms import group_norms


@pytest.mark.parametrize("groups", [1, 2, 5])
def test_the_squares_of_all_groups_make_up_that_of_the_model(groups):
    model = host_state(experiment()).model
    norms = group_norms("norm", model, groups)
    assert np.sqrt(sum(float(norm) ** 2 for norm in norms.values())) == pytest.approx(float(optax.tree.norm(model)))
    layers = ["0-1"] if groups == 1 else ["0-0", "1-1"]
    expected = [f"norm/{kind}/{part}" for kind in ("attention", "mlp", "norms") for part in layers]
    assert sorted(norms) == sorted([*expected, "norm/embedding", "norm/head", "norm/norm"])
    up = model.blocks.mlp
    squares = [np.square(np.asarray(w[...]))[0].sum() for w in (up.gate, up.up, up.down)]
    if groups > 1:
        assert float(norms["norm/mlp/0-0"]) == pytest.approx(np.sqrt(sum(squares)))
