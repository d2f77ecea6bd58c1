"""Chameleon's image tokenizer files (vqgan.ckpt and vqgan.yaml) <-> VQVAE, over one table read both ways."""

from collections.abc import Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import yaml
from flax import nnx

from convert.files import need_torch, open_tensors
from convert.table import Row, rearrange, shape_of
from lumina_jax.config import VQConfig
from lumina_jax.errors import InputError, MissingFileError
from lumina_jax.model.image_tokenizer import ImageTokenizer
from lumina_jax.model.params import is_param
from lumina_jax.model.patchvq import PatchVQ
from lumina_jax.model.vqvae import VQVAE

PATCHVQ_NAME = "vq.npz"
"""What a PatchVQ is called in a folder."""

FOLDERS = ("", "tokenizer", "original_tokenizers")
"""Where vqgan.ckpt may lie in a folder: in itself, or where Lumina-mGPT's and Chameleon's releases put it."""

TORCH_NAMES = {
    "blocks": "block",
    "attentions": "attn",
    "attention": "attn_1",
    "shortcut": "nin_shortcut",
    "out": "proj_out",
    "kernel": "weight",
    "scale": "weight",
    "codebook": "quantize.embedding.weight",
}
"""Our name of a part -> torch's, where they differ."""

HALF_NAMES = {
    "encoder": {"levels": "down", "resample": "downsample.conv"},
    "decoder": {"levels": "up", "resample": "upsample.conv"},
}
"""The same for what encoder and decoder name differently."""

TORCH_LAYOUTS = {"h w i o": "o i h w"}
"""Our layout -> torch's, where they differ."""

FIXED = {"double_z": False, "in_channels": 3, "out_ch": 3}
"""What Chameleon's tokenizer never varies, and VQConfig therefore does not say."""


