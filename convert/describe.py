"""A report on a folder: what it holds, what is missing and where that belongs. Only headers are read; the folder may be damaged."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from shlex import quote
from typing import NamedTuple

from etils import epath

from convert import tokenizer_files
from convert.convert import LAYOUTS, open_source, target_dtypes
from convert.errors import read_errors
from convert.metadata import experiment_of
from convert.orbax_folder import OrbaxSource, orbax_address
from convert.pictures import image_layout_of
from convert.sources import VQ_PATH, Checkpoint
from convert.table import ROWS, sizes_of
from convert.target_sizes import names_of, target_size_of
from convert.tokenizer_files import TokenizerFiles
from lumina_jax.config import ModelConfig
from lumina_jax.errors import MissingFileError, UserError
from lumina_jax.places import Place, place
from lumina_jax.released import released_as
from lumina_jax.train.checkpoint import FOLDER
from lumina_jax.train.integrity import COMMITTED, damage

QK_NORM_ROWS = {
    "hf": "one per head ({heads} of queries, {kv_heads} of keys), {qk_groups} different",
    "lumina": "one per group of heads, {qk_groups}",
    "meta": "one per file, {qk_groups}",
    "ours": "one per group of heads, {qk_groups}",
}
_34B = ModelConfig(width=8192, layers=48, heads=64, kv_heads=8, mlp=22016, qk_groups=4, post_norm=True)
PUBLISHED = {"Chameleon 7B, Lumina-mGPT 7B": ModelConfig(), "Chameleon 34B (Meta's 30b), Lumina-mGPT 34B": _34B}
PUBLISHED_CODES = 8192
VARYING = ("rope_base", "eps", "dropout", "qk_groups")
"""Fields in which checkpoints of one published model may differ."""
LAYOUT_FILES = {
    "Hugging Face (config.json)": ("config.json",),
    "Meta's Chameleon (params.json)": ("params.json", "consolidated*.pth", "models/*/params.json"),
    "lumina_jax (checkpoints)": (COMMITTED, f"{FOLDER}/*/{COMMITTED}"),
}
"""Layouts and the files by which they are recognized."""
WEIGHTS = ("*.safetensors", "pytorch_model*.bin", "consolidated*.pth", "models/*/consolidated*.pth")
CODEBOOK = f"{VQ_PATH}quantize.embedding.weight"


class Finding(NamedTuple):
    """One line of a report: a ``topic``, which may be "note" or "problem", and a ``text``."""

    topic: str
    text: str


@dataclass(frozen=True)
class FolderReport:
    """What was found at ``path``, and the command to run next."""

    path: Place
    findings: tuple[Finding, ...]
    next_command: str

    @property
    def notes(self) -> tuple[str, ...]:
        """What a user should know and may leave as it is."""
        return tuple(text for topic, text in self.findings if topic == "note")

    @property
    def problems(self) -> tuple[str, ...]:
        """What must be mended before the checkpoint can be used."""
        return tuple(text for topic, text in self.findings if topic == "problem")

    def text(self) -> str:
        """The report as lines for a terminal."""
        facts = [finding for finding in self.findings if finding.topic not in ("note", "problem")]
        width = 2 + max((len(topic) for topic, _ in facts), default=0)
        lines = [str(self.path)]
        for topic, text in facts:
            first, *more = text.splitlines()
            lines += [f"{topic:{width}}{first}", *(" " * width + line for line in more)]
        lines += [f"note: {note}" for note in self.notes]
        lines += [f"problem: {problem}" for problem in self.problems] or ["no problems"]
        return "\n".join([*lines, f"next: {self.next_command}"])


def describe(path: str | Place) -> FolderReport:
    """Reads headers, configs and the small files beside them. What a user can mend is in the report, never raised."""
    path = place(path)
    with read_errors(path):
        folder = path.parent if path.is_file() else path
    opened: list[Checkpoint] = []
    findings = [*_with_problems(_open(folder, opened)), *_with_problems(_folder(folder, bool(opened)))]
    for source in opened:
        for survey in (_model, _origin, _weights, _tokenizer_files):
            findings += _with_problems(survey(source))
    findings = tuple(dict.fromkeys(findings))
    next_command = f"mend this, then: python run.py convert inspect {quote(str(path))}"
    if not any(finding.topic == "problem" for finding in findings):
        is_orbax = opened[0].layout == "ours"
        verb, options = ("export", " --layout hf") if is_orbax else ("import", "")
        next_command = f"python run.py convert {verb} {quote(str(path))} DST{options}"
    return FolderReport(path, findings, next_command)


def parameters(cfg: ModelConfig) -> int:
    """The number of the decoder's parameters; each QK-norm row counts once."""
    return sum(math.prod(sizes_of(cfg, row).values()) * (cfg.layers if row.per_layer else 1) for row in ROWS)


