"""The configs of PyTorch checkpoints, Hugging Face's config.json and Meta's params.json, to and from ModelConfig and VQConfig."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np

from convert.errors import field_errors, read_errors
from lumina_jax.config import ModelConfig, VQConfig
from lumina_jax.errors import InputError, MissingFileError

VQ_PREFIX = "model.vqmodel."
"""Names of the VQ encoder's weights in Hugging Face files begin with this."""
NOT_WEIGHTS = ("rope.freqs", "loss.", "model.rotary_emb.", "rotary_emb.")
"""Beginnings of the names of tensors in PyTorch checkpoints that are computed, or serve training only, and are left out."""

META_MULTIPLES = (256, 128, 64, 32, 16, 8, 4, 2, 1)
"""Units to which Meta may round the MLP width up; 256 in the released models."""
HF_TYPES = {
    **dict.fromkeys(
        ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads"), int
    ),
    **dict.fromkeys(("head_dim", "intermediate_size", "model_parallel_size"), int),
    **dict.fromkeys(("rope_theta", "rms_norm_eps", "dropout"), float),
    "swin_norm": bool,
}
"""Fields of config.json that are read, and their types."""
HF_FIXED = {"hidden_act": "silu", "rope_scaling": None, "rope_type": "default", "tie_word_embeddings": False}
"""Fields with one value in all Chameleon models, which ModelConfig therefore does not have."""
META_TYPES = {
    **dict.fromkeys(
        ("vocab_size", "dim", "n_layers", "n_heads", "n_kv_heads", "multiple_of", "model_parallel_size"), int
    ),
    **dict.fromkeys(("ffn_dim_multiplier", "rope_theta", "norm_eps"), float),
    "swin_norm": bool,
}
"""Fields of params.json that are read, and their types."""
VQ_TYPES = {
    **dict.fromkeys(("num_embeddings", "embed_dim", "latent_channels", "base_channels"), int),
    **dict.fromkeys(("num_res_blocks", "resolution"), int),
    **dict.fromkeys(("channel_multiplier", "attn_resolutions"), list),
}
"""Fields of vq_config in config.json that are read, and their types."""
EXPECTED = {
    int: "a whole number above 0",
    float: "a number",
    bool: "true or false",
    list: "a list of whole numbers above 0",
}
LONG_CONTEXT_BASE = 10_000
"""A RoPE base above this means a model made for 16,384 positions instead of 4,096 (original: its weight converter)."""


def read_json(file: Path) -> dict:
    """A JSON object. Raises MissingFileError, StorageError for an unreadable file, InputError for other content."""
    with read_errors(file):
        if not file.is_file():
            raise MissingFileError(f"{file} is missing; a checkpoint folder of this layout holds it beside its weights")
        try:
            content = json.loads(file.read_text())
        except (ValueError, RecursionError) as error:
            raise InputError(f"{file} is not JSON ({error}); fetch or write it again") from None
    if not isinstance(content, dict):
        raise InputError(f"{file} holds a {type(content).__name__}, but a JSON object is expected; fetch it again")
    return content


def read_meta_settings(folder: Path) -> dict:
    """params.json, its "model" part and consolidate_params.json of a folder of Meta's, merged in this order."""
    params, consolidate = read_json(folder / "params.json"), folder / "consolidate_params.json"
    with field_errors(folder / "params.json"):
        model = _json_object(params, "model")
    return {**params, **model, **(read_json(consolidate) if consolidate.is_file() else {})}


def checked_fields(fields: dict, types: dict[str, type]) -> dict:
    """The fields that are not null. Raises InputError for a field in ``types`` of another type; see EXPECTED."""
    present = {name: value for name, value in fields.items() if value is not None}
    wrong = [
        f"{name} is {present[name]!r}, but {EXPECTED[kind]} is expected"
        for name, kind in types.items()
        if name in present and not _has_type(present[name], kind)
    ]
    if wrong:
        raise InputError("; ".join(wrong))
    return present


def _has_type(value: object, kind: type) -> bool:
    if kind is list:
        return isinstance(value, list) and all(_has_type(item, int) for item in value)
    if kind is int:
        return type(value) is int and value >= 1
    return type(value) in ((int, float) if kind is float else (bool,))


def _json_object(fields: dict, name: str) -> dict:
    """The JSON object under ``name``, empty where the field is absent or null."""
    value = fields.get(name) or {}
    if not isinstance(value, dict):
        raise InputError(f"{name} is {value!r}, but an object is expected")
    return value


