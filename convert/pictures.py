"""How a checkpoint's pictures are read and written: the image tokenizer's encoder that it carries, and its image layout."""

import numpy as np

from convert.settings import vq_config
from convert.sources import VQ_PATH, Checkpoint
from convert.vqvae import from_torch
from lumina_jax.model.image_tokenizer import EncoderOnly


def carried_encoder(source: Checkpoint) -> EncoderOnly | None:
    """The encoder that a checkpoint of transformers holds (``model.vqmodel.*``), or one imported from it; None where there is none.

    Raises InputError where its sizes and its weights do not fit.
    """
    rows = [row for row in source.rows if row.path.startswith(VQ_PATH)]
    if not rows:
        return None
    settings = source.settings.get("settings", source.settings)  # an imported checkpoint keeps the config of its origin
    cfg = source.vq or vq_config(settings, source.folder)
    state = {row.path.removeprefix(VQ_PATH): np.array(source.read(row, 0, {})) for row in rows}
    return EncoderOnly(from_torch(cfg, state, decodes=False), str(source.folder))
