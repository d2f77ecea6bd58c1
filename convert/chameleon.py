"""The decoder's weights in Hugging Face layouts: as Lumina-mGPT saves them and as transformers does."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from safetensors import safe_open
from safetensors.flax import save_file

from convert.table import HUGGING_FACE, Row, rearrange
from lumina_jax.config import ModelConfig
from lumina_jax.model.chameleon import Chameleon
from lumina_jax.model.params import is_param

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
NOT_OURS = "model.vqmodel."
"""Prefix of the VQ encoder that some checkpoints carry along; load_vqvae reads the whole VQ-VAE from its own file."""


def load_model(path) -> tuple[Chameleon, ModelConfig]:
    """Reads a Hugging Face folder (config.json and safetensors) of Chameleon or Lumina-mGPT.

    Weights keep their dtype. QK-norm rows may be stored per group (Lumina-mGPT) or per head (transformers 4.44 and later).
    Raises FileNotFoundError naming an absent file, ValueError listing missing, unknown or misshapen weights.
    """
    folder = Path(path)
    settings = _read_json(folder / "config.json")
    files = _files(folder)
    known = {row.torch_name.format(L=layer) for row in HUGGING_FACE for layer in range(settings["num_hidden_layers"])}
    missing = sorted(known - set(files))
    unknown = sorted(name for name in set(files) - known if not name.startswith(NOT_OURS))
    if missing or unknown:
        raise ValueError(
            f"{folder}: {len(missing)} weights missing ({', '.join(missing[:5])}), "
            f"{len(unknown)} unknown ({', '.join(unknown[:5])})"
        )
    cfg = model_config(settings)
    read = _reader(files)
    groups = _qk_groups(read, cfg)
    cfg = ModelConfig(**{**vars(cfg), "qk_groups": groups})
    return _fill(cfg, read, folder), cfg


def save_model(model: Chameleon, cfg: ModelConfig, path, layout: str = "hf", shards: int = 1) -> None:
    """Writes ``model`` as a Hugging Face folder of ``shards`` safetensors files with the index and config.json.

    QK-norm rows are written per head, as transformers reads them. ``layout`` "hf" is what this version writes.
    """
    if layout != "hf":
        raise ValueError(f"layout={layout!r}; this version writes 'hf' only")
    weights = _weights(model)
    if not 1 <= shards <= len(weights):
        raise ValueError(f"shards={shards}; choose 1 to {len(weights)}, the number of weights")
    folder = Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    names, index = list(weights), {}
    for number in range(shards):
        file = f"model-{number + 1:05d}-of-{shards:05d}.safetensors" if shards > 1 else SINGLE
        part = names[number * len(names) // shards : (number + 1) * len(names) // shards]
        save_file({name: weights[name] for name in part}, folder / file, metadata={"format": "pt"})
        index |= dict.fromkeys(part, file)
    if shards > 1:
        total = sum(array.nbytes for array in weights.values())
        text = json.dumps({"metadata": {"total_size": total}, "weight_map": index}, indent=2)
        (folder / INDEX).write_text(text)
    settings = hugging_face_config(cfg, model.head.dtype)
    (folder / "config.json").write_text(json.dumps(settings, indent=2))


def model_config(settings: dict) -> ModelConfig:
    """config.json of Chameleon (old and new field names) -> ModelConfig."""
    heads = settings["num_attention_heads"]
    rope = settings.get("rope_parameters") or {}
    return ModelConfig(
        vocab=settings["vocab_size"],
        width=settings["hidden_size"],
        layers=settings["num_hidden_layers"],
        heads=heads,
        kv_heads=settings.get("num_key_value_heads") or heads,
        head_dim=settings.get("head_dim") or settings["hidden_size"] // heads,
        mlp=settings["intermediate_size"],
        qk_groups=settings.get("model_parallel_size", 1),
        post_norm=settings.get("swin_norm", False),
        rope_base=rope.get("rope_theta", settings.get("rope_theta", 1e4)),
        eps=settings["rms_norm_eps"],
        dropout=settings.get("dropout", 0.0),
    )


def hugging_face_config(cfg: ModelConfig, dtype: jnp.dtype) -> dict:
    """ModelConfig -> the fields of config.json that transformers and Lumina-mGPT read."""
    return {
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
        "rope_parameters": {"rope_theta": cfg.rope_base, "rope_type": "default"},
        "rms_norm_eps": cfg.eps,
        "dropout": cfg.dropout,
        "mask_image_logits": False,
        "vocabulary_map": {},
        "tie_word_embeddings": False,
        "torch_dtype": jnp.dtype(dtype).name,
    }


def _sizes(cfg: ModelConfig) -> dict[str, int]:
    return dict(V=cfg.vocab, D=cfg.width, H=cfg.heads, N=cfg.kv_heads, K=cfg.head_dim, F=cfg.mlp, L=cfg.layers)


def _read_json(file: Path) -> dict:
    if not file.is_file():
        raise FileNotFoundError(f"{file} is missing; a Hugging Face checkpoint folder holds it beside its safetensors")
    return json.loads(file.read_text())


def _files(folder: Path) -> dict[str, Path]:
    """Weight name -> the file that holds it."""
    if (folder / INDEX).is_file():
        files = {name: folder / file for name, file in _read_json(folder / INDEX)["weight_map"].items()}
        absent = sorted({file.name for file in files.values() if not file.is_file()})
        if absent:
            raise FileNotFoundError(f"{folder / INDEX} names {', '.join(absent)}, absent from the folder")
        return files
    if not (folder / SINGLE).is_file():
        raise FileNotFoundError(f"{folder} holds neither {INDEX} nor {SINGLE}")
    with safe_open(folder / SINGLE, framework="flax") as file:
        return dict.fromkeys(file.keys(), folder / SINGLE)


def _reader(files: dict[str, Path]):
    handles = {file: safe_open(file, framework="flax") for file in set(files.values())}

    def read(name: str) -> np.ndarray:
        return np.asarray(handles[files[name]].get_tensor(name))

    return read


def _qk_groups(read, cfg: ModelConfig) -> int:
    """How many distinct QK-norm rows there are: as many as stored, unless rows stored per head repeat by shard."""
    rows = [row for row in HUGGING_FACE if row.torch_layout == "G K"]
    arrays = [read(row.torch_name.format(L=layer)) for row in rows for layer in range(cfg.layers)]
    stored = max(len(array) for array in arrays)
    if stored == cfg.qk_groups:
        return stored
    repeat = all((np.repeat(_first_rows(a, cfg.qk_groups), len(a) // cfg.qk_groups, axis=0) == a).all() for a in arrays)
    return cfg.qk_groups if repeat else stored


def _first_rows(array: np.ndarray, groups: int) -> np.ndarray:
    return array[:: len(array) // groups]


def _fill(cfg: ModelConfig, read, folder: Path) -> Chameleon:
    rows = {row.path: row for row in HUGGING_FACE}

    def value(path, param):
        row = rows[jax.tree_util.keystr(path, simple=True, separator="/")]
        if not row.per_layer:
            return param.replace(jnp.asarray(one(row, row.torch_name)))
        layers = [one(row, row.torch_name.format(L=layer)) for layer in range(cfg.layers)]
        return param.replace(jnp.asarray(np.stack(layers)))

    def one(row: Row, name: str) -> np.ndarray:
        array, sizes = read(name), _sizes(cfg)
        if row.torch_layout == "G K":
            sizes["G"] = min(cfg.qk_groups, cfg.kv_heads) if "k_norm" in row.path else cfg.qk_groups
            array = _first_rows(array, sizes["G"])
        try:
            return rearrange(array, row.torch_layout, row.letters, sizes)
        except ValueError as error:
            raise ValueError(f"{folder}: {name}: {error}; config.json and weights disagree") from None

    shapes = jax.eval_shape(lambda: Chameleon(cfg, nnx.Rngs(0)))
    return jax.tree_util.tree_map_with_path(value, shapes, is_leaf=is_param)


def _weights(model: Chameleon) -> dict[str, jax.Array]:
    """Every weight under its torch name, in torch's layout."""
    ours = {
        jax.tree_util.keystr(path, simple=True, separator="/"): param[...]
        for path, param in jax.tree_util.tree_leaves_with_path(model, is_leaf=is_param)
    }
    sizes, weights = _sizes(model.cfg), {}
    for row in HUGGING_FACE:
        array = ours[row.path]
        for layer in range(model.cfg.layers if row.per_layer else 1):
            one = array[layer] if row.per_layer else array
            if row.torch_layout == "G K":
                heads = model.cfg.kv_heads if "k_norm" in row.path else model.cfg.heads
                one = jnp.repeat(one, heads // len(one), axis=0)
            else:
                one = rearrange(one, row.letters, row.torch_layout, sizes)
            weights[row.torch_name.format(L=layer)] = jnp.asarray(one)  # safetensors ignores the strides of numpy views
    return weights
