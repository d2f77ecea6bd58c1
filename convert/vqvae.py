"""Chameleon's image tokenizer files (vqgan.ckpt and vqgan.yaml) to and from VQVAE, by one table read in both directions."""

import zipfile
import zlib
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
import yaml
from flax import nnx

from convert.errors import field_errors, read_errors, write_errors
from convert.settings import NOT_WEIGHTS, read_fields
from convert.table import WeightRow, rearrange, shape_of
from convert.tensor_files import open_tensors
from convert.tensor_formats import need_torch
from lumina_jax.config import VQConfig
from lumina_jax.errors import InputError, MissingFileError
from lumina_jax.model.image_tokenizer import ImageTokenizer
from lumina_jax.model.params import is_param
from lumina_jax.model.patchvq import PatchVQ
from lumina_jax.model.vqvae import VQVAE
from lumina_jax.places import Place, below, place
from lumina_jax.storage import atomic_write
from lumina_jax.vocab import FOLDERS

VQGAN_NAME = "vqgan.ckpt"
"""File name of Chameleon's image tokenizer; its sizes are in the .yaml file beside it."""
PATCHVQ_NAME = "vq.npz"
"""File name of a PatchVQ."""

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
"""lumina_jax's name of a module or weight -> torch's, where they differ."""

HALF_NAMES = {
    "encoder": {"levels": "down", "resample": "downsample.conv"},
    "decoder": {"levels": "up", "resample": "upsample.conv"},
}
"""The same for what encoder and decoder name differently."""

TORCH_AXES = {"h w i o": "o i h w"}
"""lumina_jax's axes -> torch's, where they differ."""

DECODER = "decoder."
"""Torch's names of the decoder's weights begin with this."""

FIXED = {"double_z": False, "in_channels": 3, "out_ch": 3}
"""Fields with one value in Chameleon's tokenizer, which VQConfig therefore does not have."""

YAML_NAMES = {
    **dict(codes="n_embed", embed="embed_dim", latent="z_channels", base="ch", multipliers="ch_mult"),
    **dict(res_blocks="num_res_blocks", attn_resolutions="attn_resolutions", resolution="resolution"),
}
"""VQConfig's fields in vqgan.yaml, in params (the first two) or in its ddconfig."""


def table(vqvae: VQVAE) -> list[WeightRow]:
    """One row for every weight of ``vqvae``, with or without values, in the order of its leaves."""
    return [row for row, _ in _weights(vqvae)]


def from_torch(cfg: VQConfig, state: Mapping[str, np.ndarray], decodes: bool = True) -> VQVAE:
    """A VQVAE with the arrays of ``state``, in torch's names and axes; needs no torch.

    With ``decodes`` false ``state`` has no decoder, and the VQVAE can only encode. Raises InputError listing every missing key,
    wrong shape and unexpected key; ``loss.*`` (the discriminator) is ignored.
    """
    empty = _empty(cfg)
    if not decodes:
        empty.decoder = None
    _check_shapes(_torch_shapes(empty), {name: tuple(array.shape) for name, array in state.items()})

    def read(path: tuple, leaf: nnx.Param) -> nnx.Param:
        row = _row(path, leaf)
        array = np.asarray(state[row.hf_name], np.float32)
        return leaf.replace(jnp.array(rearrange(array, row.hf_axes, row.axes, _sizes(leaf), {})))

    return jax.tree_util.tree_map_with_path(read, empty, is_leaf=is_param)


def to_torch(vqvae: VQVAE) -> dict[str, np.ndarray]:
    """The weights as {torch's name: f32 array in torch's axes}: the inverse of :func:`from_torch`."""
    state = {}
    for row, leaf in _weights(vqvae):
        array = rearrange(np.asarray(leaf[...]), row.axes, row.hf_axes, _sizes(leaf), {})
        state[row.hf_name] = np.array(array, order="C")
    return state


def encoder_shapes(cfg: VQConfig) -> dict[str, tuple[int, ...]]:
    """{torch's name: shape} of the tokenizer's weights in a Hugging Face checkpoint: all but the decoder's."""
    shapes = _torch_shapes(_empty(cfg))
    return {name: shape for name, shape in shapes.items() if not name.startswith(DECODER)}


def load_vqvae(path: str | Place) -> VQVAE:
    """The tokenizer at ``path``: a vqgan.ckpt with its vqgan.yaml beside it, or a folder that holds both.

    In a folder its tokenizer/ and original_tokenizers/ are searched as well. Raises MissingFileError, InputError for files that do
    not fit each other, MissingPackageError without torch, which only this reader and :func:`save_vqvae` need.
    """
    checkpoint = find_file(place(path), VQGAN_NAME)
    cfg = read_config(checkpoint.with_suffix(".yaml"))
    try:
        return from_torch(cfg, open_tensors(checkpoint))
    except InputError as error:
        raise InputError(f"{checkpoint}: {error}") from None


