"""What the last token of a picture attends to (paper Figure 10): attention averaged over heads and layers, by kind of token."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from lumina_jax.errors import InputError
from lumina_jax.layout import column_of, line_tokens, shape_of
from lumina_jax.model.backend import DeviceJit
from lumina_jax.model.chameleon import Chameleon
from lumina_jax.model.parts import rotary
from lumina_jax.vocab import UNI_REP, ImageLayout, Vocab

KINDS = {
    "prompt": (66, 103, 178),
    "begin-image": (196, 43, 43),
    "size": (226, 135, 30),
    "image": (96, 96, 96),
    "end-of-line": (46, 139, 87),
}
"""The kinds of tokens in the sequence, by number, and the RGB colour of each in the drawing."""
SINK = 5.0
"""A token is an attention sink when its share is more than this many times the even share 1/T."""
CELL, GAP, BAR = 22, 24, 150
"""Pixels of the drawing: edge of a token's square, margin, height of the tallest bar."""


@dataclass(frozen=True)
class AttentionMap:
    """Attention of a picture's last image code over the T tokens up to and with itself.

    ``shares`` f32[T] add up to 1; ``kinds`` i32[T] are numbers of KINDS; ``grid`` is (rows, cols) of the picture's codes, which
    stand in the sequence as ``image_layout`` says.
    """

    shares: np.ndarray
    kinds: np.ndarray
    grid: tuple[int, int]
    image_layout: ImageLayout = UNI_REP

    @property
    def sinks(self) -> np.ndarray:
        """bool[T]: which tokens are sinks."""
        return self.shares > SINK / len(self.shares)

    def table(self) -> dict[str, float | dict[str, dict[str, float]]]:
        """By kind: number of tokens, share of the attention, mean share over the even share, number of sinks and their share."""
        rows = {}
        for number, name in enumerate(KINDS):
            of_kind = self.kinds == number
            shares = self.shares[of_kind]
            rows[name] = {
                "tokens": int(of_kind.sum()),
                "share": float(shares.sum()),
                "times_even": float(shares.mean() * len(self.shares)) if of_kind.any() else 0.0,
                "sinks": int(self.sinks[of_kind].sum()),
                "share_on_sinks": float(shares[self.sinks[of_kind]].sum()),
            }
        return {"kinds": rows, "tokens": len(self.shares), "share_on_sinks": float(self.shares[self.sinks].sum())}


@DeviceJit
def last_attention(model: Chameleon, ids: jax.Array) -> jax.Array:
    """Attention weights f32[L H T] of the last of the tokens ``ids`` i32[T] in each head of each layer; their sum over T is 1."""
    cfg = model.cfg
    layer_inputs = model.layers(ids[None])[:-1]
    angles = rotary(jnp.arange(len(ids))[None], cfg.head_dim, cfg.rope_base, layer_inputs.dtype)

    def layer_attention(_, layer):
        block, x = layer
        query, key, _ = block.attention.project(x if cfg.post_norm else block.attention_norm(x), angles)
        grouped = query[0, -1].reshape(cfg.kv_heads, -1, cfg.head_dim)
        scores = jnp.einsum("NhK,NSK->NhS", grouped, key[0], preferred_element_type=jnp.float32)
        return None, jax.nn.softmax(scores * cfg.head_dim**-0.5, axis=-1).reshape(cfg.heads, -1)

    return jax.lax.scan(layer_attention, None, (model.blocks, layer_inputs))[1]


def attention_map(model: Chameleon, prompt: np.ndarray, answer: np.ndarray, vocab: Vocab) -> AttentionMap:
    """The map of the last code of the first picture in the ``answer`` i32[n] to a ``prompt`` i32[P].

    The prompt may end with the begin-image token. Raises InputError when the answer holds no picture or an unfinished one.
    """
    tokens = np.concatenate([prompt, answer])
    begins = np.flatnonzero(tokens == vocab.boi)
    begins = begins[begins >= len(prompt) - 1]
    if not len(begins):
        raise InputError("the answer holds no picture to look at; ask for one")
    image_layout = vocab.image_layout
    rows, cols = shape_of(tokens[begins[0] :], vocab)
    body = begins[0] + 1 + image_layout.size_tokens
    last = body + rows * line_tokens(cols, image_layout) - image_layout.line_ends - 1
    if last >= len(tokens):
        raise InputError(f"the picture of {rows} x {cols} codes is not finished; allow more new tokens")
    kinds = np.zeros(last + 1, int)
    kinds[begins[0]], kinds[begins[0] + 1 : body] = 1, 2
    kinds[body:] = np.where(column_of(np.arange(last + 1 - body), cols, image_layout) == cols, 4, 3)
    shares = last_attention(model, jnp.asarray(tokens[: last + 1])).mean(axis=(0, 1))
    return AttentionMap(np.asarray(shares, np.float32), kinds, (rows, cols), image_layout)


def drawing(attention: AttentionMap, picture: Image.Image) -> Image.Image:
    """Three panels on white: the picture; a square for each of its codes and line ends; a bar for each token of the sequence.

    Shades and heights are logarithmic in the token's share, from a hundredth of the even share to the largest share.
    """
    rows, cols = attention.grid
    low = np.log(0.01 / len(attention.shares))
    heights = np.clip(
        (np.log(np.maximum(attention.shares, 1e-30)) - low) / max(np.log(attention.shares.max()) - low, 1e-9), 0, 1
    )
    side = (cols * CELL, rows * CELL)
    width = max(GAP * 3 + side[0] * 2 + CELL, GAP * 2 + len(heights) * 2, 640)
    sheet = Image.new("RGB", (width, GAP * 5 + side[1] + BAR), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default()
    sheet.paste(picture.resize(side, Image.Resampling.NEAREST), (GAP, GAP))
    body = int(np.flatnonzero(attention.kinds >= 3)[0])
    for index, kind in enumerate(attention.kinds[body:]):
        row, col = index // line_tokens(cols, attention.image_layout), column_of(index, cols, attention.image_layout)
        left, upper = GAP * 2 + side[0] + col * CELL, GAP + row * CELL
        colour = _shade(list(KINDS.values())[kind], heights[body + index])
        pen.rectangle((left, upper, left + CELL - 2, upper + CELL - 2), fill=colour)
    base, step = GAP * 3 + side[1] + BAR, max(1, min(12, (width - 2 * GAP) // len(heights)))
    for index, (kind, height) in enumerate(zip(attention.kinds, heights, strict=True)):
        left = GAP + index * step
        pen.rectangle((left, base - height * BAR, left + max(0, step - 2), base), fill=list(KINDS.values())[kind])
    left = GAP
    for name, row in attention.table()["kinds"].items():
        pen.rectangle((left, base + 8, left + 10, base + 18), fill=KINDS[name])
        label = f"{name} {100 * row['share']:.1f}%"
        pen.text((left + 14, base + 7), label, fill="black", font=font)
        left += 26 + 7 * len(label)
    return sheet


def _shade(colour: tuple[int, int, int], share: float) -> tuple[int, ...]:
    """From nearly white (0) to the colour itself (1)."""
    return tuple(round(255 - (255 - channel) * (0.06 + 0.94 * share)) for channel in colour)
