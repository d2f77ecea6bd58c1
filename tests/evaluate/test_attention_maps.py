"""Where a picture's last token looks: the shares are transformers', and every token is of its kind."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from PIL import Image

from convert.chameleon import save_model
from lumina_jax.config import ModelConfig
from lumina_jax.conversation import image_prompt, tokenize
from lumina_jax.evaluate.attention import KINDS, AttentionMap, attention_map, drawing, last_attention
from lumina_jax.layout import encode_grid
from lumina_jax.model.chameleon import Chameleon
from lumina_jax.vocab import Vocab

TOY = "assets/toy"


def small(**changes) -> ModelConfig:
    sizes = dict(vocab=61, width=32, layers=3, heads=4, kv_heads=2, head_dim=8, mlp=48, qk_groups=2, dropout=0.0)
    return ModelConfig(**{**sizes, **changes})


@pytest.mark.parametrize("post_norm", [False, True])
def test_shares_are_those_of_transformers(post_norm, tmp_path):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    cfg = small(post_norm=post_norm)
    model = Chameleon(cfg, nnx.Rngs(0))
    model = jax.tree.map(lambda w: w + 0.1 * jax.random.normal(jax.random.key(w.size), w.shape), model)
    save_model(model, cfg, tmp_path)
    theirs = transformers.ChameleonModel.from_pretrained(tmp_path, attn_implementation="eager").eval()
    ids = np.random.default_rng(1).integers(0, cfg.vocab, 17)
    with torch.no_grad():
        shares = theirs(input_ids=torch.tensor(ids[None]), output_attentions=True).attentions
    truth = np.stack([layer[0, :, -1].numpy() for layer in shares])
    np.testing.assert_allclose(last_attention(model, jnp.asarray(ids)), truth, atol=1e-5)


@pytest.fixture(scope="module")
def world(request):
    vocab = Vocab.load(request.config.rootpath / TOY)
    return vocab, Chameleon(small(vocab=1 + int(vocab.code_ids.max()) + 600), nnx.Rngs(1))


def test_every_token_is_of_its_kind(world):
    vocab, model = world
    prompt, _ = tokenize([(image_prompt(64, 96, "a red circle"), None)], [], vocab)
    answer = np.append(encode_grid(np.zeros((6, 4), int), vocab), vocab.end_of_turn)
    attention = attention_map(model, prompt, answer, vocab)
    kinds = [list(KINDS)[kind] for kind in attention.kinds]
    line = ["image"] * 4 + ["end-of-line"]
    assert kinds == ["prompt"] * len(prompt) + ["begin-image", "size", "size"] + line * 5 + ["image"] * 4
    assert attention.shares.sum() == pytest.approx(1, abs=1e-5) and attention.grid == (6, 4)
    begun = attention_map(model, np.append(prompt, vocab.boi), answer[1:], vocab)
    np.testing.assert_array_equal(begun.shares, attention.shares)
    for wrong, message in ((answer[:0], "holds no picture"), (answer[:9], "6 x 4 codes is not finished")):
        with pytest.raises(ValueError, match=message):
            attention_map(model, prompt, wrong, vocab)


def test_sinks_draw_far_more_than_their_share():
    shares = np.full(40, 0.5 / 39, np.float32)
    shares[7] = 0.5
    kinds = np.repeat([0, 1, 2, 3, 4, 3], [7, 1, 2, 20, 1, 9])
    table = AttentionMap(shares, kinds, (2, 20)).table()
    assert table["share_on_sinks"] == pytest.approx(0.5) and table["tokens"] == 40
    assert table["kinds"]["begin-image"] == pytest.approx(
        dict(tokens=1, share=0.5, times_even=20.0, sinks=1, share_on_sinks=0.5)
    )
    assert sum(row["share"] for row in table["kinds"].values()) == pytest.approx(1)
    assert {name: row["sinks"] for name, row in table["kinds"].items() if row["sinks"]} == {"begin-image": 1}


def test_the_drawing_is_darkest_where_most_is_looked_at():
    kinds = np.array([0, 1, 2, 2, *[3, 3, 4] * 2][:-1])
    shares = np.full(len(kinds), 0.01, np.float32)
    shares[4] = 1 - shares[1:].sum()
    image = drawing(AttentionMap(shares, kinds, (2, 2)), Image.new("RGB", (32, 32), "red"))
    dark = np.asarray(image.convert("L"), int)
    cells = dark[26:70, 24 * 2 + 44 :][:40:22, : 3 * 22 : 22][:, :2]
    assert cells[0, 0] == cells.min() and (cells[0, 0] < cells[1]).all()
