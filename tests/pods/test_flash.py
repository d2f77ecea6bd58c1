"""The cost of flash attention is read off compiled programs, and is never below that of its matrix products."""

import jax
import jax.numpy as jnp
import pytest

from lumina_jax.model.flash import Tiles, flash_attend
from lumina_jax.pods import hlo
from lumina_jax.pods.chips import CHIPS
from lumina_jax.pods.flash import FLASH_BUNDLES, PRODUCTS, FlashKernel, flash_kernel
from lumina_jax.pods.kernels import TARGET
from lumina_jax.pods.topology import parse


@pytest.mark.parametrize("chip", ["v5e:1x1", "v5p:1x1x1", "v6e:1x1"])
def test_both_kernels_compile_and_are_found_with_blocks_and_heads(chip, tpu_compiler):
    """Two rows, four query heads that share two key heads, 256 tokens."""
    sharding = jax.sharding.SingleDeviceSharding(parse(chip).devices()[0])
    query, key = ((2, 256, heads * 128) for heads in (4, 2))
    shapes = [(query, "bfloat16"), (key, "bfloat16"), (key, "bfloat16"), ((2, 256), "int32"), ((4,), "float32")]
    arrays = [jax.ShapeDtypeStruct(shape, dtype, sharding=sharding) for shape, dtype in shapes]

    def number(*arrays):
        return flash_attend(*arrays, Tiles(256, 128), Tiles(128, 128)).astype(jnp.float32).sum()

    compiled = jax.jit(jax.value_and_grad(number, (0, 1, 2))).lower(*arrays).compile()
    program = hlo.parse(compiled.as_text())
    calls = [i for c in program.values() for i in c.values() if i.op == "custom-call" and TARGET in i.text]
    kernels = {kernel for call in calls if (kernel := flash_kernel(call))}
    assert kernels == {FlashKernel("fwd", 256, 256, 128, 8), FlashKernel("bwd", 128, 256, 128, 8)}


@pytest.mark.parametrize("chip", CHIPS.values(), ids=str)
def test_flash_attention_takes_longer_than_its_products_at_peak(chip):
    for pass_ in PRODUCTS:
        for block in (256, 512, 640, 1152, 1280):
            n = 5120 // block
            products = PRODUCTS[pass_] * 2 * n * n / 2 * block**2 * 128
            assert FlashKernel(pass_, block, n * block, 128, 64).seconds(chip) > 64 * products / chip.flops


def test_a_measured_head_costs_the_bundles_of_its_blocks():
    under, on, rest = FLASH_BUNDLES["v6e"]["bwd"][640]
    assert FlashKernel("bwd", 640, 1280, 128, 1).bundles(CHIPS["v6e"]) == under + 2 * on + rest
    assert FlashKernel("bwd", 640, 2560, 128, 1).bundles(CHIPS["v6e"]) == 6 * under + 4 * on + rest
    one, many = (FlashKernel("fwd", 640, 1280, 128, heads).seconds(CHIPS["v5p"]) for heads in (1, 30))
    assert many == pytest.approx(30 * one)
