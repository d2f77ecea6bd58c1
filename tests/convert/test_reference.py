"""The two reference forward passes agree with the originals' recorded numbers and with each other, and are causal."""

import json
import sys

import ml_dtypes
import numpy as np
import pytest
from goldens_at import golden_roots

from convert.reference import ForwardPass, meta_forward, transformers_forward

META = sorted(folder for root in golden_roots("meta") for folder in (root / "meta").iterdir() if folder.is_dir())
HUGGING_FACE = sorted({folder for root in golden_roots("lm") for folder in (root / "lm").glob("*/ckpt_*")})
PARAMS = dict(dim=32, n_layers=2, n_heads=8, n_kv_heads=4, rope_theta=5e4, norm_eps=3e-5, qk_normalization=True)
K, F, V = 4, 24, 40
CAT = {"tok_embeddings": 1, "output": 0, "wq": 0, "wk": 0, "wv": 0, "w1": 0, "w3": 0, "wo": 1, "w2": 1}
"""The axis along which Meta's shards divide a weight; weights not listed are in every shard."""


def meta_files(folder) -> tuple[list[dict[str, np.ndarray]], dict]:
    """The shards of a Meta folder with their stored dtypes, and its merged params."""
    torch = pytest.importorskip("torch")
    (model,) = (folder / "models").iterdir()
    shards = []
    for file in sorted(model.glob("consolidated*.pth")):
        tensors = torch.load(file, weights_only=True)
        shards.append({name: array_of(torch, tensor) for name, tensor in tensors.items()})
    params, consolidated = (json.loads((model / f"{n}.json").read_text()) for n in ("params", "consolidate_params"))
    return shards, {**params, **params["model"], **consolidated}


def array_of(torch, tensor) -> np.ndarray:
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return tensor.numpy()


def random_shards(number: int, params: dict, seed: int = 0) -> list[dict[str, np.ndarray]]:
    """``number`` shards of one random model, each with its own QK-norms."""
    rng, D, kv = np.random.default_rng(seed), params["dim"], params["n_kv_heads"]
    shapes = {"tok_embeddings.weight": (V, D), "output.weight": (V, D), "norm.weight": (D,)}
    for layer in range(params["n_layers"]):
        prefix = f"layers.{layer}"
        shapes |= {f"{prefix}.attention.wq.weight": (D, D), f"{prefix}.attention.wo.weight": (D, D)}
        shapes |= {f"{prefix}.attention.{name}.weight": (kv * K, D) for name in ("wk", "wv")}
        shapes |= {f"{prefix}.feed_forward.{name}.weight": (F, D) for name in ("w1", "w3")}
        shapes |= {f"{prefix}.feed_forward.w2.weight": (D, F)}
        shapes |= {f"{prefix}.{name}.weight": (D,) for name in ("attention_norm", "ffn_norm")}
    weights = {name: rng.normal(len(shape) == 1, len(shape) / 8, shape) for name, shape in shapes.items()}
    shards = split({name: value.astype(np.float32) for name, value in weights.items()}, number)
    for shard in shards:
        for layer in range(params["n_layers"]):
            for name in ("q_normalization", "k_normalization"):
                prefix = f"layers.{layer}.attention.{name}"
                shard[f"{prefix}.weight"], shard[f"{prefix}.bias"] = rng.normal(1, 0.3, (2, K)).astype(np.float32)
    return shards


def split(weights: dict[str, np.ndarray], number: int) -> list[dict[str, np.ndarray]]:
    def shard_of(name: str, index: int) -> np.ndarray:
        axis = CAT.get(name.split(".")[-2])
        return weights[name] if axis is None else np.split(weights[name], number, axis)[index]

    return [{name: shard_of(name, index) for name in weights} for index in range(number)]


def random_ids(rows: int = 2, length: int = 11) -> np.ndarray:
    return np.random.default_rng(5).integers(0, V, (rows, length), dtype=np.int32)


def assert_same(actual: ForwardPass, expected: ForwardPass, atol: float) -> None:
    assert len(actual.layers) == len(expected.layers)
    for layer, (a, b) in enumerate(zip(actual.layers, expected.layers, strict=True)):
        np.testing.assert_allclose(a, b, atol=atol, rtol=1e-5, err_msg=f"layer {layer}")
    np.testing.assert_allclose(actual.logits, expected.logits, atol=atol, rtol=1e-5)


@pytest.mark.smoke
@pytest.mark.parametrize("folder", META, ids=lambda folder: folder.name)
def test_meta_s_logits_are_the_original_s(folder):
    shards, params = meta_files(folder)
    with np.load(folder / "meta_logits.npz") as golden:
        for row, following in enumerate(golden["next_tokens"]):
            tokens = golden[f"tokens_seq{row}"]
            trace = meta_forward(shards, params, np.append(tokens, following)[None])
            np.testing.assert_allclose(trace.logits[0, :-1], golden[f"logits_seq{row}"], atol=2e-4, rtol=0)
            np.testing.assert_allclose(trace.logits[0, -1], golden["decode_logits"][row], atol=2e-4, rtol=0)
            assert {x.dtype for x in (*trace.layers, trace.logits)} == {np.dtype(np.float32)}
            assert len(trace.layers) == params["n_layers"] + 1


