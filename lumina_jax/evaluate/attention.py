"""Where the last token of a picture looks (paper Figure 10): attention averaged over heads and layers, by kind of token."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from lumina_jax.errors import InputError
from lumina_jax.layout import column_of, grid_shape, line_tokens
from lumina_jax.model.chameleon import Chameleon
from lumina_jax.model.parts import rotary
from lumina_jax.vocab import Vocab

KINDS = {
    "prompt": (66, 103, 178),
    "begin-image": (196, 43, 43),
    "size": (226, 135, 30),
    "image": (96, 96, 96),
    "end-of-line": (46, 139, 87),
}
"""The kinds of token before the last one, and their colours."""
SINK = 5.0
"""A token is a sink when it draws so many times the attention it would get if all were alike."""
CELL, GAP, BAR = 22, 24, 150


@dataclass(frozen=True)
class Looks:
    """Attention of a picture's last code: ``shares`` f32[T] over the sequence up to itself, and each token's kind, i32[T]."""

    shares: np.ndarray
    kinds: np.ndarray
    grid: tuple[int, int]

    @property
    def sinks(self) -> np.ndarray:
        """bool[T]: the tokens that draw far more than their share."""
        return self.shares > SINK / len(self.shares)

    def table(self) -> dict[str, float | dict[str, dict[str, float]]]:
        """Of each kind the tokens, their share of all attention, how many are sinks, and the share of those."""
        rows = {}
        for number, name in enumerate(KINDS):
            mine = self.kinds == number
            taken = self.shares[mine]
            rows[name] = {
                "tokens": int(mine.sum()),
                "share": float(taken.sum()),
                "times_even": float(taken.mean() * len(self.shares)) if mine.any() else 0.0,
                "sinks": int(self.sinks[mine].sum()),
                "share_on_sinks": float(taken[self.sinks[mine]].sum()),
            }
        return {"kinds": rows, "tokens": len(self.shares), "share_on_sinks": float(self.shares[self.sinks].sum())}


@jax.jit
def last_attention(model: Chameleon, ids: jax.Array) -> jax.Array:
    """Shares f32[L H T] that each head of each layer gives the tokens i32[T] when the last of them is computed."""
    cfg = model.cfg
    given = model.layers(ids[None])[:-1]
    angles = rotary(jnp.arange(len(ids))[None], cfg.head_dim, cfg.rope_base, given.dtype)

    def one(_, layer):
        block, x = layer
        query, key, _ = block.attention.project(x if cfg.post_norm else block.attention_norm(x), angles)
        grouped = query[0, -1].reshape(cfg.kv_heads, -1, cfg.head_dim)
        scores = jnp.einsum("NhK,NSK->NhS", grouped, key[0], preferred_element_type=jnp.float32)
        return None, jax.nn.softmax(scores * cfg.head_dim**-0.5, axis=-1).reshape(cfg.heads, -1)

    return jax.lax.scan(one, None, (model.blocks, given))[1]


def looks(model: Chameleon, prompt: np.ndarray, answer: np.ndarray, vocab: Vocab) -> Looks:
    """Of the first picture in the ``answer`` i32[n] to a ``prompt`` i32[P], seen from its last code.

    Raises ValueError when there is none, or it is not whole.
    """
    tokens = np.concatenate([prompt, answer])
    begins = np.flatnonzero(tokens == vocab.boi)
    begins = begins[begins >= len(prompt) - 1]
    if not len(begins):
        raise InputError("the answer holds no picture to look at; ask for one")
    rows, cols = grid_shape(*tokens[begins[0] + 1 : begins[0] + 3], vocab)
    body = begins[0] + 3
    last = body + rows * (cols + 1) - 2
    if last >= len(tokens):
        raise InputError(f"the picture of {rows} x {cols} codes is not finished; allow more new tokens")
    kinds = np.zeros(last + 1, int)
    kinds[begins[0]], kinds[begins[0] + 1 : body] = 1, 2
    kinds[body:] = np.where(column_of(np.arange(last + 1 - body), cols) == cols, 4, 3)
    shares = last_attention(model, jnp.asarray(tokens[: last + 1])).mean(axis=(0, 1))
    return Looks(np.asarray(shares, np.float32), kinds, (rows, cols))


def drawing(found: Looks, picture: Image.Image) -> Image.Image:
    """Three panels on white: the picture; its codes and line ends shaded by the attention they draw; all tokens in order.

    Shades and bars are logarithmic, from a hundredth of an even share to the most that one token draws.
    """
    rows, cols = found.grid
    low = np.log(0.01 / len(found.shares))
    height = np.clip(
        (np.log(np.maximum(found.shares, 1e-30)) - low) / max(np.log(found.shares.max()) - low, 1e-9), 0, 1
    )
    side = (cols * CELL, rows * CELL)
    width = max(GAP * 3 + side[0] * 2 + CELL, GAP * 2 + len(height) * 2, 640)
    sheet = Image.new("RGB", (width, GAP * 5 + side[1] + BAR), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default()
    sheet.paste(picture.resize(side, Image.Resampling.NEAREST), (GAP, GAP))
    body = int(np.flatnonzero(found.kinds >= 3)[0])
    for index, kind in enumerate(found.kinds[body:]):
        row, col = index // line_tokens(cols), column_of(index, cols)
        left, upper = GAP * 2 + side[0] + col * CELL, GAP + row * CELL
        colour = _shade(list(KINDS.values())[kind], height[body + index])
        pen.rectangle((left, upper, left + CELL - 2, upper + CELL - 2), fill=colour)
    base, step = GAP * 3 + side[1] + BAR, max(1, min(12, (width - 2 * GAP) // len(height)))
    for index, (kind, tall) in enumerate(zip(found.kinds, height, strict=True)):
        left = GAP + index * step
        pen.rectangle((left, base - tall * BAR, left + max(0, step - 2), base), fill=list(KINDS.values())[kind])
    left = GAP
    for name, row in found.table()["kinds"].items():
        pen.rectangle((left, base + 8, left + 10, base + 18), fill=KINDS[name])
        words = f"{name} {100 * row['share']:.1f}%"
        pen.text((left + 14, base + 7), words, fill="black", font=font)
        left += 26 + 7 * len(words)
    return sheet


def _shade(colour: tuple[int, int, int], share: float) -> tuple[int, ...]:
    """From nearly white to the colour itself."""
    return tuple(round(255 - (255 - part) * (0.06 + 0.94 * share)) for part in colour)
