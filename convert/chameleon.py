"""The decoder in and out of any layout, as a model in memory."""

from pathlib import Path

import jax
from flax import nnx
from jax.sharding import Mesh

from convert.convert import Wish, dtypes_of, open_source, whole, write
from convert.orbax_folder import stack
from convert.sources import Memory
from convert.table import ROWS
from convert.tokenizer_files import Companions
from lumina_jax.config import MeshConfig, ModelConfig
from lumina_jax.errors import InputError
from lumina_jax.model.chameleon import Chameleon
from lumina_jax.model.params import is_param
from lumina_jax.model.vqvae import VQVAE
from lumina_jax.sharding import make_mesh


def load_model(path: str | Path, mesh: Mesh | None = None, dtype: str = "") -> tuple[Chameleon, ModelConfig]:
    """The model at ``path``, of any layout: Hugging Face as Lumina-mGPT or transformers saves it, Meta's, or our own.

    Weights keep their dtype unless ``dtype`` names one; they are placed on ``mesh`` (default: the first device), each process
    reading its own parts only. Raises FileNotFoundError for what is absent, ValueError listing weights that are missing,
    unknown, misshapen or of several dtypes.
    """
    source = open_source(path)
    dtypes = dtypes_of(source, dtype)
    mesh = mesh or make_mesh(MeshConfig(fsdp=1), jax.local_devices()[:1])
    rows = {row.path: row for row in ROWS}

    def value(path: tuple, param: nnx.Param) -> nnx.Param:
        row = rows[jax.tree_util.keystr(path, simple=True, separator="/")]
        return param.replace(stack(source, row, source.read, dtypes[row.path], mesh))

    shapes = jax.eval_shape(lambda: Chameleon(source.cfg, nnx.Rngs(0)))
    return jax.tree_util.tree_map_with_path(value, shapes, is_leaf=is_param), source.cfg


def save_model(
    model: Chameleon,
    cfg: ModelConfig,
    path: str | Path,
    layout: str = "hf",
    shards: int | None = None,
    vqvae: VQVAE | None = None,
) -> None:
    """Writes ``model`` into the folder ``path``; a checkpoint that lies there is replaced once the new one is whole.

    ``layout`` is "hf" (QK-norm rows per head, as transformers reads them), "lumina" (per group, as Lumina-mGPT does) or
    "meta" (consolidated*.pth and params.json). ``shards`` is the number of files: by default one per 5 GB, or for Meta's
    layout one per QK-norm group. A ``vqvae`` gives "hf" the VQ encoder that transformers expects in a checkpoint. Raises
    ValueError for what the layout cannot hold.
    """
    if layout == "ours":
        raise InputError(
            "layout='ours' is written by training, and by run.py convert import; choose hf, lumina or meta"
        )
    source = Memory(model, cfg, vqvae if layout == "hf" else None)
    with whole(Path(path), replace=True) as folder:
        write(source, Companions(None, None), folder, Wish(layout, shards), show=False)
