"""The mesh, the two tables, and what they refuse."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import PartitionSpec as P

from lumina_jax.batch import Batch
from lumina_jax.config import MeshConfig, ModelConfig
from lumina_jax.model.chameleon import Chameleon
from lumina_jax.sharding import (
    COMPUTE,
    STORE,
    ZERO,
    check_rows,
    constrain,
    data_share,
    for_compute,
    global_batch,
    make_mesh,
    shardings,
    spec,
)

TINY = ModelConfig(vocab=32, width=16, layers=2, heads=8, kv_heads=4, head_dim=4, mlp=24, dropout=0.0)


def mesh_of(replica: int, fsdp: int, tensor: int) -> jax.sharding.Mesh:
    return make_mesh(MeshConfig(replica=replica, fsdp=fsdp, tensor=tensor))


@pytest.mark.smoke
def test_an_axis_of_minus_one_takes_the_devices_that_are_left():
    assert dict(mesh_of(2, -1, 2).shape) == {"replica": 2, "fsdp": 2, "tensor": 2}
    assert dict(mesh_of(-1, 1, 1).shape) == {"replica": 8, "fsdp": 1, "tensor": 1}


@pytest.mark.parametrize("sizes", [(1, 4, 1), (2, 8, 1), (-1, 3, 1), (1, -1, 16)])
def test_axes_that_do_not_multiply_to_the_devices_are_refused(sizes):
    with pytest.raises(ValueError, match=rf"mesh\.replica={sizes[0]}, .*=.* do not multiply to the 8 devices"):
        mesh_of(*sizes)


def test_the_tables_split_weights_and_activations():
    mesh = mesh_of(2, 2, 2)
    assert spec("DHK", (16, 8, 4), STORE, mesh) == P("fsdp", "tensor", None)
    assert spec("DF", (2, 16, 24), STORE, mesh) == P(None, "fsdp", "tensor")
    assert spec("GK", (2, 1, 4), STORE, mesh) == P(None, None, None)
    assert spec("BTD", (8, 5, 16), COMPUTE, mesh) == P(("replica", "fsdp"), None, None)
    assert spec("DHK", (16, 8, 4), COMPUTE, mesh) == P(None, "tensor", None)


def test_an_axis_of_one_splits_nothing():
    assert spec("DHK", (15, 7, 4), STORE, mesh_of(8, 1, 1)) == P(None, None, None)


def test_two_letters_on_one_mesh_axis_are_refused():
    with pytest.raises(ValueError, match="axes H and F of HF both claim mesh axis 'tensor'"):
        spec("HF", (8, 24), STORE, mesh_of(2, 2, 2))


def test_a_letter_on_two_mesh_axes_collides_on_either():
    """A train state splits D over fsdp and replica; no other letter may be on one of them."""
    rules = {**ZERO, "F": "replica"}
    with pytest.raises(ValueError, match="axes D and F of DF both claim mesh axis 'replica'"):
        spec("DF", (16, 24), rules, mesh_of(2, 2, 2))
    assert spec("DF", (16, 24), ZERO, mesh_of(2, 2, 2)) == P(("fsdp", "replica"), "tensor")
    assert spec("DF", (16, 24), ZERO, mesh_of(8, 1, 1)) == P("replica", None)


def test_a_state_that_does_not_split_over_the_replicas_is_refused_with_both_cures():
    with pytest.raises(ValueError, match=r"size 20, which 8 parts \(mesh fsdp x replica\).*mesh\.zero1=false"):
        spec("DF", (20, 24), ZERO, mesh_of(2, 4, 1))


def test_sizes_that_do_not_divide_are_refused():
    with pytest.raises(
        ValueError, match=r"axis N of an array DNK has size 4, which 8 parts .*mesh tensor.*smaller mesh\.tensor"
    ):
        spec("DNK", (16, 4, 4), STORE, mesh_of(1, 1, 8))
    with pytest.raises(ValueError, match=r"axis D .* has size 18, which 4 parts .*mesh fsdp.*smaller mesh\.fsdp"):
        spec("VD", (32, 18), STORE, mesh_of(1, 4, 2))


def test_every_array_of_a_tree_gets_a_sharding():
    tree = {"model": jax.eval_shape(lambda: Chameleon(TINY, nnx.Rngs(0))), "count": jax.ShapeDtypeStruct((), jnp.int32)}
    placements = shardings(tree, mesh_of(1, 4, 2))
    assert len(jax.tree.leaves(placements)) == len(jax.tree.leaves(tree))
    assert placements["count"].spec == P()
    assert placements["model"].blocks.attention.wk.get_value().spec == P(None, "fsdp", "tensor", None)


def test_weights_for_compute_are_gathered_over_fsdp_and_split_over_tensor():
    mesh = mesh_of(1, 4, 2)
    up = nnx.Param(np.arange(16 * 24, dtype=np.float32).reshape(16, 24), letters="DF")
    stored = jax.device_put({"up": up}, shardings({"up": up}, mesh))
    with jax.set_mesh(mesh):
        placed = jax.jit(for_compute)(stored)["up"][...]
    assert stored["up"][...].sharding.shard_shape(up.shape) == (4, 12)
    assert placed.sharding.shard_shape(up.shape) == (16, 12)
    np.testing.assert_array_equal(placed, up[...])


def test_without_a_mesh_constrain_does_nothing():
    x = jnp.ones((3, 5, 7))
    assert constrain(x, "BTD") is x


def test_rows_must_split_over_replica_and_fsdp():
    check_rows(8, mesh_of(2, 2, 2))
    with pytest.raises(ValueError, match="batch of 6 rows does not split over 4 devices"):
        check_rows(6, mesh_of(2, 2, 2))


def test_a_global_batch_is_the_local_rows_split_by_row():
    ids = np.arange(8 * 3, dtype=np.int32).reshape(8, 3)
    batch = global_batch(Batch(ids, ids + 1, ids > 4, ids, ids), mesh_of(2, 2, 2))
    assert batch.targets.sharding.spec == P(("replica", "fsdp")) and batch.learn.dtype == bool
    np.testing.assert_array_equal(batch.inputs, ids)
    assert {shard.data.shape for shard in batch.inputs.addressable_shards} == {(2, 3)}


def shares(tensor: int, processes: list[int]) -> list[tuple[int, int]]:
    """data_share of each process, for a mesh without replicas whose devices, in its order, belong to ``processes``."""
    devices = np.array([SimpleNamespace(process_index=process) for process in processes], object)
    shape = {"replica": 1, "fsdp": len(processes) // tensor, "tensor": tensor}
    mesh = SimpleNamespace(devices=devices.reshape(*shape.values()), shape=shape)
    return [data_share(mesh, process) for process in range(max(processes) + 1)]


def test_processes_whose_devices_hold_the_same_rows_read_the_same():
    assert shares(2, [0, 0, 0, 0, 1, 1, 1, 1]) == [(0, 2), (1, 2)]
    assert shares(4, [0, 0, 1, 1, 2, 2, 3, 3]) == [(0, 2), (0, 2), (1, 2), (1, 2)]
    # As a TPU slice lays it out: each process has two devices on two rows, and shares both rows with another process.
    assert shares(4, [0, 0, 1, 1, 0, 0, 1, 1, 2, 2, 3, 3, 2, 2, 3, 3]) == [(0, 2), (0, 2), (1, 2), (1, 2)]
    with pytest.raises(ValueError, match=r"partly the same.*mesh\.tensor"):
        shares(3, [0, 0, 1, 1, 2, 2])