def table(vqvae: VQVAE) -> list[Row]:
    """One row for every weight of ``vqvae``, with or without values, in the order of its leaves."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(vqvae, is_leaf=is_param)
    return [_row(path, leaf) for path, leaf in leaves]


def from_torch(cfg: VQConfig, state: Mapping[str, np.ndarray]) -> VQVAE:
    """A VQVAE with the arrays of ``state``, torch's names and layouts; needs no torch.

    Raises ValueError listing every missing key, wrong shape and unexpected key; ``loss.*`` (the discriminator) is left out.
    """
    empty = jax.eval_shape(lambda: VQVAE(cfg, nnx.Rngs(0)))
    rows = table(empty)
    leaves, tree = jax.tree.flatten(empty, is_leaf=is_param)
    expected = {row.hf_name: shape_of(row.hf, _sizes(leaf)) for row, leaf in zip(rows, leaves, strict=True)}
    _check_shapes(expected, {name: tuple(value.shape) for name, value in state.items()})
    params = []
    for row, leaf in zip(rows, leaves, strict=True):
        value = np.asarray(state[row.hf_name], np.float32)
        params.append(leaf.replace(jnp.array(rearrange(value, row.hf, row.ours, _sizes(leaf)))))
    return jax.tree.unflatten(tree, params)


def to_torch(vqvae: VQVAE) -> dict[str, np.ndarray]:
    """The weights as {torch's name: f32 array in torch's layout}: the inverse of :func:`from_torch`."""
    state = {}
    for row, leaf in zip(table(vqvae), jax.tree.leaves(vqvae, is_leaf=is_param), strict=True):
        value = rearrange(np.asarray(leaf[...]), row.ours, row.hf, _sizes(leaf))
        state[row.hf_name] = np.array(value, order="C")
    return state


def encoder_shapes(cfg: VQConfig) -> dict[str, tuple[int, ...]]:
    """{torch's name: shape} of what a Hugging Face checkpoint holds of the tokenizer: all but the decoder."""
    empty = jax.eval_shape(lambda: VQVAE(cfg, nnx.Rngs(0)))
    leaves = jax.tree.leaves(empty, is_leaf=is_param)
    shapes = {row.hf_name: shape_of(row.hf, _sizes(leaf)) for row, leaf in zip(table(empty), leaves, strict=True)}
    return {name: shape for name, shape in shapes.items() if not name.startswith("decoder.")}


def load_vqvae(path: str | Path) -> VQVAE:
    """The tokenizer at ``path``: a vqgan.ckpt with its vqgan.yaml beside it, or a folder that holds both.

    They may also lie in the folder's tokenizer/ or original_tokenizers/. Raises FileNotFoundError, ValueError for files that
    do not fit each other, ImportError without torch, which only this reader and :func:`save_vqvae` need.
    """
    checkpoint = find_vqgan(Path(path))
    cfg = read_config(checkpoint.with_suffix(".yaml"))
    tensors = {name: array for name, array in open_tensors(checkpoint).items() if not name.startswith("loss.")}
    try:
        return from_torch(cfg, tensors)
    except ValueError as error:
        raise InputError(f"{checkpoint}: {error}") from None


def load_image_tokenizer(path: str | Path) -> ImageTokenizer:
    """The image tokenizer at ``path``: a PatchVQ .npz, a vqgan.ckpt, or a folder that holds either. Raises as their readers do."""
    file = Path(path)
    if (file / PATCHVQ_NAME).is_file():
        file /= PATCHVQ_NAME
    return PatchVQ.load(file) if file.suffix == ".npz" else load_vqvae(file)


def save_vqvae(vqvae: VQVAE, folder: str | Path) -> None:
    """Writes vqgan.ckpt and vqgan.yaml into ``folder`` (made if need be), as Chameleon's own code reads them."""
    torch = need_torch("writing a vqgan.ckpt")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    state = {name: torch.from_numpy(value) for name, value in to_torch(vqvae).items()}
    torch.save({"state_dict": state}, folder / "vqgan.ckpt")
    write_config(vqvae.cfg, folder / "vqgan.yaml")


def read_config(path: str | Path) -> VQConfig:
    """A vqgan.yaml -> VQConfig. Raises FileNotFoundError, or ValueError for a field missing or not Chameleon's."""
    path = Path(path)
    if not path.is_file():
        raise MissingFileError(f"no {path}; the tokenizer's sizes stand there: put it beside its .ckpt")
    try:
        params = yaml.safe_load(path.read_text())["model"]["params"]
        sizes = params["ddconfig"]
        wrong = {name: sizes[name] for name, value in FIXED.items() if sizes.get(name, value) != value}
        if wrong:
            raise InputError(f"{path}: {wrong} is not supported; Chameleon's tokenizer has {FIXED}")
        return VQConfig(
            codes=params["n_embed"],
            embed=params["embed_dim"],
            latent=sizes["z_channels"],
            base=sizes["ch"],
            multipliers=tuple(sizes["ch_mult"]),
            res_blocks=sizes["num_res_blocks"],
            attn_resolutions=tuple(sizes["attn_resolutions"]),
            resolution=sizes["resolution"],
        )
    except (KeyError, TypeError) as error:
        raise InputError(f"{path} is no vqgan.yaml: {error} where model.params and its ddconfig should be") from None


def write_config(cfg: VQConfig, path: str | Path) -> None:
    """VQConfig -> a vqgan.yaml. The original deletes ``ckpt_path`` and ``lossconfig`` after reading, so both stand there."""
    sizes = {
        "z_channels": cfg.latent,
        "resolution": cfg.resolution,
        "ch": cfg.base,
        "ch_mult": list(cfg.multipliers),
        "num_res_blocks": cfg.res_blocks,
        "attn_resolutions": list(cfg.attn_resolutions),
        "dropout": 0.0,
        **FIXED,
    }
    params = {
        "embed_dim": cfg.embed,
        "n_embed": cfg.codes,
        "ddconfig": sizes,
        "ckpt_path": "",
        "lossconfig": {"target": "taming.modules.losses.DummyLoss"},
    }
    Path(path).write_text(yaml.safe_dump({"model": {"target": "taming.models.vqgan.VQModel", "params": params}}))


def _row(path: tuple, leaf: nnx.Param) -> Row:
    parts = [jax.tree_util.keystr((key,), simple=True) for key in path]
    names = TORCH_NAMES | HALF_NAMES.get(parts[0], {})
    letters = " ".join(leaf.letters)
    torch_name = ".".join(names.get(part, part) for part in parts)
    return Row("/".join(parts), letters, torch_name, TORCH_LAYOUTS.get(letters, letters))


def _sizes(leaf: nnx.Param) -> dict[str, int]:
    return dict(zip(leaf.letters, leaf.shape, strict=True))


def _check_shapes(expected: dict[str, tuple[int, ...]], found: dict[str, tuple[int, ...]]) -> None:
    problems = [f"missing: {name} {shape}" for name, shape in expected.items() if name not in found]
    for name, shape in found.items():
        if name not in expected and not name.startswith("loss."):
            problems.append(f"unexpected: {name} {shape}")
        elif name in expected and shape != expected[name]:
            problems.append(f"wrong shape: {name} is {shape}, its config says {expected[name]}")
    if problems:
        raise InputError("the weights are not those of a tokenizer of this config:\n  " + "\n  ".join(problems))


def find_vqgan(path: Path) -> Path:
    """The vqgan.ckpt at ``path`` or where a release keeps it in that folder; else FileNotFoundError naming the places."""
    if path.is_file():
        return path
    places = [path / folder / "vqgan.ckpt" for folder in FOLDERS]
    for place in places:
        if place.is_file():
            return place
    raise MissingFileError(f"no vqgan.ckpt in {path}; looked at {', '.join(map(str, places))}")
