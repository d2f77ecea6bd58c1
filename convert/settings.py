"""The configs of PyTorch checkpoints, Hugging Face's config.json and Meta's params.json, to and from ModelConfig and VQConfig."""

import json
import math
from typing import get_type_hints

import numpy as np

from convert.errors import field_errors, read_errors
from lumina_jax.config import ModelConfig, VQConfig
from lumina_jax.errors import InputError, MissingFileError
from lumina_jax.places import Place

VQ_PREFIX = "model.vqmodel."
"""Names of the VQ encoder's weights in Hugging Face files begin with this."""
NOT_WEIGHTS = ("rope.freqs", "loss.", "model.rotary_emb.", "rotary_emb.")
"""Beginnings of the names of tensors in PyTorch checkpoints that are computed, or serve training only, and are left out."""

META_MULTIPLES = (256, 128, 64, 32, 16, 8, 4, 2, 1)
"""Units to which Meta may round the MLP width up; 256 in the released models."""
HF_NAMES = {
    **dict(vocab="vocab_size", width="hidden_size", layers="num_hidden_layers", heads="num_attention_heads"),
    **dict(kv_heads="num_key_value_heads", mlp="intermediate_size", qk_groups="model_parallel_size"),
    **dict(post_norm="swin_norm", rope_base="rope_theta", eps="rms_norm_eps", dropout="dropout"),
}
"""ModelConfig's fields in config.json."""
HF_FIXED = {"hidden_act": "silu", "rope_scaling": None, "rope_type": "default", "tie_word_embeddings": False}
"""Fields with one value in all Chameleon models, which ModelConfig therefore does not have."""
META_NAMES = {
    **dict(width="dim", vocab="vocab_size", layers="n_layers", heads="n_heads", kv_heads="n_kv_heads"),
    **dict(qk_groups="model_parallel_size", post_norm="swin_norm", rope_base="rope_theta", eps="norm_eps"),
    **dict(multiple="multiple_of", multiplier="ffn_dim_multiplier"),
}
"""ModelConfig's fields in params.json, and the two that determine ``mlp`` there."""
VQ_NAMES = {
    **dict(codes="num_embeddings", embed="embed_dim", latent="latent_channels", base="base_channels"),
    **dict(multipliers="channel_multiplier", res_blocks="num_res_blocks"),
    **dict(attn_resolutions="attn_resolutions", resolution="resolution"),
}
"""VQConfig's fields in vq_config of config.json."""
DEFAULTS = dict(kv_heads=None, head_dim=None, qk_groups=1, post_norm=False, rope_base=1e4, dropout=0.0, multiplier=None)
"""Fields that a checkpoint of a Chameleon model may leave out."""
TYPES = get_type_hints(ModelConfig) | get_type_hints(VQConfig) | {"multiple": int, "multiplier": float}
EXPECTED = {int: "a whole number above 0", float: "a number", bool: "true or false"}
"""Types of fields in words; any other is a list of whole numbers above 0."""
LONG_CONTEXT_BASE = 10_000
"""A RoPE base above this means a model made for 16,384 positions instead of 4,096 (original: its weight converter)."""


def read_json(file: Place) -> dict:
    """A JSON object. Raises MissingFileError, StorageError for an unreadable file, InputError for other content."""
    with read_errors(file):
        if not file.is_file():
            raise MissingFileError(f"{file} is missing; a checkpoint folder of this layout holds it beside its weights")
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
        except (ValueError, RecursionError) as error:
            raise InputError(f"{file} is not JSON ({error}); fetch or write it again") from None
    if not isinstance(content, dict):
        raise InputError(f"{file} holds a {type(content).__name__}, but a JSON object is expected; fetch it again")
    return content


def meta_settings(folder: Place) -> dict:
    """params.json, its "model" part and consolidate_params.json of a folder of Meta's, merged in this order."""
    params, consolidate = read_json(folder / "params.json"), folder / "consolidate_params.json"
    with field_errors(folder / "params.json"):
        model = _json_object(params, "model")
    return {**params, **model, **(read_json(consolidate) if consolidate.is_file() else {})}


