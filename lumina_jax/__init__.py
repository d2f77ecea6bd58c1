"""Lumina-mGPT in JAX and Flax, made for TPU pods.

One alphabet everywhere (docstrings ``bf16[B T D]``, einsum letters, sharding rules, conversion table)::

    B batch  T tokens in this call  S cache slots  D width  H query heads  N key/value heads  K head size
    G QK-norm groups  F MLP width  V vocabulary  L layers
    P prompt tokens  W tokens of a decoding pass  n any other number
    Y X pixels  R C latent rows and columns  Z latent channels  E codebook entries

The floors; a file imports only from lower ones, and inside a room no imports go in a circle (tests/test_floors.py)::

    F0  errors numbers config released vocab batch     F1  layout conversation sharding pictures/
        places storage progress faults extras
    F2  model/ cluster/                                F3  data/ train/ sample/
    F4  toyworld/ evaluate/ pods/                      F5  cli/ run.py configs/ convert/
    F6  face/

Two journeys. Image and text, disk to loss: data.sources -> layout.best_crop -> pictures.pixels.random_crop -> VQ encode ->
layout.encode_grid -> conversation.tokenize -> token shards (data.pretokenize) -> data.pipeline -> Batch -> train.step ->
model.chameleon -> train.loss -> train.optim. Prompt, text to PNG: sample.prompt -> sample.decode (prefill) -> sample.loop
(a while loop of passes: logits -> guidance -> layout.forced -> top-k -> draw; sample.drafters fills a pass with drafts) ->
sample.picture -> layout.decode_grid -> VQ decode -> PNG. lumina_jax/pixels.py is the former name of pictures/pixels.py.

The Python face, in lumina_jax/face/, which is imported when it is first asked for (importing lumina_jax imports nothing)::

    from lumina_jax import Chat, generate, load
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lumina_jax.face import Chat, generate, load

__version__ = "0.1.0"
__all__ = ["Chat", "generate", "load"]


def __getattr__(name: str) -> object:
    """The names of the face."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.face"), name)
