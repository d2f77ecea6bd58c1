"""What a checkpoint holds, and how it is read: onto any mesh, or the weights alone."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from train_parts import MODEL, assert_equal, experiment, host_state

from lumina_jax.model.chameleon import Chameleon
from lumina_jax.sharding import make_mesh, shardings
from lumina_jax.train.checkpoint import Saver, flatten, load_weights, newest, read_experiment, restore_model, unflatten
from lumina_jax.train.step import state_shapes


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """An experiment, and the state of its checkpoint at step 3, saved from a (2, 2, 2) mesh."""
    cfg = replace(experiment(), out=str(tmp_path_factory.mktemp("saved")))
    state = host_state(cfg)._replace(step=np.int32(3))
    state = jax.device_put(state, shardings(state, make_mesh(cfg.mesh)))
    saver = Saver(cfg)
    saver.save(3, state)
    saver.close()
    return cfg, state


def shapes_of(**changes) -> Chameleon:
    return jax.eval_shape(lambda: Chameleon(replace(MODEL, **changes), nnx.Rngs(0)))


@pytest.mark.smoke
def test_unflatten_inverts_flatten_and_paths_are_unique():
    state = host_state(experiment())
    flat = flatten(state)
    assert len(flat) == len(jax.tree.leaves(state)) and "model/blocks/mlp/up" in flat and "key" in flat
    assert_equal(unflatten(state, flat), state)


@pytest.mark.parametrize("mesh", [(8, 1, 1), (1, 4, 2)])
def test_a_state_is_restored_bit_for_bit_on_any_mesh(saved, mesh):
    cfg, state = saved
    cfg = replace(cfg, mesh=experiment(mesh).mesh)
    shapes = state_shapes(cfg, make_mesh(cfg.mesh))
    saver = Saver(cfg)
    step, restored = saver.restore(shapes)
    saver.close()
    assert step == 3
    assert_equal(restored, state)
    assert [x.sharding for x in jax.tree.leaves(restored)] == [s.sharding for s in jax.tree.leaves(shapes)]


@pytest.mark.parametrize(("fields", "there"), [({"quant": "int8"}, "none"), ({"quant_skip": (1, 0)}, r"\(\)")])
def test_a_run_goes_on_with_the_quantization_it_began_with(saved, fields, there):
    cfg = replace(saved[0], mesh=replace(saved[0].mesh, **fields))
    saver = Saver(cfg)
    with pytest.raises(ValueError, match=rf"another mesh\.{next(iter(fields))} \({there} there"):
        saver.restore(state_shapes(cfg, make_mesh(cfg.mesh)))
    saver.close()


def test_the_experiment_is_stored_with_the_state(saved):
    assert read_experiment(newest(saved[0].out)) == saved[0]


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_weights_are_read_alone_in_the_dtype_of_the_shapes(saved, dtype):
    cfg, state = saved
    shapes = jax.tree.map(lambda s: jax.ShapeDtypeStruct(s.shape, dtype), state.model)
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    shapes = jax.tree.map(lambda s: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=device), shapes)
    weights = load_weights(newest(cfg.out), shapes)
    assert_equal(weights, jax.tree.map(lambda w: np.asarray(w).astype(dtype), state.model))


def test_restore_model_places_a_model_on_one_device(saved):
    cfg, state = saved
    model = restore_model(newest(cfg.out), cfg.model)
    assert_equal(model, state.model)
    assert {w.devices() == {jax.devices()[0]} for w in jax.tree.leaves(model)} == {True}


def test_a_checkpoint_of_another_model_is_refused_with_both_shapes(saved):
    cfg, _ = saved
    with pytest.raises(ValueError, match=r"blocks/mlp/up \(2, 16, 16\) \(here \(2, 16, 24\)\).*model\.\*"):
        load_weights(newest(cfg.out), shapes_of(mlp=24))
    with pytest.raises(ValueError, match=r"embedding \(32, 16\) \(here \(48, 16\)\)"):
        restore_model(newest(cfg.out), replace(cfg.model, vocab=48))


def test_a_folder_without_a_checkpoint_is_refused_by_newest_and_restores_none(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"holds no checkpoint; expected .*checkpoints/<step>"):
        newest(tmp_path)
    saver = Saver(replace(experiment(), out=str(tmp_path)))
    assert saver.restore(None) is None
    saver.close()


def test_only_the_newest_checkpoints_are_kept(tmp_path):
    cfg = replace(experiment(), out=str(tmp_path), keep=1)
    state = host_state(cfg)
    saver = Saver(cfg)
    for step in (1, 2, 30):
        saver.save(step, jax.tree.map(jnp.asarray, state))
    saver.close()
    assert [path.name for path in newest(tmp_path).parent.iterdir()] == ["30"]


def test_a_checkpoint_that_run_py_did_not_write_is_refused(tmp_path):
    from orbax.checkpoint import v1 as ocp

    ocp.save(tmp_path / "0", {"x": 1})
    with pytest.raises(ValueError, match="does not say which experiment"):
        read_experiment(tmp_path / "0")
