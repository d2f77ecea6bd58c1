"""Arrays of checkpoints lie in chunks that are read alone: a host reads little more than its share."""

import math
from pathlib import Path

import jax
import numpy as np
import pytest
import tensorstore
from flax import nnx
from orbax.checkpoint import v1 as ocp

from lumina_jax.config import ModelConfig
from lumina_jax.model.chameleon import Chameleon
from lumina_jax.train.chunks import CHUNK_BYTES, axes_of, chunk_shape, cut_axes, saving_context
from lumina_jax.train.integrity import STATE, open_array

BIG = ModelConfig()
LARGEST = ModelConfig(width=8192, layers=48, heads=64, kv_heads=8, mlp=22016, qk_groups=4, post_norm=True)


def bytes_read() -> int:
    """Bytes that this process has read from files through tensorstore."""
    (metric,) = tensorstore.experimental_collect_matching_metrics("/tensorstore/kvstore/file/bytes_read")
    return metric["values"][0]["value"]


@pytest.fixture(scope="module")
def matrix(tmp_path_factory) -> tuple[Path, np.ndarray]:
    """A checkpoint with a stacked matrix [2 layers, D, F] of 16 MB, written as one part by one device."""
    folder, axes = tmp_path_factory.mktemp("chunks") / "0", cut_axes("DF", 3)
    numbers = np.random.default_rng(0).standard_normal((2, 1024, 2048), np.float32)
    with saving_context({"up": axes}):
        ocp.save_checkpointables(folder, {STATE: {"up": jax.device_put(numbers, jax.devices()[0])}})
    return folder, numbers


@pytest.mark.parametrize("parts", [{1: 16}, {1: 4}, {0: 2}], ids=str)
def test_a_part_of_an_array_costs_little_more_than_its_bytes(matrix, parts):
    folder, numbers = matrix
    cuts = tuple(slice(size // parts.get(axis, 1)) for axis, size in enumerate(numbers.shape))
    before = bytes_read()
    part = open_array(folder, "up")[cuts].read().result()
    read = bytes_read() - before
    np.testing.assert_array_equal(part, numbers[cuts])
    assert part.nbytes <= read < 1.1 * part.nbytes


def test_orbax_restores_a_sixteenth_by_reading_little_more(matrix):
    folder, numbers = matrix
    mesh = jax.make_mesh((8,), ("fsdp",), axis_types=(jax.sharding.AxisType.Auto,))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(None, "fsdp"))
    before = bytes_read()
    shape = jax.ShapeDtypeStruct(numbers.shape, numbers.dtype, sharding=sharding)
    array = ocp.load_checkpointables(folder, {STATE: {"up": shape}})[STATE]["up"]
    np.testing.assert_array_equal(array, numbers)
    assert bytes_read() - before < 1.1 * numbers.nbytes


@pytest.mark.parametrize(("cfg", "hosts"), [(BIG, 64), (LARGEST, 64)], ids=["7B", "34B"])
def test_hosts_read_little_more_than_their_share_of_a_released_model(cfg, hosts):
    """Weights in bfloat16, as they are imported, of which each host reads 1 of ``hosts`` slices along fsdp."""
    model = jax.eval_shape(lambda: Chameleon(cfg, nnx.Rngs(0)))
    axes, shares, reads = axes_of(model), 0, 0
    for path, weight in jax.tree_util.tree_leaves_with_path(model):
        name = jax.tree_util.keystr(path, simple=True, separator="/").removesuffix("/value")
        cut = axes[name]
        chunk = chunk_shape(weight.shape, 2, cut)
        assert math.prod(chunk) * 2 <= CHUNK_BYTES or min(weight.shape) < 64
        stacked = len(weight.shape) - len(model_letters(model)[name])
        if "D" not in model_letters(model)[name]:
            continue
        axis = stacked + model_letters(model)[name].index("D")
        share = weight.shape[axis] // hosts
        other = math.prod(weight.shape) // weight.shape[axis]
        shares += share * other
        reads += -(-share // chunk[axis]) * chunk[axis] * other
    assert reads <= 1.1 * shares


def model_letters(model) -> dict[str, str]:
    """{name of a weight: its letters}."""
    nodes = jax.tree_util.tree_leaves_with_path(model, is_leaf=lambda node: isinstance(node, nnx.Variable))
    named = ((jax.tree_util.keystr(path, simple=True, separator="/"), node) for path, node in nodes)
    return {name: node.get_metadata()["letters"] for name, node in named}


def test_every_chunk_has_a_checksum_that_every_reader_compares(matrix):
    folder, _ = matrix
    (codec,) = open_array(folder, "up").spec().to_json()["metadata"]["codecs"]
    assert [inner["name"] for inner in codec["configuration"]["codecs"]] == ["bytes", "crc32c"]
    assert codec["configuration"]["chunk_shape"] == [1, 64, 2048]
