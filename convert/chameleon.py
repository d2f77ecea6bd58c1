"""The decoder read from and written to any checkpoint layout, as a model in memory."""

from pathlib import Path

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from convert.convert import atomic_folder, open_source, target_dtypes, write
from convert.metadata import Target
from convert.orbax_folder import stack, stacked_form
from convert.pictures import image_layout_of
from convert.sources import VQ_PATH, dtype_examples, vq_rows, vq_sizes
from convert.table import ROWS, Index, WeightRow, rearrange, sizes_of
from convert.target_sizes import known_size, target_size_of
from convert.tokenizer_files import TokenizerFiles
from convert.vqvae import encoder_shapes, to_torch
from lumina_jax.config import MeshConfig, ModelConfig
from lumina_jax.errors import InputError
from lumina_jax.model.chameleon import Chameleon
from lumina_jax.model.vqvae import VQVAE
from lumina_jax.places import Place, place
from lumina_jax.sharding import make_mesh
from lumina_jax.train.checkpoint import flatten, unflatten
from lumina_jax.vocab import IMAGE_LAYOUTS, ImageLayout


class ModelSource:
    """A model in memory behind the interface of a checkpoint, with the encoder of ``vqvae`` if one is passed."""

    layout = "ours"

    def __init__(self, model: Chameleon, cfg: ModelConfig, vqvae: VQVAE | None = None):
        self.folder, self.cfg, self.settings = Path("the model"), cfg, {}
        self.vq = vqvae.cfg if vqvae else None
        encoder = encoder_shapes(vqvae.cfg) if vqvae else {}
        vq_weights = to_torch(vqvae) if vqvae else {}
        self._weights = flatten(model) | {VQ_PATH + name: array for name, array in vq_weights.items()}
        self.rows = (*ROWS, *vq_rows(encoder))
        self.sizes = {row.path: sizes_of(cfg, row) for row in ROWS} | vq_sizes(encoder)
        self.dtypes = {row.path: np.dtype(self._weights[row.path].dtype) for row in self.rows}
        self.dtype_examples = dtype_examples(self.dtypes)

    def read(self, row: WeightRow, layer: int, index: Index) -> np.ndarray:
        weight = self._weights[row.path]
        array = np.asarray(weight[layer] if row.per_layer else weight)
        return rearrange(array, row.axes, row.axes, self.sizes[row.path], index)


def load_model(path: str | Place, mesh: Mesh | None = None, dtype: str = "") -> tuple[Chameleon, ModelConfig]:
    """The model at ``path``, in any layout: Hugging Face as Lumina-mGPT or transformers saves it, Meta's, or Orbax.

    Weights keep their dtype unless ``dtype`` names one: "float32" or "fp32", "bfloat16" or "bf16", "float16" or "fp16". They are
    placed on ``mesh`` (default: the first device); each process reads only the parts of its own devices. Raises MissingFileError
    for an absent file, StorageError for an unreadable one, InputError for another name of a dtype, and listing weights that are
    missing, unknown, misshapen or of several dtypes.
    """
    source = open_source(path)
    dtypes = target_dtypes(source, dtype)
    mesh = mesh or make_mesh(MeshConfig(fsdp=1), jax.local_devices()[:1])
    shapes = jax.eval_shape(lambda: Chameleon(source.cfg, nnx.Rngs(0)))
    arrays = {row.path: stack(source, row, source.read, dtypes[row.path], mesh) for row in ROWS}
    return unflatten(shapes, arrays), source.cfg


def model_form(path: str | Place, mesh: Mesh | None = None, dtype: str = "") -> Chameleon:
    """The shapes, dtypes and placements of the weights that :func:`load_model` returns; only headers are read."""
    source = open_source(path)
    dtypes = target_dtypes(source, dtype)
    mesh = mesh or make_mesh(MeshConfig(fsdp=1), jax.local_devices()[:1])
    shapes = jax.eval_shape(lambda: Chameleon(source.cfg, nnx.Rngs(0)))
    return unflatten(shapes, {row.path: stacked_form(source, row, dtypes[row.path], mesh) for row in ROWS})


def target_size(path: str | Place, option: int | None = None) -> int:
    """The target size in px of the checkpoint at ``path``, whose square is the largest area of the pictures that it was trained on.

    It is ``option`` if given, else what the checkpoint records, that of its experiment, or that of the released checkpoint whose
    name it has. lumina_jax.sample.prompt.data_of makes of it what a PromptBuilder takes. Raises InputError where nothing tells it.
    """
    return known_size(target_size_of(open_source(path), option), path, "the caller")


def image_layout(path: str | Place, option: str = "") -> ImageLayout:
    """How pictures stand in the sequences of the checkpoint at ``path``, for ``Vocab.load(..., image_layout)``.

    It is ``option`` ("lumina" or "chameleon") if given, else what the checkpoint records, or that of its family
    (convert.pictures, whose ``fitted`` adds what only the weights tell). Raises InputError where nothing tells it.
    """
    found = image_layout_of(open_source(path), option)
    if found.image_layout is None:
        raise InputError(f"{path}: nothing tells its image layout; choose one of {', '.join(IMAGE_LAYOUTS)}")
    return found.image_layout


def save_model(
    model: Chameleon,
    cfg: ModelConfig,
    path: str | Place,
    layout: str = "hf",
    shards: int | None = None,
    vqvae: VQVAE | None = None,
) -> None:
    """Writes ``model`` into the folder ``path``; a checkpoint in it is replaced once the new one is complete.

    ``layout`` is "hf" (QK-norm rows per head, as transformers reads them), "lumina" (per group, as Lumina-mGPT does) or
    "meta" (consolidated*.pth and params.json). ``shards`` is the number of files: by default one per 5 GB, or for Meta's
    layout one per QK-norm group. With ``vqvae``, "hf" contains the VQ encoder that transformers expects in a checkpoint. Raises
    InputError for a model that the layout cannot represent, StorageError, MissingPackageError without torch ("meta" only).
    """
    if layout == "ours":
        raise InputError("layout='ours' is written by run.py train or convert import; choose hf, lumina or meta")
    source = ModelSource(model, cfg, vqvae if layout == "hf" else None)
    with atomic_folder(place(path), replace=True) as folder:
        write(source, TokenizerFiles(), folder, Target(layout, shards), show=False)
