"""Two checkpoints are the same model, or the comparison names the layers and weights that differ."""

import itertools
import json
import shutil
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx
from goldens_at import golden_roots
from safetensors.numpy import load_file, save_file

import run
from convert import forward, save_model
from convert import verify as module
from convert.convert import Target, convert
from convert.verify import Comparison, verify
from lumina_jax.config import ModelConfig
from lumina_jax.errors import InputError
from lumina_jax.extras import install
from lumina_jax.model.chameleon import Chameleon

CFG = ModelConfig(
    vocab=48, width=32, layers=3, heads=8, kv_heads=4, head_dim=4, mlp=40, qk_groups=2, rope_base=5e4, eps=3e-5
)
copied = forward._copy
UP = "model.layers.1.mlp.up_proj.weight"
QUERY = "model.layers.1.self_attn.q_proj.weight"
PARTS = ["embeddings", "layer 0", "layer 1", "layer 2", "logits"]


def random_model(cfg: ModelConfig) -> Chameleon:
    """A model of random numbers."""
    leaves, tree = jax.tree.flatten(jax.eval_shape(lambda: Chameleon(cfg, nnx.Rngs(0))))
    rng = np.random.default_rng(0)
    return jax.tree.unflatten(tree, [0.2 * rng.standard_normal(leaf.shape, np.float32) for leaf in leaves])


def rewrite(source: Path, target: Path, change) -> Path:
    """A copy of a Hugging Face folder, as one file, whose tensors went through ``change`` (dict -> None)."""
    target.mkdir()
    tensors = {name: array for file in source.glob("*.safetensors") for name, array in load_file(file).items()}
    change(tensors)
    save_file(tensors, target / "model.safetensors")
    shutil.copy(source / "config.json", target)
    return target


def change_one(tensors: dict[str, np.ndarray]) -> None:
    tensors[UP][3, 4] += 0.5


def swap_heads(tensors: dict[str, np.ndarray]) -> None:
    tensors[QUERY] = np.ascontiguousarray(tensors[QUERY].reshape(8, 4, 32)[[1, 0, *range(2, 8)]].reshape(32, 32))


def differing(comparison: Comparison) -> dict[str, str]:
    """Part -> remark, for the parts that differ by more than is allowed."""
    return {part.part: part.remark for part in comparison.parts if not part.same}


