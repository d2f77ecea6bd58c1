"""A model with a grown vocabulary gives the old tokens the logits of the old model."""

from dataclasses import replace

import jax
import numpy as np
import pytest
from flax import nnx

from lumina_jax.config import Experiment, MeshConfig, ModelConfig, OptimConfig
from lumina_jax.data.word_tokenizer import TASK_TEMPLATES, build
from lumina_jax.model.chameleon import Chameleon
from lumina_jax.sharding import make_mesh
from lumina_jax.toyworld.words import world_words
from lumina_jax.train.grow_vocabulary import grow_vocabulary, write_start_checkpoint
from lumina_jax.train.loop import initial_state
from lumina_jax.vocab import Vocab

OLD = Vocab(build(20, words=world_words()), "the old tokenizer")
NEW = Vocab(build(33, ["a walrus waits"], templates=TASK_TEMPLATES, words=world_words()), "the new tokenizer")
TINY = ModelConfig(vocab=len(OLD) - 1, width=16, layers=1, heads=2, kv_heads=2, head_dim=8, mlp=24, dropout=0.0)
ROWS = len(NEW) - 1


@pytest.fixture(scope="module")
def model():
    return Chameleon(TINY, nnx.Rngs(3))


def test_old_tokens_keep_their_logits_bit_for_bit(model):
    grown = grow_vocabulary(model, OLD, NEW, ROWS, jax.random.key(0))
    names = list(OLD.names(TINY.vocab))
    before, after = (np.array([vocab.id_of(name) for name in names]) for vocab in (OLD, NEW))
    assert (before != after).any(), "no id has changed, so nothing is tested"
    indices = np.random.default_rng(0).integers(0, len(names), (2, 12))
    old, new = (m.logits(m(ids[indices])) for m, ids in ((model, before), (grown, after)))
    assert (np.asarray(old)[..., before] == np.asarray(new)[..., after]).all()
    others = np.setdiff1d(np.arange(ROWS), after)
    assert len(others) >= 13 and (np.asarray(new)[..., others] == 0).all()
    spread = np.asarray(grown.embedding[...])[others].std() / np.asarray(model.embedding[...]).std()
    assert 0.8 < spread < 1.25


def test_a_missing_token_and_a_size_too_small_are_refused(model):
    with pytest.raises(ValueError, match=r"old tokenizer lacks \d+ tokens .* 'IMGIMGCAZ' the first"):
        grow_vocabulary(Chameleon(replace(TINY, vocab=ROWS), nnx.Rngs(0)), NEW, OLD, len(OLD), jax.random.key(0))
    with pytest.raises(ValueError, match=f"set model.vocab={ROWS}"):
        grow_vocabulary(model, OLD, NEW, ROWS - 1, jax.random.key(0))


def test_training_starts_from_the_grown_weights(model, tmp_path):
    cfg = Experiment(
        start=str(tmp_path / "start"),
        model=replace(TINY, vocab=ROWS),
        optim=OptimConfig(steps=5),
        mesh=MeshConfig(replica=4, fsdp=2),
    )
    assert write_start_checkpoint(model, OLD, NEW, cfg).is_dir()
    started = initial_state(replace(cfg, optim=OptimConfig(steps=7)), make_mesh(cfg.mesh)).model
    expected = grow_vocabulary(model, OLD, NEW, ROWS, jax.random.key(cfg.seed))
    same = jax.tree.map(lambda a, b: bool((np.asarray(a) == np.asarray(b)).all()), started, expected)
    assert all(jax.tree.leaves(same))


def test_a_change_of_anything_but_the_vocabulary_is_refused(model, tmp_path):
    wide = Experiment(start=str(tmp_path), model=replace(TINY, vocab=ROWS, width=32))
    with pytest.raises(ValueError, match="only the vocabulary can grow"):
        write_start_checkpoint(model, OLD, NEW, wide)
    with pytest.raises(ValueError, match="has no start"):
        write_start_checkpoint(model, OLD, NEW, Experiment(model=replace(TINY, vocab=ROWS)))
