"""The decoder equals the original's recorded vectors and transformers; caching, packing and remat do not change its results."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from goldens_at import golden_roots

from convert.chameleon import load_model, save_model
from lumina_jax.config import ModelConfig
from lumina_jax.model.chameleon import Chameleon
from lumina_jax.model.params import count

CHECKPOINTS = sorted({ckpt for root in golden_roots("lm") for ckpt in (root / "lm").glob("*/ckpt_*")})
MODELS = sorted({ckpt for ckpt in CHECKPOINTS if ckpt.name == "ckpt_lumina" and (ckpt.parent / "train.json").exists()})
NAMES = dict(ids=lambda path: f"{path.parent.name}-{path.name}")


def small(**changes) -> ModelConfig:
    sizes = dict(vocab=61, width=32, layers=3, heads=4, kv_heads=2, head_dim=8, mlp=48, qk_groups=2, dropout=0.0)
    return ModelConfig(**{**sizes, **changes})


def ids_of(rng: np.random.Generator, shape, vocab=61) -> jax.Array:
    return jnp.asarray(rng.integers(0, vocab, shape, dtype=np.int32))


@pytest.mark.smoke
@pytest.mark.parametrize("checkpoint", CHECKPOINTS, **NAMES)
def test_logits_are_the_original_s(checkpoint):
    model, _ = load_model(checkpoint)
    with np.load(checkpoint.parent / "logits.npz") as golden:
        logits = model.logits(model(jnp.asarray(golden["ids"])))
        np.testing.assert_allclose(logits, golden["logits"], atol=1e-4, rtol=1e-4)
        if "hidden_states" in golden:
            np.testing.assert_allclose(
                model(jnp.asarray(golden["ids"])), golden["hidden_states"][-1], atol=1e-4, rtol=1e-4
            )


@pytest.mark.parametrize("checkpoint", CHECKPOINTS, **NAMES)
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_as_a_segment_equals_the_original_s_padding(checkpoint, side):
    model, _ = load_model(checkpoint)
    with np.load(checkpoint.parent / "logits.npz") as golden:
        if f"{side}_logits" not in golden:
            pytest.skip(f"no {side}-padded vectors recorded here")
        visible = golden[f"{side}_mask"].astype(bool)
        hidden = model(jnp.asarray(golden[f"{side}_ids"]), segments=jnp.asarray(visible.astype(np.int32)))
        logits = np.asarray(model.logits(hidden))
        np.testing.assert_allclose(logits[visible], golden[f"{side}_logits"][visible], atol=2e-4, rtol=1e-4)


def _losses(model: Chameleon, ids: list[list[int]], labels: list[list[int]], z_weight: float):
    """Cross-entropy + z of ragged rows, padded as the original pads them."""
    T = max(len(row) for row in ids)
    tokens = np.array([row + [0] * (T - len(row)) for row in ids])
    targets = np.array([row + [-100] * (T - len(row)) for row in labels])[:, 1:]
    logits = model.logits(model(jnp.asarray(tokens)))[:, :-1]
    learn = targets >= 0
    normaliser = jax.nn.logsumexp(logits, axis=-1)
    chosen = jnp.take_along_axis(logits, jnp.asarray(np.maximum(targets, 0))[..., None], -1)[..., 0]
    xent = jnp.sum((normaliser - chosen) * learn) / learn.sum()
    z = jnp.sum(normaliser**2 * learn) / learn.sum()
    return xent + z_weight * z, (xent, z)


@pytest.mark.parametrize("checkpoint", MODELS, **NAMES)
def test_losses_and_gradients_are_the_original_s(checkpoint, tmp_path):
    model, cfg = load_model(checkpoint)
    golden = json.loads((checkpoint.parent / "train.json").read_text())["unmasked"]
    run = jax.value_and_grad(_losses, has_aux=True)
    (total, (xent, z)), grads = run(model, golden["input_ids"], golden["labels"], golden["z_loss_weight"])
    np.testing.assert_allclose([xent, z, total], [golden[k] for k in ("c_loss", "z_loss", "total")], rtol=1e-5)
    norm = jnp.sqrt(sum(jnp.sum(g**2) for g in jax.tree.leaves(grads)))
    np.testing.assert_allclose(norm, golden["grad_norm"], rtol=1e-4)
    save_model(grads, cfg, tmp_path)
    grads = _tensors(tmp_path)
    with np.load(checkpoint.parent / "train.npz") as recorded:
        names = [name for name in recorded if name.startswith("unmasked/")]
        assert names
        for name in names:
            ours, theirs = grads[name.removeprefix("unmasked/")], recorded[name]
            if ours.shape != theirs.shape:  # QK-norm rows are exported per head, each a copy of its group's
                ours = ours[:: len(ours) // len(theirs)]
            np.testing.assert_allclose(ours, theirs, atol=1e-5, rtol=1e-3, err_msg=name)


def _tensors(folder):
    from safetensors.numpy import load_file

    return {name: array for file in folder.glob("*.safetensors") for name, array in load_file(file).items()}


@pytest.mark.parametrize("post_norm", [False, True])
def test_transformers_loads_our_export_and_agrees(post_norm, tmp_path):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    cfg = small(post_norm=post_norm, width=32, heads=4, kv_heads=2, head_dim=8)
    model = Chameleon(cfg, nnx.Rngs(0))
    model = jax.tree.map(lambda w: w + 0.1 * jax.random.normal(jax.random.key(w.size), w.shape), model)
    save_model(model, cfg, tmp_path, shards=3)
    theirs, report = transformers.ChameleonModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not {key for key in report["missing_keys"] if "vqmodel" not in key}
    head = _tensors(tmp_path)["lm_head.weight"]
    ids = np.random.default_rng(1).integers(0, cfg.vocab, (2, 17))
    with torch.no_grad():
        hidden = theirs.eval()(input_ids=torch.tensor(ids)).last_hidden_state.numpy()
    np.testing.assert_allclose(model.logits(model(jnp.asarray(ids))), hidden @ head.T, atol=1e-4, rtol=1e-4)


def test_save_and_load_are_inverse(tmp_path):
    cfg = small(qk_groups=2)
    model = jax.tree.map(lambda w: w.astype(jnp.bfloat16), Chameleon(cfg, nnx.Rngs(3)))
    model = jax.tree.map(lambda w: w + jax.random.normal(jax.random.key(w.size), w.shape, w.dtype), model)
    save_model(model, cfg, tmp_path, shards=4)
    again, read = load_model(tmp_path)
    assert read == cfg
    assert jax.tree.structure(again) == jax.tree.structure(model)
    for ours, theirs in zip(jax.tree.leaves(model), jax.tree.leaves(again), strict=True):
        assert ours.dtype == theirs.dtype and (ours == theirs).all()


def test_a_missing_weight_is_named(tmp_path):
    from safetensors.numpy import load_file, save_file

    cfg = small()
    save_model(Chameleon(cfg, nnx.Rngs(0)), cfg, tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["model.norm.weight"]
    tensors["model.extra"] = np.zeros(1, np.float32)
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"model\.norm\.weight.*model\.extra"):
        load_model(tmp_path)


@pytest.mark.smoke
@pytest.mark.parametrize("post_norm", [False, True])
def test_cached_equals_the_full_pass(post_norm):
    model, rng = Chameleon(small(post_norm=post_norm), nnx.Rngs(0)), np.random.default_rng(0)
    ids = ids_of(rng, (3, 20))
    full, cache, parts = model(ids), model.empty_cache(3, 32), []
    for start, stop in ((0, 9), (9, 10), (10, 11), (11, 20)):
        hidden, cache = model.cached(ids[:, start:stop], cache)
        parts.append(hidden)
    np.testing.assert_allclose(jnp.concatenate(parts, 1), full, atol=2e-5)
    assert int(cache.length) == 20


def test_hidden_slots_equal_a_run_without_them():
    """A row that sees slots from 7 on equals a run of the rest alone: so left padding and a hidden prompt change nothing."""
    model, ids = Chameleon(small(), nnx.Rngs(0)), ids_of(np.random.default_rng(2), (2, 20))
    cache = model.empty_cache(2, 20)._replace(visible_from=jnp.array([0, 7]))
    hidden, _ = model.cached(ids, cache)
    np.testing.assert_allclose(hidden[0], model(ids[:1])[0], atol=2e-5)
    np.testing.assert_allclose(hidden[1, 7:], model(ids[1:, 7:])[0], atol=2e-5)


def test_a_packed_row_equals_its_rows_alone():
    model, rng = Chameleon(small(), nnx.Rngs(0)), np.random.default_rng(3)
    first, second = ids_of(rng, (1, 7)), ids_of(rng, (1, 12))
    row = jnp.concatenate([first, second], 1)
    positions = jnp.concatenate([jnp.arange(7), jnp.arange(12)])[None]
    segments = jnp.concatenate([jnp.ones(7, int), jnp.full(12, 2)])[None]
    packed = model(row, positions, segments)
    np.testing.assert_allclose(packed[:, :7], model(first), atol=2e-5)
    np.testing.assert_allclose(packed[:, 7:], model(second), atol=2e-5)


def test_no_gradient_from_later_tokens():
    model, ids = Chameleon(small(), nnx.Rngs(0)), jnp.arange(10)[None]

    def early(table):
        changed = jax.tree.map(lambda w: w, model)
        changed.embedding = changed.embedding.replace(table)
        return jnp.sum(changed(ids)[:, :4] ** 2)

    grads = jax.grad(early)(model.embedding[...])
    assert (grads[4:] == 0).all() and (jnp.abs(grads[:4]).sum(-1) > 0).all()


def test_remat_and_unroll_change_nothing():
    model, ids = Chameleon(small(dropout=0.2), nnx.Rngs(0)), ids_of(np.random.default_rng(5), (2, 9))

    def loss(model, remat, unroll):
        return jnp.sum(model(ids, key=jax.random.key(1), remat=remat, unroll=unroll) ** 2)

    plain = jax.grad(loss)(model, "none", 1)
    for other in (jax.grad(loss)(model, "block", 1), jax.grad(loss)(model, "none", 3)):
        for a, b in zip(jax.tree.leaves(plain), jax.tree.leaves(other), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3)


def test_dropout_zeroes_its_share_and_needs_a_key():
    model, ids = Chameleon(small(dropout=0.5), nnx.Rngs(0)), ids_of(np.random.default_rng(6), (2, 9))
    first, other = (model(ids, key=jax.random.key(k)) for k in (1, 2))
    assert not np.allclose(first, other) and np.allclose(first, model(ids, key=jax.random.key(1)))
    still = Chameleon(small(dropout=0.0), nnx.Rngs(0))
    np.testing.assert_array_equal(model(ids), still(ids))


@pytest.mark.parametrize(
    ("cfg", "billions"),
    [
        (ModelConfig(), 7.013),
        (ModelConfig(width=8192, layers=48, heads=64, kv_heads=8, mlp=22016, qk_groups=4, post_norm=True), 34.29),
    ],
)
def test_full_sizes_have_the_original_s_number_of_weights(cfg, billions):
    shapes = jax.eval_shape(lambda: Chameleon(cfg, nnx.Rngs(0)))
    assert abs(count(shapes) / 1e9 - billions) < 0.01
