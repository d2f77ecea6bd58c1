"""A model for a larger tokenizer: what it knows about a token goes with the token's name, not with its number."""

from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
from flax import nnx

from lumina_jax.config import Experiment
from lumina_jax.errors import InputError
from lumina_jax.model.chameleon import Chameleon
from lumina_jax.sharding import make_mesh, shardings
from lumina_jax.train.checkpoint import Saver, flatten, unflatten
from lumina_jax.train.step import init_state
from lumina_jax.vocab import Vocab


def grown(model: Chameleon, old: Vocab, new: Vocab, rows: int, key: jax.Array) -> Chameleon:
    """``model``, which was trained with the tokenizer ``old``, with ``rows`` rows of vocabulary for the tokenizer ``new``.

    Tokens that both know by name keep their rows, and so their logits, to the last bit. The embeddings of the others are drawn
    from ``key`` with the spread of the known ones; their columns of the head are zero and prefer nothing.

    Raises ValueError when ``new`` lacks a token that ``model`` knows, or has ids beyond ``rows``.
    """
    new.check_fits(rows)
    names, places = old.names(model.cfg.vocab), new.names(rows)
    if lost := [name for name in names if name not in places]:
        raise InputError(
            f"{new.source} lacks {len(lost)} tokens that the model knows, {lost[0]!r} the first; "
            "make the new tokenizer from the codebook and the words of the old one"
        )
    cfg = replace(model.cfg, vocab=rows)
    shapes = jax.eval_shape(lambda: Chameleon(cfg, nnx.Rngs(0)))
    ids, at = (jnp.array([table[name] for name in names]) for table in (names, places))
    arrays = flatten(model)
    known, head = arrays["embedding"][ids], arrays["head"]
    drawn = jax.random.normal(key, (rows, cfg.width), known.dtype) * known.std()
    arrays["embedding"] = drawn.at[at].set(known)
    arrays["head"] = jnp.zeros((cfg.width, rows), head.dtype).at[:, at].set(head[:, ids])
    return unflatten(shapes, arrays)


def write_start(model: Chameleon, old: Vocab, new: Vocab, cfg: Experiment) -> Path:
    """Writes ``model`` grown for ``cfg`` and its tokenizer ``new`` into ``cfg.start``, from which training then begins.

    Raises ValueError when ``cfg`` names no such folder, or another shape of model than that of ``model``.
    """
    if not cfg.start:
        raise InputError(f"{cfg.name} has no start; name the folder for the grown weights with start=FOLDER")
    if (wanted := replace(cfg.model, vocab=model.cfg.vocab)) != model.cfg:
        raise InputError(f"the model to grow is {model.cfg}, but {cfg.name} is {wanted}; only the vocabulary can grow")
    mesh = make_mesh(cfg.mesh)
    weights = grown(model, old, new, cfg.model.vocab, jax.random.key(cfg.seed))
    state = init_state(cfg, mesh)
    state = state._replace(model=jax.device_put(weights, shardings(weights, mesh)))
    saver = Saver(replace(cfg, out=cfg.start, start=""))
    saver.save(0, state)
    saver.close()
    return Path(cfg.start)
