"""What a checkpoint says about itself, in each world's words: config.json and params.json <-> ModelConfig."""

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np

from lumina_jax.config import ModelConfig, VQConfig
from lumina_jax.errors import InputError, MissingFileError

META_MULTIPLES = (256, 128, 64, 32, 16, 8, 4, 2, 1)
"""What Meta rounds the MLP width up to; 256 in the released models."""
HF_NUMBERS = {
    **dict.fromkeys(
        ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads"), int
    ),
    **dict.fromkeys(("head_dim", "intermediate_size", "model_parallel_size"), int),
    **dict.fromkeys(("rope_theta", "rms_norm_eps", "dropout"), float),
}
"""Fields of config.json that are read, and whether they are whole numbers."""
HF_FIXED = {"hidden_act": "silu", "rope_scaling": None, "rope_type": "default", "tie_word_embeddings": False}
"""What Chameleon never varies, and ModelConfig therefore does not say."""
META_NUMBERS = {
    **dict.fromkeys(
        ("vocab_size", "dim", "n_layers", "n_heads", "n_kv_heads", "multiple_of", "model_parallel_size"), int
    ),
    **dict.fromkeys(("ffn_dim_multiplier", "rope_theta", "norm_eps"), float),
}
"""The same for params.json."""
LONG_CONTEXT_BASE = 10_000
"""A RoPE base above this tells a model made for 16,384 positions instead of 4,096 (original: its weight converter)."""


def read_json(file: Path) -> dict:
    """A JSON object. Raises FileNotFoundError, or ValueError for what is none."""
    if not file.is_file():
        raise MissingFileError(f"{file} is missing; a checkpoint folder of this layout holds it beside its weights")
    try:
        found = json.loads(file.read_text())
    except ValueError as error:
        raise InputError(f"{file} is not JSON ({error}); fetch or write it again") from None
    if not isinstance(found, dict):
        raise InputError(f"{file} holds a {type(found).__name__} where an object should be")
    return found


