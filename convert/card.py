"""The page of a published model, README.md of its repository on the hub: what it is, whence, how to load and sample it, how it was
trained, what it scores."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from convert.card_parts import ROWS, SCORES, read_scores, score_table, table, training
from convert.convert import open_source
from convert.describe import dtype_names, parameters
from convert.errors import read_errors
from convert.metadata import experiment_of
from convert.origins import Origin, origin_of
from convert.pictures import image_layout_of
from convert.sources import Checkpoint
from convert.target_sizes import target_size_of
from lumina_jax.config import Experiment, SampleConfig
from lumina_jax.errors import InputError, MissingFileError
from lumina_jax.hub.client import need_hub
from lumina_jax.layout import crop_sizes
from lumina_jax.places import Place, copy_file, place
from lumina_jax.storage import atomic_write, storage_errors

CARD, PICTURES = "README.md", "pictures"
LICENSES = "LICENSE*"
SIZES_SHOWN = 5
"""As many sizes of pictures are listed; of more, three."""


@dataclass(frozen=True)
class CardRequest:
    """What a card says beyond what the checkpoint tells: the model's ``name``, that of its folder; ``license`` and ``base`` as in
    origins.origin_of; the file ``scores`` of run.py evaluate; the files of ``pictures``."""

    name: str
    license: str = ""
    base: str = ""
    scores: str = ""
    pictures: Sequence[str] = ()


@dataclass(frozen=True)
class Card:
    """The ``text`` of README.md, and the ``files`` beside it: {name in the folder: where it is}."""

    text: str
    files: dict[str, Place]

    def write(self, folder: str | Place) -> list[Place]:
        """Writes the card into ``folder`` and returns what was written. Raises ExistingFileError where a README.md is there."""
        target = place(folder)
        with atomic_write(target / CARD, new=True) as temporary:
            temporary.write_text(self.text, encoding="utf-8", newline="\n")
        for name, file in self.files.items():
            with storage_errors(target / name):
                copy_file(file, target / name)
        return [target / CARD, *(target / name for name in self.files)]


def model_card(path: str | Place, layout: str, request: CardRequest) -> Card:
    """The card of the checkpoint at ``path`` as it is exported in ``layout`` ("hf", "lumina" or "meta"); no weights are read.

    Raises InputError where its licence or origin is unknown, for scores that are no JSON of numbers, and MissingFileError.
    """
    source = open_source(path)
    origin, scores = origin_of(source, request.license, request.base), read_scores(request.scores)
    pictures = {f"{PICTURES}/{file.name}": file for file in map(_picture, request.pictures)}
    if len(pictures) < len(request.pictures):
        raise InputError("--pictures: two files have one name; give each a name of its own")
    files = dict(pictures) | ({SCORES: place(request.scores)} if request.scores else {})
    with read_errors(source.folder):
        files |= {file.name: file for file in source.folder.glob(LICENSES) if file.is_file()}
    parts = [
        *_description(source, layout, request.name, origin),
        *_loading(source, layout, request.name),
        *_sampling(source),
        *training(source),
        *score_table(scores),
        *(["## Pictures", *(f"![{name}]({name})" for name in pictures)] if pictures else []),
        *_license(origin, files),
    ]
    return Card(
        f"---\n{_front_matter(source, layout, request.name, origin, scores)}\n---\n\n" + "\n\n".join(parts) + "\n",
        files,
    )


def _front_matter(source: Checkpoint, layout: str, name: str, origin: Origin, scores: dict[str, float]) -> str:
    """The YAML that the hub reads, made by its own client, which checks it."""
    hub, chameleon = need_hub(), image_layout_of(source).is_chameleon
    results = [
        hub.EvalResult(
            task_type="text-to-image",
            dataset_type="custom",
            dataset_name=key.split(" / ")[0],
            metric_type=key,
            metric_value=value,
        )
        for key, value in [*scores.items()][:ROWS]
    ]
    data = hub.ModelCardData(
        license=origin.license.identifier,
        license_name=origin.license.name or None,
        license_link=origin.license.link or None,
        base_model=origin.base or None,
        pipeline_tag="image-text-to-text" if chameleon else "any-to-any",
        library_name="transformers" if layout == "hf" else "lumina-jax",
        language="en",
        tags=["chameleon" if chameleon else "lumina-mgpt", "lumina-jax", *([] if chameleon else ["text-to-image"])],
        model_name=name if results else None,
        eval_results=results or None,
    )
    return data.to_yaml()


def _description(source: Checkpoint, layout: str, name: str, origin: Origin) -> Iterator[str]:
    yield f"# {name}"
    what = "Lumina-mGPT: one decoder-only transformer that reads and paints pictures and text as tokens"
    if image_layout_of(source).is_chameleon:
        what = "Chameleon: one decoder-only transformer over tokens of text and pictures"
    made = (
        f"made from [{origin.base}](https://huggingface.co/{origin.base})"
        if origin.base
        else "trained from random weights"
    )
    if experiment_of(source) is None and origin.base:
        made = f"the weights of [{origin.base}](https://huggingface.co/{origin.base}), converted"
    size = f"{parameters(source.cfg):,} parameters, {source.cfg.layers} layers of width {source.cfg.width:,}"
    yield (
        f"{what}; {made}, with lumina_jax. {size}, vocabulary of {source.cfg.vocab:,}; stored as {dtype_names(source)} in the "
        f"layout `{layout}`."
    )


def _loading(source: Checkpoint, layout: str, name: str) -> Iterator[str]:
    size = target_size_of(source).size
    target = f", target_size={size}" if size else ""
    yield "## Load it"
    yield (
        "With lumina_jax, from this repository or a local copy of it (put its owner in the place of OWNER):\n\n"
        f'```bash\npython run.py sample --model hf://OWNER/{name} --prompt "A lighthouse at dusk."\n'
        f"python run.py convert import hf://OWNER/{name} out/{name}  # to train on: start=out/{name}\n```"
    )
    if layout == "lumina":
        yield (
            "With the original code of Lumina-mGPT (its `inference_solver.py`; put `text_tokenizer.json`, `vqgan.ckpt` and "
            f"`vqgan.yaml` where its README says):\n\n```python\n"
            f'FlexARInferenceSolver(model_path="OWNER/{name}", precision="bf16"{target})\n```'
        )
    elif layout == "hf":
        yield (
            "With transformers, which reads pictures and writes text and paints none:\n\n```python\n"
            "from transformers import ChameleonForConditionalGeneration\n\n"
            f'model = ChameleonForConditionalGeneration.from_pretrained("OWNER/{name}", dtype="auto")\n```'
        )
    else:
        yield "With Meta's own code: `models/` and `tokenizer/` are laid out as in its release of Chameleon."


def _sampling(source: Checkpoint) -> Iterator[str]:
    experiment = experiment_of(source)
    settings = experiment.sample if experiment else SampleConfig()
    lines = {
        "guidance": f"{settings.guidance:g}",
        "temperature": f"{settings.temperature:g}",
        "top-k of image tokens": f"{settings.image_top_k:,}",
        "top-k of text tokens": f"{settings.text_top_k:,}",
        "min-p": f"{settings.min_p:g}" if settings.min_p else "off",
        "most new tokens": f"{settings.max_new_tokens:,}",
    }
    if size := target_size_of(source).size:
        data = experiment.data if experiment else Experiment().data
        sizes = [f"{width}x{height}" for width, height in crop_sizes(size, data.patch, data.max_ratio)]
        middle = len(sizes) // 2
        shown = [sizes[0], sizes[middle], sizes[-1]] if len(sizes) > SIZES_SHOWN else sizes
        lines["sizes (width x height, px)"] = (
            f"{len(sizes)}, from {' over '.join(shown)}: at most the area of {size}x{size}"
        )
    yield "## Sampling"
    yield table(("setting", "default"), lines.items())


def _license(origin: Origin, files: dict[str, Place]) -> Iterator[str]:
    yield "## Licence"
    own = [f"[{name}]({name})" for name in files if name.startswith("LICENSE")]
    yield "; see ".join([f"The weights: {origin.license.words}", *filter(None, [", ".join(own)])]) + "."
    if origin.derived:
        yield (
            "They derive from Meta's Chameleon, which is licensed for research and not for trade: whoever passes them on passes on "
            "its licence and names Meta's Chameleon as their origin."
        )


def _picture(path: str) -> Path | Place:
    file = place(path)
    with read_errors(file):
        if not file.is_file():
            raise MissingFileError(f"--pictures {path} is missing; give files of pictures")
    if file.suffix.lower() not in (".png", ".jpg", ".jpeg", ".webp", ".gif"):
        raise InputError(f"--pictures {path}: a page shows .png, .jpg, .webp and .gif; convert it first")
    return file