@pytest.mark.parametrize("folder", META, ids=lambda folder: folder.name)
@pytest.mark.parametrize("name", ["q_normalization.weight", "k_normalization.bias"])
def test_every_shard_s_qk_norm_matters(folder, name):
    shards, params = meta_files(folder)
    ids = np.arange(9)[None]
    before = meta_forward(shards, params, ids)
    for index in range(len(shards)):
        changed = [dict(shard) for shard in shards]
        row = np.asarray(changed[index][f"layers.0.attention.{name}"], np.float32)
        changed[index][f"layers.0.attention.{name}"] = np.where(np.arange(len(row)) == 1, row + 3, row)
        after = meta_forward(changed, params, ids)
        assert np.abs(after.layers[1] - before.layers[1]).max() > 1e-3
        np.testing.assert_array_equal(after.layers[0], before.layers[0])


@pytest.mark.smoke
@pytest.mark.parametrize("swin", [False, True])
def test_shards_compute_what_the_undivided_model_computes(swin):
    params = {**PARAMS, "swin_norm": swin}
    (model,) = random_shards(1, params)
    assert_same(
        meta_forward([model], params, random_ids()), meta_forward(split(model, 4), params, random_ids()), atol=2e-5
    )


def test_grouped_heads_equal_repeated_heads():
    (grouped,) = random_shards(1, PARAMS)
    repeated = dict(grouped)
    for layer in range(PARAMS["n_layers"]):
        for name in (f"layers.{layer}.attention.wk.weight", f"layers.{layer}.attention.wv.weight"):
            repeated[name] = grouped[name].reshape(4, K, -1).repeat(2, axis=0).reshape(8 * K, -1)
    ungrouped = {**PARAMS, "n_kv_heads": None}
    assert_same(
        meta_forward([grouped], PARAMS, random_ids()), meta_forward([repeated], ungrouped, random_ids()), atol=2e-5
    )


def test_later_tokens_change_no_earlier_logits():
    shards, ids = random_shards(2, PARAMS), random_ids()
    before = meta_forward(shards, PARAMS, ids)
    ids[:, 6] = (ids[:, 6] + 1) % V
    after = meta_forward(shards, PARAMS, ids)
    np.testing.assert_allclose(after.logits[:, :6], before.logits[:, :6], atol=1e-5)
    assert (np.abs(after.logits[:, 6:] - before.logits[:, 6:]).max(-1) > 1e-3).all()


def test_the_number_of_shards_is_checked():
    with pytest.raises(ValueError, match="2 shards, but model_parallel_size is 4"):
        meta_forward(random_shards(2, PARAMS), {**PARAMS, "model_parallel_size": 4}, random_ids())