def model_config(settings: dict, file: Path) -> ModelConfig:
    """config.json of Chameleon, with old or new field names -> ModelConfig.

    Raises InputError that begins with ``file`` for a field that is absent, of the wrong type, or unlike all Chameleon models.
    """
    with field_errors(file):
        fields = checked_fields(settings | _json_object(settings, "rope_parameters"), HF_TYPES)
        if wrong := [
            f"{name} is {fields[name]!r}" for name, value in HF_FIXED.items() if fields.get(name, value) != value
        ]:
            raise InputError(f"{', '.join(wrong)}; only Chameleon's {HF_FIXED} is supported")
        heads = fields["num_attention_heads"]
        return ModelConfig(
            vocab=fields["vocab_size"],
            width=fields["hidden_size"],
            layers=fields["num_hidden_layers"],
            heads=heads,
            kv_heads=fields.get("num_key_value_heads", heads),
            head_dim=fields.get("head_dim", fields["hidden_size"] // heads),
            mlp=fields["intermediate_size"],
            qk_groups=fields.get("model_parallel_size", 1),
            post_norm=fields.get("swin_norm", False),
            rope_base=fields.get("rope_theta", 1e4),
            eps=fields["rms_norm_eps"],
            dropout=fields.get("dropout", 0.0),
        )


def hugging_face_settings(cfg: ModelConfig, dtype: np.dtype, layout: str, base: dict) -> dict:
    """ModelConfig -> config.json as transformers ("hf") or Lumina-mGPT ("lumina") reads it.

    ``base`` holds the fields that ModelConfig does not determine (token ids, vocabulary, VQ encoder). Raises InputError for a head
    size that is not width / heads.
    """
    check_head_size(cfg, layout)
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
    """:func:`read_meta_settings` -> (ModelConfig, number of model-parallel files).

    Raises InputError that begins with ``file`` for a field that is absent, of the wrong type, or unlike all Chameleon models.
    """
    with field_errors(file):
        fields = checked_fields(params, META_TYPES)
        if not fields.get("qk_normalization", True):
            raise InputError(
                "qk_normalization is false; only models with QK-norm, as all of Chameleon's, are supported"
            )
        shards = fields.get("model_parallel_size", 1)
        width, heads = fields["dim"], fields["n_heads"]
        return ModelConfig(
            vocab=fields["vocab_size"],
            width=width,
            layers=fields["n_layers"],
            heads=heads,
            kv_heads=fields.get("n_kv_heads", heads),
            head_dim=width // heads,
            mlp=meta_mlp_width(width, fields.get("ffn_dim_multiplier"), fields["multiple_of"]),
            qk_groups=shards,
            post_norm=fields.get("swin_norm", False),
            rope_base=fields.get("rope_theta", 1e4),
            eps=fields["norm_eps"],
            dropout=0.0,
        ), shards


def meta_mlp_width(width: int, multiplier: float | None, multiple: int) -> int:
    """The MLP width in Meta's code: 8/3 ``width``, times ffn_dim_multiplier, rounded up to a multiple of multiple_of."""
    mlp = int(8 * width / 3)
    return multiple * math.ceil((mlp if multiplier is None else int(multiplier * mlp)) / multiple)


def meta_params(cfg: ModelConfig, shards: int) -> tuple[dict, dict]:
    """ModelConfig -> the contents of (params.json, consolidate_params.json). Raises InputError as hugging_face_settings does."""
    check_head_size(cfg, "meta")
    multiplier = None
    multiple = next((m for m in META_MULTIPLES if meta_mlp_width(cfg.width, None, m) == cfg.mlp), None)
    if multiple is None:
        # The extra half keeps the truncation to whole numbers from ending one short.
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


def check_head_size(cfg: ModelConfig, layout: str) -> None:
    """Raises InputError unless the head size is width / heads, the only one that PyTorch layouts have fields for."""
    if cfg.head_dim * cfg.heads != cfg.width:
        raise InputError(
            f"model.heads={cfg.heads} x head_dim={cfg.head_dim} is not model.width={cfg.width}; layout {layout!r} has no "
            "field for that: keep such a model as an Orbax checkpoint (run.py convert import)"
        )


def vq_config(settings: dict, file: Path) -> VQConfig:
    """vq_config of config.json, the VQ encoder's sizes -> VQConfig. Raises InputError that begins with ``file``."""
    default = VQConfig()
    with field_errors(file):
        fields = checked_fields(_json_object(settings, "vq_config"), VQ_TYPES)
        return replace(
            default,
            codes=fields.get("num_embeddings", default.codes),
            embed=fields.get("embed_dim", default.embed),
            latent=fields.get("latent_channels", default.latent),
            base=fields.get("base_channels", default.base),
            multipliers=tuple(fields.get("channel_multiplier", default.multipliers)),
            res_blocks=fields.get("num_res_blocks", default.res_blocks),
            attn_resolutions=tuple(fields.get("attn_resolutions", ())),
            resolution=fields.get("resolution", default.resolution),
        )


def vq_settings(cfg: VQConfig) -> dict:
    """VQConfig -> vq_config of config.json."""
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