def dtype_names(source: Checkpoint) -> str:
    """The dtypes of the decoder's weights, the most frequent first."""
    names = [source.dtypes[row.path].name for row in ROWS]
    return ", ".join(sorted(set(names), key=lambda name: (-names.count(name), name)))


def readable(nbytes: int) -> str:
    """A number of bytes as text, such as "14.0 GB"."""
    unit, size = next(((unit, size) for unit, size in (("GB", 1e9), ("MB", 1e6)) if nbytes >= size), ("kB", 1e3))
    return f"{nbytes / size:,.1f} {unit}"


def _with_problems(survey: Iterator[Finding]) -> Iterator[Finding]:
    """``survey``; a UserError that it raises becomes the last finding, a problem."""
    try:
        yield from survey
    except UserError as error:
        yield Finding("problem", str(error))


def _open(folder: Place, opened: list[Checkpoint]) -> Iterator[Finding]:
    opened.append(open_source(folder))
    yield Finding("layout", LAYOUTS[opened[0].layout])


def _folder(folder: Place, opened: bool) -> Iterator[Finding]:
    """What the names and sizes of the files tell, without opening any."""
    layouts = [kind for kind, names in LAYOUT_FILES.items() if any(any(folder.glob(name)) for name in names)]
    if layouts and not opened:
        yield Finding("layout", f"{', '.join(layouts)}, by its files")
    if len(layouts) > 1:
        yield Finding("problem", f"{folder} holds several models: {', '.join(layouts)}; give each a folder of its own")
    files = sorted(file for pattern in WEIGHTS for file in folder.glob(pattern) if file.is_file())
    if files:
        sizes = {str(file.relative_to(folder)): file.stat().st_size for file in files}
        width = max(map(len, sizes))
        lines = [f"{name:{width}}  {readable(size):>8}" for name, size in sizes.items()]
        yield Finding("weights", "\n".join([*lines, f"{readable(sum(sizes.values()))} in all"]))
    if {".safetensors", ".bin"} <= {file.suffix for file in files}:
        yield Finding("note", "weights as safetensors and as pytorch_model*.bin: the safetensors are read")
    for step in sorted(folder.glob(f"{FOLDER}/*")):
        if step.name.isdigit() and (reason := damage(epath.Path(orbax_address(step)))):
            yield Finding("note", f"{step} is not whole: {reason}; it is ignored")


def _model(source: Checkpoint) -> Iterator[Finding]:
    cfg = source.cfg
    yield Finding("model", _published_name(cfg))
    yield Finding("parameters", f"{parameters(cfg):,}")
    sizes = ("vocab", "width", "layers", "heads", "kv_heads", "head_dim", "mlp")
    yield Finding("sizes", ", ".join(f"{name} {getattr(cfg, name)}" for name in sizes))
    position = "behind attention and MLP (swin)" if cfg.post_norm else "before attention and MLP"
    yield Finding("norms", f"{position}, eps {cfg.eps:g}")
    yield Finding("QK-norm rows", QK_NORM_ROWS[source.layout].format_map(vars(cfg)))
    yield Finding("RoPE base", f"{cfg.rope_base:g}")
    if source.layout != "ours" and source.settings.get("mask_image_logits"):
        yield Finding("note", "config.json says mask_image_logits: PyTorch draws no images; lumina_jax masks no logits")