def model_config(settings: dict, file: Path) -> ModelConfig:
    """config.json of Chameleon, old and new field names -> ModelConfig.

    Raises ValueError that begins with ``file`` for a field that is missing, no number, or not as in any Chameleon.
    """
    with _blaming(file):
        said = _numbers(settings | (settings.get("rope_parameters") or {}), HF_NUMBERS)
        if wrong := [f"{name} is {said[name]!r}" for name, value in HF_FIXED.items() if said.get(name, value) != value]:
            raise InputError(f"{', '.join(wrong)}; Chameleon's models have {HF_FIXED}, and so has ours")
        heads = said["num_attention_heads"]
        return ModelConfig(
            vocab=said["vocab_size"],
            width=said["hidden_size"],
            layers=said["num_hidden_layers"],
            heads=heads,
            kv_heads=said.get("num_key_value_heads", heads),
            head_dim=said.get("head_dim", said["hidden_size"] // heads),
            mlp=said["intermediate_size"],
            qk_groups=said.get("model_parallel_size", 1),
            post_norm=said.get("swin_norm", False),
            rope_base=said.get("rope_theta", 1e4),
            eps=said["rms_norm_eps"],
            dropout=said.get("dropout", 0.0),
        )


def hugging_face_settings(cfg: ModelConfig, dtype: np.dtype, layout: str, base: dict) -> dict:
    """ModelConfig -> config.json as transformers ("hf") or Lumina-mGPT ("lumina") reads it.

    ``base`` gives the fields that are no business of the model's own numbers (token ids, vocabulary, VQ encoder).
    """
    check_square(cfg, layout)
    settings = {name: value for name, value in base.items() if name not in ("rope_parameters", "rope_scaling", "dtype")}
    settings |= {
        "architectures": ["ChameleonForConditionalGeneration"],
        "model_type": "chameleon",
        "vocab_size": cfg.vocab,
        "hidden_size": cfg.width,
        "num_hidden_layers": cfg.layers,
        "num_attention_heads": cfg.heads,
        "num_key_value_heads": cfg.kv_heads,
        "intermediate_size": cfg.mlp,
        "model_parallel_size": cfg.qk_groups,
        "swin_norm": cfg.post_norm,
        "rope_theta": cfg.rope_base,
        "rms_norm_eps": cfg.eps,
        "dropout": cfg.dropout,
        "mask_image_logits": False,
        "tie_word_embeddings": False,
        "torch_dtype": dtype.name,
    }
    settings.setdefault("vocabulary_map", {})
    settings.setdefault("max_position_embeddings", 4096 if cfg.rope_base <= LONG_CONTEXT_BASE else 16384)
    if layout == "hf":
        settings |= {"rope_parameters": {"rope_theta": cfg.rope_base, "rope_type": "default"}, "dtype": dtype.name}
    return settings


def meta_config(params: dict, file: Path) -> tuple[ModelConfig, int]:
    """Meta's params.json and consolidate_params.json, merged -> (ModelConfig, number of model-parallel files).

    Raises ValueError that begins with ``file`` for a field that is missing, no number, or not as in any Chameleon.
    """
    with _blaming(file):
        said = _numbers(params, META_NUMBERS)
        if not said.get("qk_normalization", True):
            raise InputError("qk_normalization is false; Chameleon's models all have it, and so does ours")
        shards = said.get("model_parallel_size", 1)
        dim, heads = said["dim"], said["n_heads"]
        return ModelConfig(
            vocab=said["vocab_size"],
            width=dim,
            layers=said["n_layers"],
            heads=heads,
            kv_heads=said.get("n_kv_heads", heads),
            head_dim=dim // heads,
            mlp=meta_mlp(dim, said.get("ffn_dim_multiplier"), said["multiple_of"]),
            qk_groups=shards,
            post_norm=said.get("swin_norm", False),
            rope_base=said.get("rope_theta", 1e4),
            eps=said["norm_eps"],
            dropout=0.0,
        ), shards


@contextmanager
def _blaming(file: Path) -> Iterator[None]:
    """Errors inside begin with ``file``."""
    try:
        yield
    except KeyError as missing:
        raise InputError(f"{file} says nothing of {missing}; it is not a Chameleon model's {file.name}") from None
    except TypeError as error:
        raise InputError(f"{file} has a field of the wrong kind ({error}); fetch or write it again") from None
    except ValueError as error:
        raise InputError(f"{file}: {error}") from None


def _numbers(settings: dict, kinds: dict[str, type]) -> dict:
    """The fields that are not null. Raises ValueError where one of ``kinds`` is no number, or no whole one of at least 1."""
    said = {name: value for name, value in settings.items() if value is not None}
    wrong = []
    for name, kind in kinds.items():
        value = said.get(name, 1)
        ok = type(value) is int and value >= 1 if kind is int else type(value) in (int, float)
        if not ok:
            wrong.append(f"{name} is {value!r} where a {'whole number above 0' if kind is int else 'number'} belongs")
    if wrong:
        raise InputError("; ".join(wrong))
    return said


def meta_mlp(dim: int, multiplier: float | None, multiple: int) -> int:
    """The MLP width that Meta's numbers stand for."""
    wanted = int(8 * dim / 3)
    return multiple * math.ceil((wanted if multiplier is None else int(multiplier * wanted)) / multiple)


def meta_params(cfg: ModelConfig, shards: int) -> tuple[dict, dict]:
    """ModelConfig -> the contents of (params.json, consolidate_params.json)."""
    check_square(cfg, "meta")
    multiplier, multiple = None, next((m for m in META_MULTIPLES if meta_mlp(cfg.width, None, m) == cfg.mlp), None)
    if multiple is None:
        # Half a unit more keeps the truncation to whole numbers from falling one short.
        multiplier, multiple = (cfg.mlp + 0.5) / int(8 * cfg.width / 3), 1
    model = {
        "dim": cfg.width,
        "n_layers": cfg.layers,
        "n_heads": cfg.heads,
        "n_kv_heads": None if cfg.kv_heads == cfg.heads else cfg.kv_heads,
        "vocab_size": cfg.vocab,
        "ffn_dim_multiplier": multiplier,
        "multiple_of": multiple,
        "norm_eps": cfg.eps,
        "rope_theta": cfg.rope_base,
        "qk_normalization": True,
        "swin_norm": cfg.post_norm,
    }
    return {"model": model}, {"model_parallel_size": shards}


def check_square(cfg: ModelConfig, layout: str) -> None:
    """Raises ValueError for a head size that the layout cannot say: it is always width / heads there."""
    if cfg.head_dim * cfg.heads != cfg.width:
        raise InputError(
            f"model.heads={cfg.heads} x head_dim={cfg.head_dim} is not model.width={cfg.width}; layout {layout!r} has no "
            "field for that: keep such a model in our own layout"
        )


def vq_config(settings: dict) -> VQConfig:
    """The VQ encoder's part of config.json -> VQConfig."""
    said = settings.get("vq_config") or {}
    default = VQConfig()
    return replace(
        default,
        codes=said.get("num_embeddings", default.codes),
        embed=said.get("embed_dim", default.embed),
        latent=said.get("latent_channels", default.latent),
        base=said.get("base_channels", default.base),
        multipliers=tuple(said.get("channel_multiplier", default.multipliers)),
        res_blocks=said.get("num_res_blocks", default.res_blocks),
        attn_resolutions=tuple(said.get("attn_resolutions") or ()),
        resolution=said.get("resolution", default.resolution),
    )


def vq_settings(cfg: VQConfig) -> dict:
    """VQConfig -> the VQ encoder's part of config.json."""
    return {
        "model_type": "chameleon_vqgan",
        "num_embeddings": cfg.codes,
        "embed_dim": cfg.embed,
        "latent_channels": cfg.latent,
        "base_channels": cfg.base,
        "channel_multiplier": list(cfg.multipliers),
        "num_res_blocks": cfg.res_blocks,
        "attn_resolutions": list(cfg.attn_resolutions) or None,
        "resolution": cfg.resolution,
    }
