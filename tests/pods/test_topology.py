"""Names of slices, and the devices and options that the compiler gets for them."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from lumina_jax.config import MeshConfig
from lumina_jax.model.tpu import OPTIONS
from lumina_jax.pods.chips import GIB
from lumina_jax.pods.topology import NOT_YET, SHAPES_2D, SHAPES_3D, parse
from lumina_jax.sharding import make_mesh

REPO = Path(__file__).resolve().parents[2]


@pytest.mark.smoke
@pytest.mark.parametrize(
    ("text", "slices", "chips", "devices", "cloud", "wrap"),
    [
        ("v5p:4x4x4", 1, 64, 64, "v5p-128", (True, True, True)),
        ("v4:2x2x4", 1, 16, 16, "v4-32", (False, False, False)),
        ("v5e:16x16", 2, 512, 512, "v5litepod-256", (True, True, False)),
        ("v6e:8x16", 1, 128, 128, "v6e-128", (False, True, False)),
        ("v6e:1x1", 1, 1, 1, "v6e-1", (False, False, False)),
        ("tpu7x:1x1x1", 1, 1, 2, "tpu7x-2", (False, False, False)),
        ("tpu7x:2x2x1", 2, 8, 16, "tpu7x-8", (False, False, False)),
        ("tpu7x:4x4x4", 1, 64, 128, "tpu7x-128", (True, True, True)),
        ("tpu7x:4x8x8", 1, 256, 512, "tpu7x-512", (True, True, True)),
    ],
)
def test_a_name_gives_chips_devices_cloud_name_and_rings(text, slices, chips, devices, cloud, wrap):
    topology = parse(text, slices)
    assert (topology.chips, topology.device_count) == (chips, devices)
    assert (topology.cloud, topology.wrap) == (cloud, wrap)
    assert text in str(topology)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("v7:4x4", ["v7", "v4, v5e, v5p, v6e, tpu7x"]),
        ("v5p", ["no size", "2x2x1"]),
        ("v5p:4x4", ["4x4", "4x4x4"]),
        ("v5p:8x4x4", ["8x4x4", "smallest first"]),
        ("v5e:3x3", ["3x3", "16x16"]),
        ("v6e:4xfour", ["4xfour"]),
        ("tpu7x:4x4", ["4x4", "4x4x4"]),
        ("tpu8t:4x4x4", ["does not accept tpu8t yet", "libtpu", "tpu7x:4x4x4"]),
        ("tpu8i", ["does not accept tpu8i yet"]),
    ],
)
def test_an_unknown_slice_is_refused_with_the_known_ones(text, words):
    with pytest.raises(ValueError, match="--topology " + text) as error:
        parse(text)
    assert all(word in str(error.value) for word in words)
    with pytest.raises(ValueError, match="--slices 0"):
        parse("v5e:2x2", 0)


def test_slices_are_whole_hosts_and_cubes():
    assert all(chips == 1 or chips % 4 == 0 for shape in SHAPES_2D for chips in [shape[0] * shape[1]])
    assert all(all(side % 4 == 0 for side in shape) for shape in SHAPES_3D if min(shape) >= 4)


@pytest.mark.parametrize("text", ["v4:2x2x1", "v5e:2x2", "v5p:4x4x4", "v6e:2x4", "tpu7x:1x1x1", "tpu7x:2x2x1"])
def test_devices_have_the_number_and_memory_of_the_table(text, tpu_compiler):
    import jax
    import jax.numpy as jnp

    topology = parse(text, slices=2)
    devices = topology.devices()
    assert len(devices) == topology.device_count
    assert {device.slice_index for device in devices} == {0, 1}
    sharding = jax.sharding.SingleDeviceSharding(devices[0])
    huge = jax.ShapeDtypeStruct((GIB * 64,), jnp.int32, sharding=sharding)
    with pytest.raises(jax.errors.JaxRuntimeError, match="RESOURCE_EXHAUSTED") as error:
        jax.jit(lambda x: x * 2).lower(huge).compile(compiler_options=OPTIONS[topology.chip.name])
    # Compilers of different age name capacities that differ by the last digit.
    capacity = float(re.search(r"(?:available HBM \(|of )([\d.]+)G", str(error.value))[1])
    assert capacity == pytest.approx(topology.chip.hbm / GIB, abs=0.011)


@pytest.mark.parametrize("name", NOT_YET)
def test_the_compiler_refuses_the_chips_that_are_refused_before_it_is_asked(name, tpu_compiler):
    from jax.experimental.topologies import get_topology_desc

    with pytest.raises(Exception, match="Invalid TPU external name"):
        get_topology_desc(platform="tpu", topology_name=f"{name}:2x2x1")


@pytest.mark.parametrize(
    ("replica", "fsdp", "places"),
    [
        (32, 4, [(x, 0, 0, 0) for x in range(4)]),
        (16, 8, [(x, 0, 0, core) for x in range(4) for core in range(2)]),
        (8, 16, [(x, y, 0, 0) for x in range(4) for y in range(4)]),
        (4, 32, [(x, y, 0, core) for x in range(4) for y in range(4) for core in range(2)]),
    ],
)
def test_a_group_that_shares_weights_fills_whole_rings_of_ironwood(replica, fsdp, places, tpu_compiler):
    """The first devices of a mesh: a ring of chips, one device of each or both, or a plane of such rings."""
    mesh = make_mesh(MeshConfig(replica=replica, fsdp=fsdp), parse("tpu7x:4x4x4").devices())
    group = [(*device.coords, device.core_on_chip) for device in mesh.devices[0, :, 0]]
    assert group == places


def test_without_libtpu_the_error_says_how_to_install_it():
    script = (
        "import importlib.util; importlib.util.find_spec = lambda name: None\n"
        "from lumina_jax.pods.topology import parse; parse('v5e:2x2').devices()"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=REPO)
    assert "pip install -r lumina_jax/pods/requirements.txt" in result.stderr
