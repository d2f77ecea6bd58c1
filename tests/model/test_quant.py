"""Quantized training: products over codes err by no more than rounding can, gradients are right in the mean, on every mesh."""

import functools
from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.extend.core import Jaxpr

from lumina_jax.config import MeshConfig, ModelConfig
from lumina_jax.errors import InputError
from lumina_jax.model.block import product
from lumina_jax.model.chameleon import Chameleon
from lumina_jax.model.quant import CODES, Quantized, check_quant, noise, quantize
from lumina_jax.sharding import make_mesh

CFG = ModelConfig(vocab=64, width=32, layers=2, heads=8, kv_heads=8, head_dim=8, mlp=48, qk_groups=2, dropout=0.0)
SIZES = dict(B=4, T=8, D=32, H=8, N=8, K=4, F=48)
PRODUCTS = ("BTD,DHK->BHTK", "BTHK,HKD->BTD", "BTD,DF->BTF", "BTF,FD->BTD")


class Product(NamedTuple):
    """A product of random operands, float32: x and w, the gradient E of its output, and the letters of the three."""

    letters: tuple[str, str, str]
    x: np.ndarray
    w: np.ndarray
    change: np.ndarray

    @property
    def summed(self) -> str:
        return "".join(letter for letter in self.letters[1] if letter in self.letters[0])


def random_product(text: str, rows: int = SIZES["B"]) -> Product:
    letters, rng = tuple(text.replace("->", ",").split(",")), np.random.default_rng(len(text))
    sizes = SIZES | {"B": rows}
    arrays = [rng.standard_normal([sizes[letter] for letter in side]).astype(np.float32) for side in letters]
    return Product(letters, *arrays)


def gradients(text: str, kind: str, case: Product, key: jax.Array | None = None) -> tuple[jax.Array, ...]:
    """(y, dx, dw) of the quantized product."""
    y, pull = jax.vjp(lambda x, w: product(text, x, Quantized(w, kind, key)), case.x, case.w)
    return y, *pull(case.change)


def codes(x: np.ndarray, letters: str, summed: str, kind: str = "int8") -> tuple[np.ndarray, np.ndarray]:
    """Codes and scales as float64."""
    return tuple(np.float64(a) for a in quantize(jnp.asarray(x), letters, summed, kind))


def squeeze(scale: np.ndarray, letters: str, summed: str) -> np.ndarray:
    return scale.squeeze(tuple(letters.index(letter) for letter in summed))


def common(some: str, others: str) -> str:
    return "".join(letter for letter in some if letter in others)


@pytest.mark.smoke
@pytest.mark.parametrize("kind", CODES)
def test_rounding_errs_by_half_a_step_at_most(kind):
    x = np.random.default_rng(0).standard_normal((5, 64)).astype(np.float32)
    x[3] = 0
    rounded, scale = codes(x, "TD", "D", kind)
    largest = CODES[kind][1]
    assert scale.shape == (5, 1) and np.isfinite(rounded).all()
    assert (np.abs(rounded).max(1) == [largest, largest, largest, 0, largest]).all()
    # Of the 4 bits of an fp8 mantissa the last is worth 2^-3 of the leading one; below 2^-6 the steps are 2^-9.
    step = scale if kind == "int8" else np.maximum(np.abs(x) * 2**-3, scale * 2.0**-9)
    assert (np.abs(rounded * scale - x) <= 0.50001 * step).all()