def load_image_tokenizer(path: str | Place) -> ImageTokenizer:
    """The image tokenizer at ``path``: a PatchVQ .npz, a vqgan.ckpt, or a folder that holds either.

    Raises InputError for a damaged .npz, StorageError for an unreadable one, otherwise as :func:`load_vqvae` does.
    """
    file = place(path)
    if (file / PATCHVQ_NAME).is_file():
        file /= PATCHVQ_NAME
    if file.suffix != ".npz":
        return load_vqvae(file)
    try:
        with read_errors(file):
            return PatchVQ.load(file)
    except InputError:
        raise
    except (ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise InputError(f"{file} is damaged ({error}); copy or write it again") from None


def save_vqvae(vqvae: VQVAE, folder: str | Place) -> None:
    """Writes vqgan.ckpt and vqgan.yaml into ``folder`` (created if need be), as Chameleon's own code reads them.

    Raises MissingPackageError without torch, StorageError naming the folder.
    """
    torch = need_torch(f"writing a {VQGAN_NAME}")
    checkpoint = place(folder) / VQGAN_NAME
    state = {name: torch.from_numpy(array) for name, array in to_torch(vqvae).items()}
    with write_errors(checkpoint, RuntimeError):
        with atomic_write(checkpoint) as temporary:
            torch.save({"state_dict": state}, temporary)
        write_config(vqvae.cfg, checkpoint.with_suffix(".yaml"))


def read_config(path: str | Place) -> VQConfig:
    """A vqgan.yaml -> VQConfig. Raises MissingFileError, or InputError for a field that is missing or not Chameleon's."""
    path = place(path)
    with field_errors(path), read_errors(path):
        if not path.is_file():
            raise MissingFileError(f"no {path}; it holds the tokenizer's sizes: put it beside its .ckpt")
        try:
            params = yaml.safe_load(path.read_text(encoding="utf-8"))["model"]["params"]
        except yaml.YAMLError as error:
            raise InputError(f"not YAML ({' '.join(str(error).split())}); fetch or write it again") from None
        sizes = {**params, **params["ddconfig"]}
        if wrong := {name: sizes[name] for name, value in FIXED.items() if sizes.get(name, value) != value}:
            raise InputError(f"{wrong} is not supported; Chameleon's tokenizer has {FIXED}")
        return VQConfig(**read_fields(sizes, YAML_NAMES, {}))


def write_config(cfg: VQConfig, path: str | Place) -> None:
    """VQConfig -> a vqgan.yaml. The original's reader deletes ``ckpt_path`` and ``lossconfig``, so both must be present."""
    values = {name: getattr(cfg, ours) for ours, name in YAML_NAMES.items()}
    lists = {"ch_mult": list(cfg.multipliers), "attn_resolutions": list(cfg.attn_resolutions)}
    embed = {name: values.pop(name) for name in ("n_embed", "embed_dim")}
    loss = {"target": "taming.modules.losses.DummyLoss"}
    params = {**embed, "ddconfig": {**values, **lists, "dropout": 0.0, **FIXED}, "ckpt_path": "", "lossconfig": loss}
    place(path).write_text(yaml.safe_dump({"model": {"target": "taming.models.vqgan.VQModel", "params": params}}))


def _empty(cfg: VQConfig) -> VQVAE:
    """A VQVAE of shapes."""
    return jax.eval_shape(lambda: VQVAE(cfg, nnx.Rngs(0)))


def _torch_shapes(vqvae: VQVAE) -> dict[str, tuple[int, ...]]:
    return {row.hf_name: shape_of(row.hf_axes, _sizes(leaf)) for row, leaf in _weights(vqvae)}


def _weights(vqvae: VQVAE) -> list[tuple[WeightRow, nnx.Param]]:
    """Each weight with its row of the table."""
    return [(_row(*item), item[1]) for item in jax.tree_util.tree_leaves_with_path(vqvae, is_leaf=is_param)]


def _row(path: tuple, leaf: nnx.Param) -> WeightRow:
    keys = [jax.tree_util.keystr((key,), simple=True) for key in path]
    names = TORCH_NAMES | HALF_NAMES.get(keys[0], {})
    axes = " ".join(leaf.letters)
    torch_name = ".".join(names.get(key, key) for key in keys)
    return WeightRow("/".join(keys), axes, torch_name, TORCH_AXES.get(axes, axes))


def _sizes(leaf: nnx.Param) -> dict[str, int]:
    return dict(zip(leaf.letters, leaf.shape, strict=True))


def _check_shapes(expected: dict[str, tuple[int, ...]], actual: dict[str, tuple[int, ...]]) -> None:
    problems = [f"missing: {name} {shape}" for name, shape in expected.items() if name not in actual]
    for name, shape in actual.items():
        if name not in expected and not name.startswith(NOT_WEIGHTS):
            problems.append(f"unexpected: {name} {shape}")
        elif name in expected and shape != expected[name]:
            problems.append(f"wrong shape: {name} is {shape}, its config says {expected[name]}")
    if problems:
        raise InputError("the weights are not those of a tokenizer of this config: " + "; ".join(problems))


def find_file(path: Place, *names: str) -> Place:
    """``path`` if it is a file, else the first file of ``names`` in that folder. Raises MissingFileError naming the paths tried."""
    candidates = [path] if path.is_file() else [below(path, f"{folder}/{name}") for folder in FOLDERS for name in names]
    if file := next((candidate for candidate in candidates if candidate.is_file()), None):
        return file
    raise MissingFileError(f"no {' or '.join(names)} in {path}; looked at {', '.join(map(str, candidates))}")
