"""What is written beside the weights: config.json or params.json, an index of files, or the metadata of an Orbax checkpoint."""

import json
from dataclasses import dataclass, replace

import numpy as np

from convert.errors import field_errors, write_errors
from convert.orbax_folder import ORIGIN, OrbaxSource
from convert.settings import hugging_face_settings, meta_params, read_json, vq_settings
from convert.sources import Checkpoint
from convert.tensor_files import INDEX_SUFFIX, WEIGHT_FILES
from convert.tokenizer_files import TokenizerFiles
from convert.torch_files import PlannedFile, index_of
from convert.vqvae import read_config
from lumina_jax.config import Experiment, VQConfig, from_dict, to_dict
from lumina_jax.places import Place
from lumina_jax.train.checkpoint import EXPERIMENT

EXPERIMENT_FILE = "experiment.json"
"""In a run's export: the experiment that trained the weights."""
TARGET_SIZE = "target_size"
"""The field of config.json, of params.json and of an imported checkpoint's origin that records the target size in px."""
SNAPSHOTS = "snapshots"
"""The folder of Hugging Face's cache in models--OWNER--NAME/snapshots/HASH."""
IMAGE_LAYOUT = "image_layout"
"""The field beside it that records by which rule pictures stand in sequences, a name of vocab.IMAGE_LAYOUTS."""
CHAMELEON_IMAGE, TRANSFORMERS_IMAGE = "<reserved08707>", "<image>"
"""Names of the token that stands for a picture in a prompt."""


@dataclass(frozen=True)
class Target:
    """What to write: the ``layout``, the number of files (None: the layout's default), the ``dtype``.

    The dtype is a name of numbers.DTYPES, or "" for the one that the weights have. ``binary`` selects torch's .bin files in place
    of safetensors. ``zero_image_head`` zeroes the image tokens' rows of the output head, from which FP-SFT starts (original: the
    Chameleon_*_mGPT checkpoints). ``tokenizer`` and ``vq`` are paths of files that are not near the weights. ``target_size`` in px
    is recorded; None records what is known of the source's (convert.target_sizes). So is ``image_layout``, a name of
    vocab.IMAGE_LAYOUTS; "" records what is known of the source's (convert.pictures).
    """

    layout: str
    shards: int | None = None
    dtype: str = ""
    binary: bool = False
    zero_image_head: bool = False
    tokenizer: str = ""
    vq: str = ""
    target_size: int | None = None
    image_layout: str = ""


def experiment_of(source: Checkpoint) -> Experiment | None:
    """The experiment that trained the weights, of a run or of a run's export; None for weights from elsewhere."""
    if isinstance(source, OrbaxSource):
        return source.experiment if source.settings.get("trained_here", True) else None
    file = source.folder / EXPERIMENT_FILE
    if not file.is_file():
        return None
    fields = read_json(file)
    with field_errors(file):
        return from_dict(Experiment, fields)


def orbax_metadata(source: Checkpoint, files: TokenizerFiles, target: Target) -> dict:
    """The metadata of an imported checkpoint: an experiment with its model, and where the weights came from."""
    experiment, folder = experiment_of(source), source.folder.resolve()
    name = folder.parents[1].name if folder.parent.name == SNAPSHOTS else folder.name
    settings = dict(_other_settings(source))
    for recorded in (TARGET_SIZE, IMAGE_LAYOUT):
        settings.pop(recorded, None)
    if files.tokenizer:
        settings.pop("vocabulary_map", None)  # the tokenizer's file has it
    origin = {
        "layout": source.layout,
        "name": name,
        "trained_here": experiment is not None,
        "zero_image_head": _has_zeroed_head(source, target),
        "settings": settings,
        **_pictures(target),
    }
    if experiment is None:
        has_sizes = files.vq and files.vq.suffix == ".ckpt"
        vq = read_config(files.vq.with_suffix(".yaml")) if has_sizes else VQConfig()
        experiment = Experiment(name=name, model=source.cfg, vq=vq)
    return {EXPERIMENT: to_dict(_without_paths(experiment)), ORIGIN: origin}


def write_settings(
    folder: Place,
    source: Checkpoint,
    files: TokenizerFiles,
    planned: list[PlannedFile],
    dtype: np.dtype,
    target: Target,
) -> None:
    """Writes the settings of a PyTorch checkpoint: Meta's params files, or config.json and the index of several weight files."""
    if target.layout == "meta":
        params, consolidate = meta_params(source.cfg, len(planned))
        _write_json(folder / "params.json", params | _pictures(target))
        _write_json(folder / "consolidate_params.json", consolidate)
        return
    base = dict(_other_settings(source))
    vocab = files.vocab()
    if vocab and not base.get("vocabulary_map"):
        names = vocab.names(source.cfg.vocab)
        if TRANSFORMERS_IMAGE not in names:
            names = {TRANSFORMERS_IMAGE if name == CHAMELEON_IMAGE else name: i for name, i in names.items()}
        base["vocabulary_map"] = names
    if source.vq:
        base["vq_config"] = vq_settings(source.vq)
    settings = hugging_face_settings(source.cfg, dtype, target.layout, base) | _pictures(target)
    if _has_zeroed_head(source, target):
        settings["zero_image_head"] = True
    _write_json(folder / "config.json", settings)
    if len(planned) > 1:
        _write_json(folder / (WEIGHT_FILES[target.binary] + INDEX_SUFFIX), index_of(planned))
    if experiment := experiment_of(source):
        _write_json(folder / EXPERIMENT_FILE, to_dict(_without_paths(experiment)))


def _without_paths(experiment: Experiment) -> Experiment:
    """The experiment without the paths of the machine that trained it."""
    data, vq = replace(experiment.data, path="", weights=(), tokenizer=""), replace(experiment.vq, path="")
    return replace(experiment, out="", start="", data=data, vq=vq)


def _pictures(target: Target) -> dict[str, int | str]:
    """The fields that record target size and image layout, as far as there is something to record."""
    fields = {TARGET_SIZE: target.target_size, IMAGE_LAYOUT: target.image_layout}
    return {name: value for name, value in fields.items() if value}


def _has_zeroed_head(source: Checkpoint, target: Target) -> bool:
    """Whether the image rows of the output head are zero: by this conversion, or as the source's settings record."""
    return target.zero_image_head or bool(source.settings.get("zero_image_head"))


def _other_settings(source: Checkpoint) -> dict:
    """The fields of config.json that ModelConfig does not determine; a checkpoint imported from Hugging Face keeps them."""
    if source.layout in ("hf", "lumina"):
        return source.settings
    return source.settings.get("settings", {}) if source.layout == "ours" else {}


def _write_json(file: Place, content: dict) -> None:
    with write_errors(file):
        file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