@pytest.mark.smoke
@pytest.mark.parametrize("text", PRODUCTS)
def test_a_product_is_that_of_the_codes_times_their_scales(text):
    case = random_product(text)
    (x_codes, x_scale), (w_codes, w_scale) = (
        codes(a, s, case.summed) for a, s in zip(case[1:3], case.letters[:2], strict=True)
    )
    expected = np.einsum(text, x_codes * x_scale, w_codes * w_scale)
    np.testing.assert_allclose(gradients(text, "int8", case)[0], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("text", PRODUCTS)
def test_int8_products_and_gradients_err_by_no_more_than_rounding_can(text):
    """Half a step for each number of both operands, all of them at their worst."""
    case = random_product(text)
    inputs, weights, outputs = case.letters
    x_scale = codes(case.x, inputs, case.summed)[1]
    w_codes, w_scale = codes(case.w, weights, case.summed)
    y, dx, dw = gradients(text, "int8", case)
    size = np.einsum(text, np.abs(case.x), np.broadcast_to(w_scale / 2, case.w.shape))
    size += np.einsum(text, np.broadcast_to(x_scale / 2, case.x.shape), np.abs(w_codes * w_scale))
    assert (np.abs(y - np.einsum(text, case.x, case.w)) <= size + 1e-5).all()

    pull, channels = f"{outputs},{weights}->{inputs}", common(weights, outputs)
    scale = squeeze(w_scale, weights, case.summed)
    spread = np.einsum(f"{outputs},{channels}->{outputs}", case.change, scale)
    _, step = codes(spread, outputs, channels)
    size = np.einsum(pull, np.broadcast_to(step / 2, spread.shape), np.abs(w_codes))
    size += np.einsum(pull, np.abs(case.change), np.broadcast_to(w_scale / 2, case.w.shape))
    assert (np.abs(dx - np.einsum(pull, case.change, case.w)) <= size + 1e-5).all()

    exact = np.einsum(f"{inputs},{outputs}->{weights}", case.x, case.change)
    np.testing.assert_allclose(dw, exact, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("text", PRODUCTS)
def test_a_rounded_gradient_points_where_the_exact_one_does(text):
    """Rounding adds noise of a variance of step² / 12 for each operand: the cosine is 1 / sqrt(1 + the shares of both)."""
    case = random_product(text, rows=32)
    inputs, weights, outputs = case.letters
    _, dx, _ = gradients(text, "int8", case)
    exact = np.einsum(f"{outputs},{weights}->{inputs}", case.change, case.w)
    sides = (case.w, weights, case.summed), (case.change, outputs, common(weights, outputs))
    shares = [np.mean(codes(*side)[1] ** 2) / 12 / np.mean(side[0] ** 2) for side in sides]
    cosine = np.vdot(dx, exact) / np.linalg.norm(dx) / np.linalg.norm(exact)
    # Normal operands, of which a scale takes the largest: the other operand's scales widen the steps by a fifth at most.
    assert 1 - cosine <= 1.5 * sum(shares) / 2
    assert 1 - cosine >= 0.5 * sum(shares) / 2


def test_stochastic_rounding_is_right_in_the_mean_with_the_variance_of_independent_rounding():
    draws, text = 2000, PRODUCTS[2]
    case = random_product(text)
    inputs, weights, outputs = case.letters
    run = jax.jit(jax.vmap(lambda key: gradients(text, "int8", case, key)[1]))
    samples = np.float64(run(jax.random.split(jax.random.key(0), draws)))
    w_codes, w_scale = codes(case.w, weights, case.summed)
    exact, pull = case.change * squeeze(w_scale, weights, case.summed), f"{outputs},{weights}->{inputs}"
    _, step = codes(exact, outputs, "F")
    share = exact / step - np.floor(exact / step)
    variance = np.einsum(pull, share * (1 - share) * step**2, w_codes**2)
    deviations = (samples.mean(0) - np.einsum(pull, exact, w_codes)) / np.sqrt(variance / draws)
    # Standard normal: none of some thousand beyond 5, and their squares have a mean of 1, with a deviation of sqrt(2 / number)
    # times what entries share: those of a token or channel have one rounding in common, at most the size of that axis.
    assert np.abs(deviations).max() < 5.5
    assert abs(np.mean(deviations**2) - 1) < 5 * np.sqrt(2 * SIZES["D"] / deviations.size)
    assert abs(np.mean(samples.var(0) / variance) - 1) < 5 * np.sqrt(2 / draws)


def test_noise_is_uniform_and_its_numbers_are_independent_by_pairs():
    draws = 4000
    u, v = (jax.random.uniform(jax.random.key(seed), (draws, 3)) for seed in range(2))
    drawn = np.asarray(jax.vmap(functools.partial(noise, "TF", "T", "F"))(u, v)).reshape(draws, 9)
    assert drawn.min() >= 0 and drawn.max() < 1
    counts = np.stack([np.histogram(column, 10, (0, 1))[0] for column in drawn.T])
    assert np.abs(counts - draws / 10).max() < 5 * np.sqrt(draws * 0.09)
    # Of halves, not of sizes: a number that followed from another one would agree with it always, or never.
    below = drawn < 0.5
    agree = [(below[:, i] == below[:, j]).mean() for i in range(9) for j in range(i)]
    assert np.abs(np.asarray(agree) - 0.5).max() < 5 * np.sqrt(0.25 / draws)
    assert np.abs(np.corrcoef(drawn.T) - np.eye(9)).max() < 5 / np.sqrt(draws)


def loss(model: Chameleon, kind: str, key: jax.Array | None, skip: tuple[int, ...] = (), remat: str = "none"):
    ids = jax.random.randint(jax.random.key(1), (8, 16), 0, CFG.vocab)
    hidden = model(ids, key=key, quant=kind, quant_skip=skip, remat=remat, attention="plain")
    return jnp.mean(hidden**2 * jnp.linspace(-1, 1, CFG.width))


@functools.cache
def model() -> Chameleon:
    return Chameleon(CFG, nnx.Rngs(0))


@functools.cache
def gradient_on(mesh: tuple[int, int, int], kind: str, remat: str = "none") -> tuple[float, np.ndarray]:
    """(loss, gradient of all weights in one row) of the whole model, rounded stochastically."""
    run = jax.jit(jax.value_and_grad(lambda model: loss(model, kind, jax.random.key(3), remat=remat)))
    weights = model()
    with jax.set_mesh(make_mesh(MeshConfig(*mesh), jax.devices()[: np.prod(mesh)])):
        value, grads = run(weights)
    return float(value), np.concatenate([np.ravel(g) for g in jax.tree.leaves(grads)])


def distance(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


@pytest.mark.parametrize("mesh", [(2, 2, 2)])
def test_eight_devices_round_like_one(mesh):
    """Codes and noise are those of one device."""
    value, grads = gradient_on(mesh, "int8")
    one, on_one = gradient_on((1, 1, 1), "int8")
    exact = gradient_on((1, 1, 1), "none")[1]
    assert abs(value - one) < 1e-3  # of a mean of squares of normed numbers, which are about 1
    assert distance(grads, on_one) < distance(on_one, exact)
    assert distance(grads, exact) < 1.1 * distance(on_one, exact)


@pytest.mark.parametrize("mesh", [(1, 8, 1), (2, 2, 2)])
@pytest.mark.parametrize("text", [PRODUCTS[0], PRODUCTS[3]])
def test_products_and_gradients_of_activations_are_the_same_on_every_mesh(mesh, text):
    """Sums of codes are exact, and scales are common to the devices that split a sum."""
    case, key = random_product(text, rows=8), jax.random.key(5)
    y, dx, dw = gradients(text, "int8", case, key)
    with jax.set_mesh(make_mesh(MeshConfig(*mesh))):
        y8, dx8, dw8 = jax.jit(lambda: gradients(text, "int8", case, key))()
    np.testing.assert_allclose(y8, y, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(dx8, dx, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(dw8, dw, rtol=1e-4, atol=1e-5)


def test_recomputation_rounds_the_same_way_again():
    _, grads = gradient_on((1, 1, 1), "int8", "matmuls")
    assert distance(grads, gradient_on((1, 1, 1), "int8")[1]) < 1e-3


def equations(jaxpr: Jaxpr) -> Iterator:
    """All equations of a jaxpr and of those within."""
    for eqn in jaxpr.eqns:
        yield eqn
        for inner in jax.tree.leaves(eqn.params, is_leaf=lambda x: hasattr(x, "eqns") or hasattr(x, "jaxpr")):
            if hasattr(inner, "eqns") or hasattr(inner, "jaxpr"):
                yield from equations(getattr(inner, "jaxpr", inner))


@pytest.mark.parametrize(("kind", "skip", "spans"), [("int8", (), [(4, 1)]), ("fp8", (1, 2), [(1, 0), (1, 1), (2, 0)])])
def test_every_product_of_a_matrix_is_over_codes_but_in_the_layers_that_are_skipped(kind, skip, spans):
    """``spans``: layers that are computed alike, and whether over codes. Seven matrices: a product forward, one backward."""
    model = jax.eval_shape(lambda: Chameleon(replace(CFG, layers=4), nnx.Rngs(0)))
    grad = jax.grad(lambda model: loss(model, kind, jax.random.key(0), skip))
    found = []
    for scan in (eqn for eqn in equations(jax.make_jaxpr(grad)(model).jaxpr) if eqn.primitive.name == "scan"):
        products = [eqn for eqn in equations(scan.params["jaxpr"].jaxpr) if eqn.primitive.name == "dot_general"]
        coded = sum(all(x.aval.dtype == CODES[kind][0] for x in eqn.invars) for eqn in products)
        found += [(scan.params["length"], coded)] if products else []
    assert found == [(n, 7 * coded) for n, coded in spans] + [(n, 7 * coded) for n, coded in reversed(spans)]


@pytest.mark.parametrize(
    ("kind", "device", "refused"),
    [
        ("fp8", "TPU v6 lite", True),
        ("fp8", "TPU v5 lite", True),
        ("int8", "TPU v4", True),
        ("int8", "TPU v5 lite", False),
        ("int8", "TPU v6 lite", False),
        ("int8", "TPU7x", True),
        ("fp8", "TPU7x", False),
        ("fp8", "cpu", False),
        ("none", "TPU v4", False),
    ],
)
def test_codes_that_a_chip_multiplies_no_faster_are_refused(kind, device, refused):
    if not refused:
        return check_quant(kind, device)
    with pytest.raises(InputError, match=f"mesh.quant='{kind}'.*{device}"):
        check_quant(kind, device)
