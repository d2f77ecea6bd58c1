"""Chameleon's image tokenizer: pixels -> codes -> pixels, for any size that is a multiple of the stride.

Sources: VQModel, Encoder, Decoder and VectorQuantizer2 (taming-transformers, as Chameleon ships them). Lumina-mGPT does not
train it, so there is no loss here. All arithmetic is float32 at the highest precision: a TPU multiplies in bfloat16 by default,
which would change codes at near ties.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from lumina_jax.config import VQConfig
from lumina_jax.errors import InputError
from lumina_jax.model.params import ones, weight, zeros

GROUPS = 32
EPS = 1e-6
PRECISION = jax.lax.Precision.HIGHEST
DECODER_PARTS = ("decoder", "post_quant_conv")


def check_pixels(pixels: jax.Array, stride: int) -> None:
    """Raises InputError unless ``pixels`` is a float [B Y X 3] whose Y and X are multiples of ``stride``."""
    if pixels.ndim != 4 or pixels.shape[-1] != 3:
        raise InputError(f"pixels have shape {tuple(pixels.shape)}; expected [B Y X 3], RGB pictures of one size")
    if not jnp.issubdtype(pixels.dtype, jnp.floating):
        raise InputError(f"pixels are {pixels.dtype}; expected floats in [-1, 1] (pixels.to_pixels makes them)")
    check_size(pixels.shape[1:3], stride)


def check_size(size: tuple[int, int], stride: int) -> None:
    """Raises InputError unless both Y and X of ``size`` are positive multiples of ``stride``."""
    if any(edge < 1 or edge % stride for edge in size):
        edges = f"{size[1]}x{size[0]} pixels (width x height)"
        raise InputError(f"a picture is {edges}; the tokenizer needs multiples of its stride {stride}: crop or resize")


class Conv(nnx.Module):
    """A convolution of NHWC pictures with a square kernel."""

    def __init__(self, rngs: nnx.Rngs, edge: int, inputs: int, outputs: int):
        self.kernel = weight(rngs, fan_in="hwi", h=edge, w=edge, i=inputs, o=outputs)
        self.bias = zeros(o=outputs)

    def __call__(self, x: jax.Array, stride: int = 1, pads: tuple[int, int] | None = None) -> jax.Array:
        """f32[B Y X i] -> f32[B Y/stride X/stride o]; ``pads`` (before, after) along Y and X, by default such that Y and X stay."""
        kernel = self.kernel[...]
        before, after = pads or (kernel.shape[0] // 2,) * 2
        x = jax.lax.conv_general_dilated(
            x,
            kernel,
            window_strides=(stride, stride),
            padding=((before, after), (before, after)),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            precision=PRECISION,
        )
        return x + self.bias[...]


class GroupNorm(nnx.Module):
    """Normalises to zero mean and unit variance over all pixels and the channels of each of 32 groups; then scale and bias."""

    def __init__(self, channels: int):
        self.scale = ones(c=channels)
        self.bias = zeros(c=channels)

    def __call__(self, x: jax.Array) -> jax.Array:
        """f32[B Y X c] -> the same shape."""
        x = x - _group_mean(x)
        x = x * jax.lax.rsqrt(_group_mean(jnp.square(x)) + EPS)
        return x * self.scale[...] + self.bias[...]


def _group_mean(x: jax.Array) -> jax.Array:
    """f32[B Y X c] -> f32[B 1 1 c], for each channel the mean of its group."""
    means = x.mean((1, 2)).reshape(x.shape[0], GROUPS, -1).mean(-1)
    return jnp.repeat(means, x.shape[-1] // GROUPS, axis=-1)[:, None, None]


class ResBlock(nnx.Module):
    """Two normalised convolutions, added to a shortcut: the input, through a 1x1 convolution where the width changes."""

    def __init__(self, rngs: nnx.Rngs, inputs: int, outputs: int):
        self.norm1 = GroupNorm(inputs)
        self.conv1 = Conv(rngs, 3, inputs, outputs)
        self.norm2 = GroupNorm(outputs)
        self.conv2 = Conv(rngs, 3, outputs, outputs)
        self.shortcut = Conv(rngs, 1, inputs, outputs) if inputs != outputs else None

    def __call__(self, x: jax.Array) -> jax.Array:
        """f32[B Y X inputs] -> f32[B Y X outputs]."""
        h = self.conv1(jax.nn.silu(self.norm1(x)))
        h = self.conv2(jax.nn.silu(self.norm2(h)))
        return h + (x if self.shortcut is None else self.shortcut(x))


class SpatialAttention(nnx.Module):
    """Single-head attention over all positions of a picture, added to its input."""

    def __init__(self, rngs: nnx.Rngs, channels: int):
        self.norm = GroupNorm(channels)
        self.q = Conv(rngs, 1, channels, channels)
        self.k = Conv(rngs, 1, channels, channels)
        self.v = Conv(rngs, 1, channels, channels)
        self.out = Conv(rngs, 1, channels, channels)

    def __call__(self, x: jax.Array) -> jax.Array:
        """f32[B Y X c] -> the same shape."""
        rows = (x.shape[0], x.shape[1] * x.shape[2], x.shape[3])
        normed = self.norm(x)
        q, k, v = (conv(normed).reshape(rows) for conv in (self.q, self.k, self.v))
        scores = jnp.einsum("Btc,Bsc->Bts", q, k, precision=PRECISION) * rows[-1] ** -0.5
        mixed = jnp.einsum("Bts,Bsc->Btc", jax.nn.softmax(scores, axis=-1), v, precision=PRECISION)
        return x + self.out(mixed.reshape(x.shape))


class Level(nnx.Module):
    """The residual blocks of one resolution, each followed by attention where ``attends``.

    ``resample`` is the convolution to the next level, None at the last; Encoder or Decoder applies it.
    """

    def __init__(self, rngs: nnx.Rngs, widths: tuple[int, int], blocks: int, attends: bool, resamples: bool):
        inputs, outputs = widths
        self.blocks = nnx.List([ResBlock(rngs, outputs if i else inputs, outputs) for i in range(blocks)])
        self.attentions = nnx.List([SpatialAttention(rngs, outputs) for _ in range(blocks if attends else 0)])
        self.resample = Conv(rngs, 3, outputs, outputs) if resamples else None

    def __call__(self, x: jax.Array) -> jax.Array:
        """f32[B Y X inputs] -> f32[B Y X outputs]."""
        for i, block in enumerate(self.blocks):
            x = block(x)
            if self.attentions:
                x = self.attentions[i](x)
        return x


class Middle(nnx.Module):
    """Residual block, attention, residual block, at the lowest resolution."""

    def __init__(self, rngs: nnx.Rngs, channels: int):
        self.block_1 = ResBlock(rngs, channels, channels)
        self.attention = SpatialAttention(rngs, channels)
        self.block_2 = ResBlock(rngs, channels, channels)

    def __call__(self, x: jax.Array) -> jax.Array:
        """f32[B R C c] -> the same shape."""
        return self.block_2(self.attention(self.block_1(x)))


class Encoder(nnx.Module):
    """Pixels -> latents; ``levels`` are in order from the full resolution down."""

    def __init__(self, cfg: VQConfig, rngs: nnx.Rngs):
        widths = [cfg.base, *(cfg.base * m for m in cfg.multipliers)]
        self.conv_in = Conv(rngs, 3, 3, cfg.base)
        self.levels = nnx.List()
        for i in range(len(cfg.multipliers)):
            attends = cfg.resolution // 2**i in cfg.attn_resolutions
            resamples = i < len(cfg.multipliers) - 1
            self.levels.append(Level(rngs, (widths[i], widths[i + 1]), cfg.res_blocks, attends, resamples))
        self.mid = Middle(rngs, widths[-1])
        self.norm_out = GroupNorm(widths[-1])
        self.conv_out = Conv(rngs, 3, widths[-1], cfg.latent)

    def __call__(self, x: jax.Array) -> jax.Array:
        """f32[B Y X 3] -> f32[B R C latent]."""
        x = self.conv_in(x)
        for level in self.levels:
            x = level(x)
            if level.resample is not None:
                x = level.resample(x, stride=2, pads=(0, 1))
        return self.conv_out(jax.nn.silu(self.norm_out(self.mid(x))))


class Decoder(nnx.Module):
    """Latents -> pixels; ``levels[0]`` has the full resolution, as in the encoder, and is applied last."""

    def __init__(self, cfg: VQConfig, rngs: nnx.Rngs):
        widths = [cfg.base * m for m in cfg.multipliers]
        widths.append(widths[-1])
        coarsest = cfg.resolution // cfg.stride
        self.conv_in = Conv(rngs, 3, cfg.latent, widths[-1])
        self.mid = Middle(rngs, widths[-1])
        self.levels = nnx.List()
        for i in range(len(cfg.multipliers)):
            attends = coarsest * (cfg.stride // 2**i) in cfg.attn_resolutions
            self.levels.append(Level(rngs, (widths[i + 1], widths[i]), cfg.res_blocks + 1, attends, resamples=i > 0))
        self.norm_out = GroupNorm(widths[0])
        self.conv_out = Conv(rngs, 3, widths[0], 3)

    def __call__(self, x: jax.Array) -> jax.Array:
        """f32[B R C latent] -> f32[B Y X 3]."""
        x = self.mid(self.conv_in(x))
        for level in reversed(self.levels):
            x = level(x)
            if level.resample is not None:
                x = level.resample(x.repeat(2, axis=1).repeat(2, axis=2))
        return self.conv_out(jax.nn.silu(self.norm_out(x)))


class VQVAE(nnx.Module):
    """The image tokenizer of Chameleon (VQModel). Its methods are jitted: each compiles once per picture size and batch."""

    on_devices = True

    def __init__(self, cfg: VQConfig, rngs: nnx.Rngs):
        self.cfg = cfg
        self.encoder = Encoder(cfg, rngs)
        self.decoder = Decoder(cfg, rngs)
        self.quant_conv = Conv(rngs, 1, cfg.latent, cfg.embed)
        self.post_quant_conv = Conv(rngs, 1, cfg.embed, cfg.latent)
        self.codebook = weight(rngs, fan_in="Z", E=cfg.codes, Z=cfg.embed)

    @property
    def codes(self) -> int:
        """E, the number of codes."""
        return self.cfg.codes

    @property
    def stride(self) -> int:
        """Pixels per code, along either axis."""
        return self.cfg.stride

    @jax.jit
    def latents(self, pixels: jax.Array) -> jax.Array:
        """f32[B Y X 3] in [-1, 1] -> f32[B R C Z], before quantization. InputError unless the stride divides Y and X."""
        check_pixels(pixels, self.stride)
        return self.quant_conv(self.encoder(jnp.asarray(pixels, jnp.float32)))

    def encode(self, pixels: jax.Array) -> jax.Array:
        """f32[B Y X 3] in [-1, 1] -> i32[B R C], the nearest codes. InputError unless the stride divides Y and X."""
        return self._quantize(self.latents(pixels))

    @jax.jit
    def _quantize(self, latents: jax.Array) -> jax.Array:
        """f32[B R C Z] -> i32[B R C]: argmin over entries e of |z|² + |e|² - 2ze, the first on ties."""
        codebook = self.codebook[...]
        norms = jnp.square(codebook).sum(-1)

        def nearest(z: jax.Array) -> jax.Array:
            products = jnp.einsum("BCZ,EZ->BCE", z, codebook, precision=PRECISION)
            return (jnp.square(z).sum(-1, keepdims=True) + norms - 2 * products).argmin(-1).astype(jnp.int32)

        # One row of codes at a time: distances are [B C E], not [B R C E], and a sharded batch stays sharded.
        return jnp.moveaxis(jax.lax.map(nearest, jnp.moveaxis(latents, 1, 0)), 0, 1)

    def encoder_weights(self) -> list[jax.Array]:
        """The arrays that codes depend on: all but the decoder's."""
        leaves, _ = jax.tree_util.tree_flatten_with_path(self)
        return [leaf for path, leaf in leaves if not jax.tree_util.keystr(path).lstrip(".").startswith(DECODER_PARTS)]

    @jax.jit
    def decode(self, codes: jax.Array) -> jax.Array:
        """i32[B R C] -> f32[B Y X 3], about [-1, 1] but not clipped."""
        return self.decoder(self.post_quant_conv(self.codebook[...][codes]))