def _published_name(cfg: ModelConfig) -> str:
    """The published model with the width and layers of ``cfg``, and the fields that differ from it."""
    for name, known in PUBLISHED.items():
        if (cfg.width, cfg.layers) == (known.width, known.layers):
            names = [field.name for field in fields(cfg) if field.name not in VARYING]
            pairs = [(field, getattr(cfg, field), getattr(known, field)) for field in names]
            different = [f"{field} {value} instead of {usual}" for field, value, usual in pairs if value != usual]
            return f"the numbers of {name}" + (f", but {', '.join(different)}" if different else "")
    return "of its own: no published one has these numbers"


def _origin(source: Checkpoint) -> Iterator[Finding]:
    if experiment := experiment_of(source):
        yield Finding("experiment", experiment.name)
    origin = source.settings
    if isinstance(source, OrbaxSource):
        state = source.training_state
        step = f"step {source.checkpoint.name}, with {len(state)} arrays of training state"
        yield Finding("training", step if state else "weights only")
        if layout := origin.get("layout"):
            yield Finding("comes from", f"{origin['name']} ({LAYOUTS[layout]})")
    if release := released_as(names_of(source)):
        served = f"{release.training}; the original shows by it: {release.served}"
        yield Finding("released as", f"{release.name}, by its name: {served}")
    found, pictures = image_layout_of(source), target_size_of(source)
    target = f"at most the area of {pictures.size} x {pictures.size} px, {pictures.reason}"
    if found.is_chameleon:
        yield Finding("image layout", f"Chameleon's own, {found.reason}: pictures of one size, 1,024 codes in a run")
    else:
        yield Finding(
            "target size", target if pictures.size else "unknown; painting and showing pictures needs --target-size"
        )
    if origin.get("zero_image_head"):
        yield Finding("image head", "zeroed at the start (FP-SFT)")


def _weights(source: Checkpoint) -> Iterator[Finding]:
    yield Finding("dtype", dtype_names(source))
    if isinstance(source, OrbaxSource):
        sizes = list(_file_sizes(place(str(source.checkpoint))))
        yield Finding("weights", f"{source.checkpoint}: {readable(sum(sizes))} in {len(sizes)} files")
    encoder = "none"
    if CODEBOOK in source.sizes:
        encoder = f"carried, {source.sizes[CODEBOOK]['a']:,} codes, {source.dtypes[CODEBOOK].name}"
    yield Finding("VQ encoder", encoder)
    target_dtypes(source)  # raises where there are several


def _file_sizes(folder: Place) -> Iterator[int]:
    """Bytes of every file below ``folder``."""
    if isinstance(folder, Path):
        yield from (file.stat().st_size for file in folder.rglob("*") if file.is_file())
    else:
        yield from (entry["size"] for entry in folder.fs.find(folder.path, detail=True).values())


def _tokenizer_files(source: Checkpoint) -> Iterator[Finding]:
    try:
        files = tokenizer_files.find(source.folder, experiment_of(source))
    except MissingFileError as error:
        yield Finding("note", f"its experiment names {error}")
        files = tokenizer_files.find(source.folder)
    yield from (Finding("note", note) for note in tokenizer_files.notes(files, source.folder))
    if files.tokenizer:
        yield from _with_problems(_tokenizer(files, source))
    if files.vq:
        yield Finding("image tokenizer", f"{files.vq}: {tokenizer_files.vq_codes(files.vq):,} codes")
    tokenizer_files.check(files, source.cfg)


def _tokenizer(files: TokenizerFiles, source: Checkpoint) -> Iterator[Finding]:
    vocab = files.vocab()
    codes, sizes = len(vocab.code_ids), int((vocab.size_of > 0).sum())
    counts = f"{len(vocab):,} names, {codes:,} image codes, {sizes:,} size tokens, all special names"
    yield Finding("tokenizer", f"{files.tokenizer}: {counts}")
    known = [PUBLISHED_CODES] if any(source.cfg.vocab == published.vocab for published in PUBLISHED.values()) else []
    known += [source.sizes[CODEBOOK]["a"]] if CODEBOOK in source.sizes else []
    if wrong := [count for count in known if count != codes]:
        names = f"{files.tokenizer} names {codes} image codes"
        yield Finding("problem", f"{names}, the model has {wrong[0]}: not its tokenizer")
