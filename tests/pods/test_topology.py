"""Names of slices, and the devices and options that the compiler gets for them."""

import subprocess
import sys
from pathlib import Path

import pytest

from lumina_jax.model.tpu import OPTIONS
from lumina_jax.pods.chips import GIB
from lumina_jax.pods.topology import SHAPES_2D, SHAPES_3D, parse

REPO = Path(__file__).resolve().parents[2]


@pytest.mark.smoke
@pytest.mark.parametrize(
    ("text", "slices", "chips", "cloud", "wrap"),
    [
        ("v5p:4x4x4", 1, 64, "v5p-128", (True, True, True)),
        ("v4:2x2x4", 1, 16, "v4-32", (False, False, False)),
        ("v5e:16x16", 2, 512, "v5litepod-256", (True, True, False)),
        ("v6e:8x16", 1, 128, "v6e-128", (False, True, False)),
        ("v6e:1x1", 1, 1, "v6e-1", (False, False, False)),
    ],
)
def test_a_name_gives_chips_cloud_name_and_rings(text, slices, chips, cloud, wrap):
    topology = parse(text, slices)
    assert (topology.chips, topology.cloud, topology.wrap) == (chips, cloud, wrap)
    assert text in str(topology)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("v7:4x4", ["v7", "v4, v5e, v5p, v6e"]),
        ("v5p", ["no size", "2x2x1"]),
        ("v5p:4x4", ["4x4", "4x4x4"]),
        ("v5p:8x4x4", ["8x4x4", "smallest first"]),
        ("v5e:3x3", ["3x3", "16x16"]),
        ("v6e:4xfour", ["4xfour"]),
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


@pytest.mark.parametrize("text", ["v4:2x2x1", "v5e:2x2", "v5p:4x4x4", "v6e:2x4"])
def test_one_chip_is_one_device_with_the_memory_of_the_table(text, tpu_compiler):
    import jax
    import jax.numpy as jnp

    topology = parse(text, slices=2)
    devices = topology.devices()
    assert len(devices) == topology.chips
    assert {device.slice_index for device in devices} == {0, 1}
    sharding = jax.sharding.SingleDeviceSharding(devices[0])
    huge = jax.ShapeDtypeStruct((GIB * 64,), jnp.int32, sharding=sharding)
    with pytest.raises(jax.errors.JaxRuntimeError, match=f"{topology.chip.hbm / GIB:.2f}G"):
        jax.jit(lambda x: x * 2).lower(huge).compile(compiler_options=OPTIONS[topology.chip.name])


def test_without_libtpu_the_error_says_how_to_install_it():
    script = (
        "import importlib.util; importlib.util.find_spec = lambda name: None\n"
        "from lumina_jax.pods.topology import parse; parse('v5e:2x2').devices()"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=REPO)
    assert "pip install -r lumina_jax/pods/requirements.txt" in result.stderr