@pytest.fixture(scope="module")
def lumina(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "lumina"
    save_model(random_model(CFG), CFG, folder, "lumina")
    return folder


@pytest.fixture(scope="module")
def ours(lumina) -> Path:
    convert(lumina, lumina.with_name("ours"), Target("ours"), show=False)
    return lumina.with_name("ours")


@pytest.fixture(scope="module", params=["30b", "7b"])
def by_layout(request, tmp_path_factory) -> dict[str, Path]:
    """One model in every layout."""
    pytest.importorskip("torch")
    from checkpoints import Sizes, write_meta

    small = dict(vocab=48, width=32, mlp=96)
    sizes = Sizes(heads=4, kv_heads=4, shards=1, **small) if request.param == "7b" else Sizes(swin=True, **small)
    root = tmp_path_factory.mktemp("layouts")
    folders = {"meta": write_meta(root / "meta", sizes)}
    for layout in ("hf", "lumina", "ours"):
        folders[layout] = root / layout
        convert(folders["meta"], root / layout, Target(layout), show=False)
    return folders


@pytest.mark.parametrize("pair", [("meta", "ours"), ("hf", "ours"), ("lumina", "meta")], ids="-".join)
def test_every_layout_gives_the_same_logits(by_layout, pair):
    pytest.importorskip("transformers")
    comparison = verify(*(by_layout[layout] for layout in pair), by="logits", tokens=9)
    assert comparison.same, comparison.text()
    assert [part.part for part in comparison.parts] == ["embeddings", "layer 0", "layer 1", "logits"]
    assert comparison.parts[0].difference == 0
    assert all(part.difference < 1e-4 < float(part.remark) for part in comparison.parts)


def test_every_layout_holds_the_same_weights(by_layout):
    for a, b in itertools.combinations(by_layout.values(), 2):
        comparison = verify(a, b, by="weights", show=False)
        assert comparison.same, comparison.text()
        assert [part.part for part in comparison.parts] == ["embedding", "layer 0", "layer 1", "norm/scale", "head"]
        assert {part.difference for part in comparison.parts} == {0.0}


@pytest.mark.smoke
@pytest.mark.parametrize(("change", "weight"), [(change_one, "mlp/up"), (swap_heads, "attention/wq")])
def test_what_differs_is_named(lumina, ours, change, weight, tmp_path):
    changed = rewrite(lumina, tmp_path / "changed", change)
    comparison = verify(changed, ours, by="weights", show=False)
    assert not comparison.same
    assert differing(comparison) == {"layer 1": weight}
    convert(changed, tmp_path / "ours", Target("ours"), show=False)
    comparison = verify(tmp_path / "ours", ours, by="logits", tokens=9)
    assert not comparison.same
    assert list(differing(comparison)) == PARTS[2:]
    assert [part.difference for part in comparison.parts[:2]] == [0, 0]
    assert "first in layer 1" in comparison.text()
    assert comparison.text().endswith("NOT the same model")


def test_transformers_shows_the_same_difference(lumina, ours, tmp_path):
    pytest.importorskip("transformers")
    changed = rewrite(lumina, tmp_path / "changed", swap_heads)
    assert list(differing(verify(changed, ours, by="logits", tokens=9))) == PARTS[2:]


def misread(source, row, layer):
    """One layer of ``row`` as lumina_jax would read it with two heads of layer 1's queries exchanged."""
    array = copied(source, row, layer)
    return array[:, [1, 0, *range(2, 8)]] if (row.path, layer) == ("blocks/attention/wq", 1) else array


@pytest.mark.parametrize("layout", ["hf", "lumina", "meta"])
def test_a_checkpoint_alone_is_compared_with_what_lumina_jax_makes_of_it(by_layout, layout):
    pytest.importorskip("transformers")
    comparison = verify(by_layout[layout], tokens=9, show=False)
    assert comparison.same, comparison.text()
    assert [part.part for part in comparison.parts] == ["embeddings", "layer 0", "layer 1", "logits"]
    assert comparison.sides[1].endswith("read and run by lumina_jax")


def test_a_layer_that_is_misread_is_located(lumina, monkeypatch):
    pytest.importorskip("transformers")
    assert verify(lumina, tokens=9, show=False).same
    monkeypatch.setattr(forward, "_copy", misread)
    comparison = verify(lumina, tokens=9, show=False)
    assert list(differing(comparison)) == PARTS[2:]
    assert "first in layer 1" in comparison.text()


def test_a_checkpoint_alone_needs_another_implementation(lumina, ours):
    for arguments in (dict(a=ours), dict(a=lumina, by="weights")):
        with pytest.raises(InputError, match="give a second checkpoint"):
            verify(**arguments, show=False)


def test_the_seed_determines_the_prompts(ours):
    remarks = [
        [part.remark for part in verify(ours, ours, by="logits", tokens=5, seed=seed).parts] for seed in (0, 0, 1)
    ]
    assert remarks[0] == remarks[1] != remarks[2]


def test_repeated_qk_norm_rows_are_the_same_rows(lumina, tmp_path):
    def repeat(tensors):
        for name in tensors:
            if "_norm." in name:
                tensors[name] = np.repeat(tensors[name], 2, axis=0)

    finer = rewrite(lumina, tmp_path / "finer", repeat)
    settings = json.loads((finer / "config.json").read_text()) | {"model_parallel_size": 4}
    (finer / "config.json").write_text(json.dumps(settings))
    assert verify(lumina, finer, by="weights", show=False).same
    other = rewrite(finer, tmp_path / "other", lambda t: t["model.layers.2.self_attn.k_norm.bias"].__setitem__(3, 7))
    assert differing(verify(lumina, other, by="weights", show=False)) == {"layer 2": "attention/k_norm/bias"}


def test_models_of_other_sizes_are_compared_by_their_fields(lumina, tmp_path):
    def shrink(tensors):
        for name in [name for name in tensors if ".2." in name]:
            del tensors[name]
        for name in ("lm_head.weight", "model.embed_tokens.weight"):
            tensors[name] = tensors[name][:40]

    other = rewrite(lumina, tmp_path / "other", shrink)
    settings = json.loads((other / "config.json").read_text())
    settings |= dict(vocab_size=40, num_hidden_layers=2, rms_norm_eps=1e-5, dropout=0.3)
    (other / "config.json").write_text(json.dumps(settings))
    comparison = verify(lumina, other)
    assert {problem.split()[0] for problem in comparison.problems} == {"model.vocab", "model.layers", "model.eps"}
    assert "model.vocab is 48 in A and 40 in B" in comparison.text()
    assert not comparison.same


def test_a_tolerance_allows_rounding(lumina, tmp_path):
    convert(lumina, tmp_path / "rounded", Target("ours", dtype="bfloat16"), show=False)
    assert not verify(lumina, tmp_path / "rounded", by="weights", show=False).same
    assert verify(lumina, tmp_path / "rounded", by="weights", tolerance=0.01, show=False).same


def test_nan_is_a_difference_unless_both_are_nan(lumina, tmp_path):
    broken = rewrite(lumina, tmp_path / "broken", lambda tensors: tensors[UP].__setitem__((0, 0), np.nan))
    assert differing(verify(lumina, broken, by="weights", show=False)) == {"layer 1": "mlp/up"}
    assert verify(broken, broken, by="weights", show=False).same


def test_vq_encoders_are_compared_if_both_checkpoints_have_one(tmp_path):
    carried = next((golden_roots("lm")[0] / "lm").glob("*/ckpt_lumina"))
    codebook = "model.vqmodel.quantize.embedding.weight"

    def drop(tensors):
        for name in [name for name in tensors if "vqmodel" in name]:
            del tensors[name]

    without = rewrite(carried, tmp_path / "without", drop)
    comparison = verify(carried, without, by="weights", show=False)
    assert comparison.same
    assert any("only A carries a VQ encoder" in note for note in comparison.notes)
    other = rewrite(carried, tmp_path / "other", lambda tensors: tensors[codebook].__iadd__(1))
    comparison = verify(carried, other, by="weights", show=False)
    assert differing(comparison) == {"VQ encoder": "quantize.embedding.weight"}


def test_auto_compares_logits_where_a_layer_fits(lumina, ours, monkeypatch):
    monkeypatch.setattr(module, "free_memory", lambda: 10**9)
    assert verify(ours, ours, tokens=3).method.startswith("by logits")
    monkeypatch.setattr(module, "free_memory", lambda: 10**4)
    comparison = verify(ours, ours, show=False)
    assert comparison.same
    assert comparison.method.startswith("by weights")
    assert "10.0 kB are free" in comparison.method
    monkeypatch.setattr(module, "free_memory", lambda: 10**9)
    monkeypatch.setitem(sys.modules, "transformers", None)
    assert f"transformers: {install('torch')}" in verify(lumina, ours, show=False).method


def rename(tokenizer: dict) -> None:
    vocab = tokenizer["model"]["vocab"]
    vocab["<empty>"] = vocab.pop("<reserved08801>")
    for token in tokenizer["added_tokens"]:
        token["content"] = token["content"].replace("<reserved08801>", "<empty>")


def forget_a_merge(tokenizer: dict) -> None:
    del tokenizer["model"]["merges"][0]


@pytest.mark.parametrize(("change", "same", "words"), [(rename, True, "<empty>"), (forget_a_merge, False, "other ids")])
def test_tokenizers_must_give_texts_the_same_ids(lumina, tokenizer_path, change, same, words, tmp_path):
    folders = [Path(shutil.copytree(lumina, tmp_path / name)) for name in ("as_it_is", "changed")]
    text = (tokenizer_path / "tokenizer.json").read_text()
    for folder in folders:
        (folder / "tokenizer.json").write_text(text)
    assert "the tokenizers are the same" in verify(*folders, by="weights", show=False).notes
    tokenizer = json.loads(text)
    change(tokenizer)
    (folders[1] / "tokenizer.json").write_text(json.dumps(tokenizer))
    comparison = verify(*folders, by="weights", show=False)
    assert comparison.same == same, comparison.text()
    assert words in comparison.text()
    assert not differing(comparison)


@pytest.mark.smoke
def test_the_exit_code_says_whether_the_models_are_the_same(lumina, ours, tmp_path, capsys):
    changed = rewrite(lumina, tmp_path / "changed", change_one)
    command = ["convert", "verify", "--by", "weights"]
    assert run.main([*command, str(lumina), str(ours)]) == 0
    assert capsys.readouterr().out.endswith("the same model\n")
    assert run.main([*command, str(changed), str(ours)]) == 1
    assert run.main([*command, str(tmp_path / "nowhere"), str(ours)]) == 2
    assert "is no checkpoint" in capsys.readouterr().err
    for wrong in (["--tokens", "0"], ["--seed", "-1"]):
        with pytest.raises(SystemExit, match="2"):
            run.main(["convert", "verify", str(ours), str(ours), *wrong])