def hugging_face_files(shards: list[dict[str, np.ndarray]], params: dict) -> tuple[dict[str, np.ndarray], dict]:
    """Meta's shards as a Lumina-mGPT checkpoint: pairs (0,1)(2,3) of a head become halves (0,2)(1,3)."""

    def halves(rows: np.ndarray) -> np.ndarray:
        return rows.reshape(-1, K // 2, 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)

    def concatenated(name: str) -> np.ndarray:
        return np.concatenate([shard[name] for shard in shards], axis=CAT[name.split(".")[-2]])

    tensors = {
        "model.embed_tokens.weight": concatenated("tok_embeddings.weight"),
        "lm_head.weight": concatenated("output.weight"),
    }
    tensors["model.norm.weight"] = shards[0]["norm.weight"]
    for layer in range(params["n_layers"]):
        theirs, ours = f"layers.{layer}", f"model.layers.{layer}"
        for name in "qkvo":
            weight = concatenated(f"{theirs}.attention.w{name}.weight")
            tensors[f"{ours}.self_attn.{name}_proj.weight"] = halves(weight) if name in "qk" else weight
        for name, meta_name in (("gate", "w1"), ("up", "w3"), ("down", "w2")):
            tensors[f"{ours}.mlp.{name}_proj.weight"] = concatenated(f"{theirs}.feed_forward.{meta_name}.weight")
        for name, meta_name in (("input_layernorm", "attention_norm"), ("post_attention_layernorm", "ffn_norm")):
            tensors[f"{ours}.{name}.weight"] = shards[0][f"{theirs}.{meta_name}.weight"]
        for name in "qk":
            for kind in ("weight", "bias"):
                rows = [halves(shard[f"{theirs}.attention.{name}_normalization.{kind}"]) for shard in shards]
                tensors[f"{ours}.self_attn.{name}_norm.{kind}"] = np.stack(rows)
    settings = dict(
        vocab_size=V,
        hidden_size=params["dim"],
        intermediate_size=F,
        num_hidden_layers=params["n_layers"],
        num_attention_heads=params["n_heads"],
        num_key_value_heads=params["n_kv_heads"],
        rms_norm_eps=params["norm_eps"],
        rope_theta=params["rope_theta"],
        rope_scaling=None,
        swin_norm=params.get("swin_norm", False),
        model_parallel_size=len(shards),
        torch_dtype="bfloat16",
    )
    return tensors, settings


@pytest.mark.parametrize("number", [1, 2, 4])
@pytest.mark.parametrize("swin", [False, True])
def test_meta_s_code_and_transformers_agree(number, swin):
    pytest.importorskip("transformers")
    params = {**PARAMS, "swin_norm": swin}
    shards = random_shards(number, params, seed=number)
    theirs = transformers_forward(*hugging_face_files(shards, params), random_ids())
    assert_same(meta_forward(shards, params, random_ids()), theirs, atol=5e-5)


@pytest.mark.parametrize("folder", HUGGING_FACE, ids=lambda path: f"{path.parent.name}-{path.name}")
def test_transformers_gives_the_original_s_numbers(folder):
    pytest.importorskip("transformers")
    from safetensors.numpy import load_file

    tensors = {name: array for file in folder.glob("*.safetensors") for name, array in load_file(file).items()}
    settings = json.loads((folder / "config.json").read_text())
    with np.load(folder.parent / "logits.npz") as golden:
        trace = transformers_forward(tensors, settings, golden["ids"])
        np.testing.assert_allclose(trace.logits, golden["logits"], atol=1e-4, rtol=1e-4)
        *inner, last = golden["hidden_states"]
        np.testing.assert_allclose(trace.layers[:-1], inner, atol=1e-4, rtol=0)
        x = trace.layers[-1]
        normed = x / np.sqrt(np.mean(x * x, -1, keepdims=True) + settings["rms_norm_eps"])
        np.testing.assert_allclose(normed * tensors["model.norm.weight"], last, atol=1e-4, rtol=0)


def test_old_and_new_field_names_and_row_counts_are_equivalent():
    pytest.importorskip("transformers")
    tensors, settings = hugging_face_files(random_shards(2, PARAMS), PARAMS)
    trace = transformers_forward(tensors, settings, random_ids())
    old = ("rope_theta", "rope_scaling", "torch_dtype")
    new = {name: value for name, value in settings.items() if name not in old}
    new |= dict(rope_parameters={"rope_theta": settings["rope_theta"], "rope_type": "default"}, dtype="bfloat16")
    by_head = dict(tensors)
    for name in tensors:
        if "_norm." in name:
            by_head[name] = np.repeat(tensors[name], (4 if "q_norm" in name else 2), axis=0)
    again = transformers_forward(by_head, new, random_ids())
    np.testing.assert_array_equal(again.logits, trace.logits)
    slower = transformers_forward(tensors, {**settings, "rope_theta": 1e6}, random_ids())
    assert np.abs(slower.logits - trace.logits).max() > 1e-3


def test_the_image_encoder_and_the_image_mask_are_ignored():
    pytest.importorskip("transformers")
    tensors, settings = hugging_face_files(random_shards(1, PARAMS), PARAMS)
    trace = transformers_forward(tensors, settings, random_ids())
    mapped = {**settings, "mask_image_logits": True, "vocabulary_map": {"<image>": 9, "IMGIMGAZ": 4, "IMGIMGBZ": 5}}
    carried = {**tensors, "model.vqmodel.quant_conv.bias": np.zeros(3, np.float32)}
    np.testing.assert_array_equal(transformers_forward(carried, mapped, random_ids()).logits, trace.logits)


def test_weights_may_be_bfloat16_and_missing_ones_are_named():
    pytest.importorskip("transformers")
    tensors, settings = hugging_face_files(random_shards(1, PARAMS), PARAMS)
    stored = {name: array.astype(ml_dtypes.bfloat16) for name, array in tensors.items()}
    rounded = {name: array.astype(np.float32) for name, array in stored.items()}
    theirs = transformers_forward(rounded, settings, random_ids())
    np.testing.assert_array_equal(transformers_forward(stored, settings, random_ids()).logits, theirs.logits)
    del stored["model.layers.1.mlp.up_proj.weight"]
    with pytest.raises(RuntimeError, match=r"model\.layers\.1\.mlp\.up_proj\.weight"):
        transformers_forward(stored, settings, random_ids())


def test_a_missing_library_is_named_with_the_command_that_installs_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ImportError, match=r"and transformers: pip install .*\[torch\]"):
        transformers_forward({}, {}, random_ids())