def read_fields(settings: dict, names: dict[str, str], defaults: dict[str, object]) -> dict[str, object]:
    """{our name: value} of the fields ``names`` {our name: name in ``settings``}, with ``defaults`` by our name for absent or null.

    Raises KeyError for an absent field without a default, InputError for a value of the wrong type.
    """
    fields = {}
    for ours, name in names.items():
        value = settings.get(name)
        if value is None:
            if ours not in defaults:
                raise KeyError(name)
            value = defaults[ours]
        elif not _has_type(value, TYPES[ours]):
            expected = EXPECTED.get(TYPES[ours], "a list of whole numbers above 0")
            raise InputError(f"{name} is {value!r}, but {expected} is expected")
        fields[ours] = tuple(value) if isinstance(value, list) else value
    return fields


def _has_type(value: object, kind: type) -> bool:
    if kind is int:
        return type(value) is int and value >= 1
    if kind in EXPECTED:
        return type(value) in ((int, float) if kind is float else (bool,))
    return isinstance(value, list) and all(_has_type(item, int) for item in value)


def _json_object(fields: dict, name: str) -> dict:
    """The JSON object under ``name``, empty where the field is absent or null."""
    value = fields.get(name) or {}
    if not isinstance(value, dict):
        raise InputError(f"{name} is {value!r}, but an object is expected")
    return value


def model_config(settings: dict, file: Place) -> ModelConfig:
    """config.json of Chameleon, with old or new field names -> ModelConfig.

    Raises InputError that begins with ``file`` for a field that is absent, of the wrong type, or unlike all Chameleon models.
    """
    with field_errors(file):
        settings = settings | _json_object(settings, "rope_parameters")
        wrong = [f"{n} is {settings[n]!r}" for n, value in HF_FIXED.items() if settings.get(n) not in (None, value)]
        if wrong:
            raise InputError(f"{', '.join(wrong)}; only Chameleon's {HF_FIXED} is supported")
        return _with_heads(read_fields(settings, HF_NAMES | {"head_dim": "head_dim"}, DEFAULTS))


def _with_heads(fields: dict) -> ModelConfig:
    """The ModelConfig of ``fields``; absent (None) kv_heads are as many as heads, an absent head_dim is width / heads."""
    kv_heads, head_dim = fields["kv_heads"], fields["head_dim"]
    fields["kv_heads"] = fields["heads"] if kv_heads is None else kv_heads
    fields["head_dim"] = fields["width"] // fields["heads"] if head_dim is None else head_dim
    return ModelConfig(**fields)


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
        **{name: getattr(cfg, ours) for ours, name in HF_NAMES.items()},
        "mask_image_logits": False,
        "tie_word_embeddings": False,
        "torch_dtype": dtype.name,
    }
    settings.setdefault("vocabulary_map", {})
    settings.setdefault("max_position_embeddings", 4096 if cfg.rope_base <= LONG_CONTEXT_BASE else 16384)
    if layout == "hf":
        settings |= {"rope_parameters": {"rope_theta": cfg.rope_base, "rope_type": "default"}, "dtype": dtype.name}
    return settings


def meta_config(params: dict, file: Place) -> tuple[ModelConfig, int]:
    """:func:`meta_settings` -> (ModelConfig, number of model-parallel files).

    Raises InputError that begins with ``file`` for a field that is absent, of the wrong type, or unlike all Chameleon models.
    """
    with field_errors(file):
        fields = read_fields(params, META_NAMES, DEFAULTS)
        if params.get("qk_normalization") not in (None, True):
            raise InputError("qk_normalization is false; only models with QK-norm, such as Chameleon, are supported")
        mlp = meta_mlp_width(fields["width"], fields.pop("multiplier"), fields.pop("multiple"))
        cfg = _with_heads({**fields, "head_dim": None, "mlp": mlp, "dropout": 0.0})
        return cfg, cfg.qk_groups


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


def vq_config(settings: dict, file: Place) -> VQConfig:
    """vq_config of config.json, the VQ encoder's sizes -> VQConfig. Raises InputError that begins with ``file``."""
    with field_errors(file):
        defaults = vars(VQConfig()) | {"attn_resolutions": ()}
        return VQConfig(**read_fields(_json_object(settings, "vq_config"), VQ_NAMES, defaults))


def vq_settings(cfg: VQConfig) -> dict:
    """VQConfig -> vq_config of config.json."""
    values = {name: getattr(cfg, ours) for ours, name in VQ_NAMES.items()}
    lists = {"channel_multiplier": list(cfg.multipliers), "attn_resolutions": list(cfg.attn_resolutions) or None}
    return {"model_type": "chameleon_vqgan", **values, **lists}
