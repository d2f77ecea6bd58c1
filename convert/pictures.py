"""How the pictures of a checkpoint stand in its token sequences, and the encoder of the image tokenizer that it may carry."""

from dataclasses import dataclass, replace

import numpy as np

from convert.errors import field_errors
from convert.metadata import IMAGE_LAYOUT, TARGET_SIZE, experiment_of
from convert.settings import read_json, vq_config
from convert.sources import VQ_PATH, Checkpoint
from convert.target_sizes import folder_names, names_of
from convert.vqvae import from_torch
from lumina_jax.config import VQConfig
from lumina_jax.errors import InputError
from lumina_jax.model.chameleon import Chameleon
from lumina_jax.model.image_tokenizer import EncoderOnly, ImageTokenizer
from lumina_jax.places import Place
from lumina_jax.released import is_chameleon, released_as
from lumina_jax.sample.guidance import code_ids, columns
from lumina_jax.vocab import CHAMELEON, IMAGE_LAYOUTS, UNI_REP, ImageLayout, Vocab

PROCESSOR_FILES = ("processor_config.json", "preprocessor_config.json")
"""Files of transformers' checkpoints, of which those of Chameleon name its processor."""
ZERO_HEAD = (
    "the image tokens' rows of its output head are all zero, which disables image output; take a model of Lumina-mGPT, or train "
    "this one on pictures (run.py train ... start=FOLDER)"
)
NO_DECODER = (
    "it has the encoder of its image tokenizer alone; name the vqgan.ckpt of Meta's Chameleon release with --vq"
)


@dataclass(frozen=True)
class FoundLayout:
    """The image layout of a checkpoint, None where nothing tells it; the ``reason`` in words; and a ``line`` that a person should
    know where it is an assumption or a contradiction, else ""."""

    image_layout: ImageLayout | None
    reason: str
    line: str = ""

    @property
    def is_chameleon(self) -> bool:
        """Whether pictures stand as in Chameleon's own sequences."""
        return self.image_layout is not None and self.image_layout.name == CHAMELEON.name


def image_layout_of(source: Checkpoint, option: str = "", target_size: int | None = None) -> FoundLayout:
    """The image layout of a checkpoint: ``option``, what its metadata record, or that of the family it belongs to.

    A model that was trained here, has a target size or the name of a release follows Uni-Rep. Chameleon's own are known by the
    name of their folder, by Meta's files, and by the processor and the image encoder that transformers keeps. Raises InputError
    for an unknown layout, and for a ``target_size``, which only Uni-Rep has, of a Chameleon.
    """
    found = _recorded(source) or _of_lumina(source) or _of_chameleon(source)
    if option:
        found = _given(option, source, found)
    if target_size is None:
        return found or FoundLayout(None, "nothing tells it")
    if found and found.is_chameleon:
        raise InputError(
            f"a target size of {target_size} for {source.folder}, whose pictures all have one size, for its image layout is "
            f"Chameleon's own, {found.reason}; leave the target size out, or say --image-layout {UNI_REP.name}"
        )
    return found or FoundLayout(UNI_REP, "by its target size")


def of_tokenizer(image_layout: ImageLayout, vq: ImageTokenizer) -> ImageLayout:
    """``image_layout`` with the shape that the image tokenizer was made for, where all pictures have one."""
    cfg = getattr(vq.tokenizer if isinstance(vq, EncoderOnly) else vq, "cfg", VQConfig())
    fixed = image_layout.shape is not None
    return replace(image_layout, shape=(cfg.resolution // vq.stride,) * 2) if fixed else image_layout


def fitted(image_layout: ImageLayout, model: Chameleon, vocab: Vocab, vq: ImageTokenizer) -> ImageLayout:
    """``image_layout`` for this model: the shape that its image tokenizer was made for, and whether answers can hold pictures."""
    reads_only = isinstance(vq, EncoderOnly)
    image_layout = of_tokenizer(image_layout, vq)
    head = columns(model.head[...], code_ids(vocab, model.cfg.vocab))
    return replace(image_layout, no_pictures=ZERO_HEAD if not head.any() else NO_DECODER * reads_only)


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


def _given(option: str, source: Checkpoint, found: FoundLayout | None) -> FoundLayout:
    """The layout ``option``, with a line where it contradicts the one that was ``found``."""
    image_layout, line = _named(option), ""
    if found and found.image_layout.name != option:
        line = (
            f"{source.folder}: the image layout {option} that was given takes the place of {found.image_layout.name}, "
            f"{found.reason}"
        )
    return FoundLayout(image_layout, "as given", line)


def _recorded(source: Checkpoint) -> FoundLayout | None:
    name = source.settings.get(IMAGE_LAYOUT)
    if name is None:
        return None
    with field_errors(source.folder):
        return FoundLayout(_named(name), "which its metadata record")


def _named(name: str) -> ImageLayout:
    if name not in IMAGE_LAYOUTS:
        raise InputError(f"{IMAGE_LAYOUT} is {name!r}; choose one of {', '.join(IMAGE_LAYOUTS)}")
    return IMAGE_LAYOUTS[name]


def _of_lumina(source: Checkpoint) -> FoundLayout | None:
    if experiment := experiment_of(source):
        return FoundLayout(UNI_REP, f"that of its experiment {experiment.name}")
    if source.settings.get(TARGET_SIZE) is not None:
        return FoundLayout(UNI_REP, "by the target size that its metadata record")
    if release := released_as(names_of(source)):
        return FoundLayout(UNI_REP, f"that of {release.name}, whose name it has")
    return None


def _of_chameleon(source: Checkpoint) -> FoundLayout | None:
    origin = source.settings.get("layout", "") if source.layout == "ours" else source.layout
    # Not by the name in config.json, where a fine-tune of Chameleon has that of its start.
    if is_chameleon(folder_names(source)):
        reason = "whose name it has"
    elif origin == "meta":
        reason = "whose files it has"
    elif _has_processor(source.folder) and any(row.path.startswith(VQ_PATH) for row in source.rows):
        reason = "whose processor and image encoder it has"
    else:
        return None
    line = (
        f"{source.folder}: its image layout is recorded nowhere; that of Chameleon is assumed, {reason} "
        f"(another: --image-layout {UNI_REP.name})"
    )
    return FoundLayout(CHAMELEON, reason, line)


def _has_processor(folder: Place) -> bool:
    files = [folder / name for name in PROCESSOR_FILES if (folder / name).is_file()]
    kinds = [
        str(value) for file in files for name, value in read_json(file).items() if name.endswith(("_class", "_type"))
    ]
    return any(kind.startswith("Chameleon") for kind in kinds)
