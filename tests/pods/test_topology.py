"""Names of slices, and what the compiler makes of them."""

import subprocess
import sys
from pathlib import Path

import pytest

from lumina_jax.pods.chips import CHIPS, GIB
from lumina_jax.pods.flags import compiler_options, libtpu_init_args
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
def test_a_name_says_chips_and_rings(text, slices, chips, cloud, wrap):
    topology = parse(text, slices)
    assert (topology.chips, topology.cloud, topology.wrap) == (chips, cloud, wrap)
    assert text in str(topology)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("v7:4x4", ["v7", "v4, v5e, v5p, v6e"]),
        ("v5p", ["no size", "2x2x1"]),
        ("v5p:4x4", ["4x4", "4x4x4"]),
        ("v5p:8x4x4", ["8x4x4", "smallest first"]),
        ("v5e:3x3", ["3x3", "16x16"]),
        ("v6e:4xfour", ["4xfour"]),
    ],
)
def test_what_cannot_be_rented_is_refused_with_what_can(text, said):
    with pytest.raises(ValueError, match="--topology " + text) as error:
        parse(text)
    assert all(word in str(error.value) for word in said)
    with pytest.raises(ValueError, match="--slices 0"):
        parse("v5e:2x2", 0)


def test_slices_grow_by_whole_hosts_and_cubes():
    assert all(chips == 1 or chips % 4 == 0 for shape in SHAPES_2D for chips in [shape[0] * shape[1]])
    assert all(all(side % 4 == 0 for side in shape) for shape in SHAPES_3D if min(shape) >= 4)


def test_a_pod_gets_the_flags_that_a_compile_without_it_gets():
    for chip in CHIPS.values():
        words = dict(word.removeprefix("--").split("=") for word in libtpu_init_args(chip).split())
        assert words == compiler_options(chip)


@pytest.mark.parametrize("text", ["v4:2x2x1", "v5e:2x2", "v5p:4x4x4", "v6e:2x4"])
def test_one_chip_is_one_device_with_the_memory_we_know(text, tpu_compiler):
    import jax
    import jax.numpy as jnp

    topology = parse(text, slices=2)
    devices = topology.devices()
    assert len(devices) == topology.chips
    assert {device.slice_index for device in devices} == {0, 1}
    one = jax.sharding.SingleDeviceSharding(devices[0])
    huge = jax.ShapeDtypeStruct((GIB * 64,), jnp.int32, sharding=one)
    with pytest.raises(jax.errors.JaxRuntimeError, match=f"{topology.chip.hbm / GIB:.2f}G"):
        jax.jit(lambda x: x * 2).lower(huge).compile(compiler_options=compiler_options(topology.chip))


def test_without_the_compiler_the_cure_is_named():
    script = (
        "import importlib.util; importlib.util.find_spec = lambda name: None\n"
        "from lumina_jax.pods.topology import parse; parse('v5e:2x2').devices()"
    )
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=REPO)
    assert "pip install -r lumina_jax/pods/requirements.txt" in ended.stderr
