"""Grows a model's vocabulary for a larger tokenizer: rows of embedding and head move with a token's name, not with its id."""

from dataclasses import replace

import jax
import jax.numpy as jnp
from flax import nnx

from lumina_jax.config import Experiment
from lumina_jax.errors import InputError
from lumina_jax.model.chameleon import Chameleon
from lumina_jax.places import Place, place
from lumina_jax.sharding import make_mesh, shardings
from lumina_jax.train.checkpoint import Saver, flatten, unflatten
from lumina_jax.train.step import init_state
from lumina_jax.vocab import Vocab


def grow_vocabulary(model: Chameleon, old: Vocab, new: Vocab, size: int, key: jax.Array) -> Chameleon:
    """``model``, which was trained with the tokenizer ``old``, with ``size`` tokens for the tokenizer ``new``.

    Tokens in both keep their embedding and head column, and so their logits, bit for bit. The embeddings of new tokens are drawn
    from ``key`` with the standard deviation of the old ones; their head columns are zero, so that none is preferred.

    Raises InputError when ``new`` lacks a token of ``old``, or has ids of ``size`` and above.
    """
    new.check_fits(size)
    old_ids, new_ids = old.names(model.cfg.vocab), new.names(size)
    if missing := [name for name in old_ids if name not in new_ids]:
        raise InputError(
            f"{new.source} lacks {len(missing)} tokens that the model knows, {missing[0]!r} the first; "
            "make the new tokenizer from the codebook and the words of the old one"
        )
    cfg = replace(model.cfg, vocab=size)
    shapes = jax.eval_shape(lambda: Chameleon(cfg, nnx.Rngs(0)))
    source, target = (jnp.array([ids[name] for name in old_ids]) for ids in (old_ids, new_ids))
    arrays = flatten(model)
    embedding, head = arrays["embedding"][source], arrays["head"][:, source]
    random_rows = jax.random.normal(key, (size, cfg.width), embedding.dtype) * embedding.std()
    arrays["embedding"] = random_rows.at[target].set(embedding)
    arrays["head"] = jnp.zeros((cfg.width, size), head.dtype).at[:, target].set(head)
    return unflatten(shapes, arrays)


def write_start_checkpoint(model: Chameleon, old: Vocab, new: Vocab, cfg: Experiment) -> Place:
    """Writes ``model``, grown for ``cfg`` and its tokenizer ``new``, as a checkpoint into ``cfg.start``, where ``cfg`` starts from.

    Returns that folder. Raises InputError when ``cfg.start`` is empty, or ``cfg.model`` and ``model`` differ in more than vocab.
    """
    if not cfg.start:
        raise InputError(f"{cfg.name} has no start; name the folder for the grown weights with start=FOLDER")
    if (expected := replace(cfg.model, vocab=model.cfg.vocab)) != model.cfg:
        raise InputError(f"the model is {model.cfg}, but {cfg.name} is {expected}; only the vocabulary can grow")
    mesh = make_mesh(cfg.mesh)
    weights = grow_vocabulary(model, old, new, cfg.model.vocab, jax.random.key(cfg.seed))
    state = init_state(cfg, mesh)
    state = state._replace(model=jax.device_put(weights, shardings(weights, mesh)))
    saver = Saver(replace(cfg, out=cfg.start, start=""))
    saver.save(0, state)
    saver.close()
    return place(cfg.start)
