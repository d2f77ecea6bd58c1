"""What a folder holds, what is missing and where it belongs: told from headers alone, whatever state the folder is in."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import NamedTuple

from convert import tokenizer_files
from convert.convert import dtypes_of, open_source, run_of
from convert.orbax_folder import Ours
from convert.sources import VQ_PATH, Source
from convert.table import ROWS, sizes_of
from convert.tokenizer_files import Companions
from lumina_jax.config import ModelConfig
from lumina_jax.train.checkpoint import COMMITTED, FOLDER

LAYOUTS = {
    "hf": "Hugging Face, as transformers saves it",
    "lumina": "Hugging Face, as Lumina-mGPT saves it",
    "meta": "Meta's Chameleon",
    "ours": "lumina_jax (Orbax)",
}
QK_ROWS = {
    "hf": "one per head ({heads} of queries, {kv_heads} of keys), {qk_groups} different",
    "lumina": "one per group of heads, {qk_groups}",
    "meta": "one per file, {qk_groups}",
    "ours": "one per group of heads, {qk_groups}",
}
PUBLISHED = {
    "Chameleon 7B, Lumina-mGPT 7B": ModelConfig(),
    "Chameleon 34B (Meta's 30b), Lumina-mGPT 34B": ModelConfig(
        width=8192, layers=48, heads=64, kv_heads=8, mlp=22016, qk_groups=4, post_norm=True
    ),
}
PUBLISHED_CODES = 8192
FREE = ("rope_base", "eps", "dropout", "qk_groups")
"""Fields in which checkpoints of one published model may differ."""
SIGNS = {
    "Hugging Face (config.json)": ("config.json",),
    "Meta's Chameleon (params.json)": ("params.json", "consolidated*.pth", "models/*/params.json"),
    "lumina_jax (checkpoints)": (COMMITTED, f"{FOLDER}/*/{COMMITTED}"),
}
"""Layouts and the files that tell them."""
WEIGHTS = ("*.safetensors", "pytorch_model*.bin", "consolidated*.pth", "models/*/consolidated*.pth")
CODEBOOK = f"{VQ_PATH}quantize.embedding.weight"


class Entry(NamedTuple):
    """One line of a report: ``what`` it is about, "note" and "problem" among that, and what is ``said``."""

    what: str
    said: str


@dataclass(frozen=True)
class Report:
    """What was found at ``path``, and the command to go on with."""

    path: Path
    entries: tuple[Entry, ...]
    following: str

    @property
    def notes(self) -> tuple[str, ...]:
        """What a user should know and may leave as it is."""
        return tuple(said for what, said in self.entries if what == "note")

    @property
    def problems(self) -> tuple[str, ...]:
        """What must be mended before the checkpoint is of use."""
        return tuple(said for what, said in self.entries if what == "problem")

    @property
    def whole(self) -> bool:
        """Whether there are no problems."""
        return not self.problems

    def text(self) -> str:
        """The report as lines for a terminal."""
        facts = [entry for entry in self.entries if entry.what not in ("note", "problem")]
        width = 2 + max((len(what) for what, _ in facts), default=0)
        lines = [str(self.path)]
        for what, said in facts:
            first, *more = said.splitlines()
            lines += [f"{what:{width}}{first}", *(" " * width + line for line in more)]
        lines += [f"note: {note}" for note in self.notes]
        lines += [f"problem: {problem}" for problem in self.problems] or ["whole"]
        return "\n".join([*lines, f"next: {self.following}"])


def inspect(path: str | Path) -> Report:
    """Reads headers, configs and the small files beside them. What is wrong is told in the report, never raised."""
    path = Path(path)
    folder = path.parent if path.is_file() else path
    found: list[Source] = []
    entries = [*_safely(_open(folder, found)), *_safely(_folder(folder, bool(found)))]
    for source in found:
        for survey in (_model, _origin, _weights, _companions):
            entries += _safely(survey(source))
    entries = tuple(dict.fromkeys(entries))
    following = f"mend this, then: python run.py convert inspect {path}"
    if not any(entry.what == "problem" for entry in entries):
        ours = found[0].layout == "ours"
        following = f"python run.py convert {'export' if ours else 'import'} {path} DST{' --layout hf' * ours}"
    return Report(path, entries, following)


def parameters(cfg: ModelConfig) -> int:
    """How many numbers the decoder has; each QK-norm row counts once."""
    return sum(math.prod(sizes_of(cfg, row).values()) * (cfg.layers if row.per_layer else 1) for row in ROWS)


def dtype_names(source: Source) -> str:
    """The dtypes of the decoder's weights, the most frequent first."""
    kinds = [source.dtypes[row.path].name for row in ROWS]
    return ", ".join(sorted(set(kinds), key=lambda kind: (-kinds.count(kind), kind)))


def readable(count: int) -> str:
    """Bytes in words."""
    unit, size = next(((unit, size) for unit, size in (("GB", 1e9), ("MB", 1e6)) if count >= size), ("kB", 1e3))
    return f"{count / size:,.1f} {unit}"


def _safely(survey: Iterator[Entry]) -> Iterator[Entry]:
    """``survey``, with what it raises as its last entry: a broken folder is what a report is for."""
    try:
        yield from survey
    except (ValueError, OSError, ImportError) as error:
        yield Entry("problem", str(error))
    except Exception as error:  # configs may hold anything, and so may the messages of the libraries that read them
        yield Entry("problem", f"{type(error).__name__}: {error}")


def _open(folder: Path, found: list[Source]) -> Iterator[Entry]:
    found.append(open_source(folder))
    yield Entry("layout", LAYOUTS[found[0].layout])


def _folder(folder: Path, opened: bool) -> Iterator[Entry]:
    """What can be told without opening anything."""
    signs = [kind for kind, names in SIGNS.items() if any(any(folder.glob(name)) for name in names)]
    if signs and not opened:
        yield Entry("layout", f"{', '.join(signs)}, by its files")
    if len(signs) > 1:
        yield Entry("problem", f"{folder} holds several models: {', '.join(signs)}; give each a folder of its own")
    files = sorted(file for pattern in WEIGHTS for file in folder.glob(pattern))
    if files:
        names = {str(file.relative_to(folder)): file.stat().st_size for file in files}
        width = max(map(len, names))
        lines = [f"{name:{width}}  {readable(size):>8}" for name, size in names.items()]
        yield Entry("weights", "\n".join([*lines, f"{readable(sum(names.values()))} in all"]))
    if {".safetensors", ".bin"} <= {file.suffix for file in files}:
        yield Entry("note", "weights as safetensors and as pytorch_model*.bin: the safetensors are read")
    for step in sorted(folder.glob(f"{FOLDER}/*")):
        if step.name.isdigit() and not (step / COMMITTED).is_file():
            yield Entry("note", f"{step} is a write, or a copy, that never finished; it is left aside")


def _model(source: Source) -> Iterator[Entry]:
    cfg = source.cfg
    yield Entry("model", _published(cfg))
    yield Entry("parameters", f"{parameters(cfg):,}")
    sizes = ("vocab", "width", "layers", "heads", "kv_heads", "head_dim", "mlp")
    yield Entry("sizes", ", ".join(f"{name} {getattr(cfg, name)}" for name in sizes))
    where = "behind attention and MLP (swin)" if cfg.post_norm else "before attention and MLP"
    yield Entry("norms", f"{where}, eps {cfg.eps:g}")
    yield Entry("QK-norm rows", QK_ROWS[source.layout].format_map(vars(cfg)))
    yield Entry("RoPE base", f"{cfg.rope_base:g}")
    if source.layout != "ours" and source.settings.get("mask_image_logits"):
        yield Entry(
            "note", "config.json says mask_image_logits: PyTorch would never paint with this model; ours masks nothing"
        )


def _published(cfg: ModelConfig) -> str:
    """The published model that ``cfg`` looks like."""
    for name, known in PUBLISHED.items():
        if (cfg.width, cfg.layers) == (known.width, known.layers):
            pairs = [(f.name, getattr(cfg, f.name), getattr(known, f.name)) for f in fields(cfg) if f.name not in FREE]
            other = [f"{field} {here} instead of {there}" for field, here, there in pairs if here != there]
            return f"the numbers of {name}" + (f", but {', '.join(other)}" if other else "")
    return "of its own: no published one has these numbers"


def _origin(source: Source) -> Iterator[Entry]:
    origin = source.settings
    if run := run_of(source):
        yield Entry("experiment", run.name)
    if isinstance(source, Ours):
        state = source.training_state
        said = f"step {source.checkpoint.name}, with {len(state)} arrays of training state" if state else "weights only"
        yield Entry("training", said)
        if layout := origin.get("layout"):
            yield Entry("comes from", f"{origin['name']} ({LAYOUTS[layout]})")
    if origin.get("zero_image_head"):
        yield Entry("image head", "zeroed at the start (FP-SFT)")


def _weights(source: Source) -> Iterator[Entry]:
    yield Entry("dtype", dtype_names(source))
    if isinstance(source, Ours):
        sizes = [file.stat().st_size for file in source.checkpoint.rglob("*") if file.is_file()]
        yield Entry("weights", f"{source.checkpoint}: {readable(sum(sizes))} in {len(sizes)} files")
    carried = "none"
    if CODEBOOK in source.sizes:
        carried = f"carried, {source.sizes[CODEBOOK]['a']:,} codes, {source.dtypes[CODEBOOK].name}"
    yield Entry("VQ encoder", carried)
    dtypes_of(source)  # raises where there are several


def _companions(source: Source) -> Iterator[Entry]:
    try:
        found = tokenizer_files.find(source.folder, run_of(source))
    except FileNotFoundError as error:
        yield Entry("note", f"its experiment names {error}")
        found = tokenizer_files.find(source.folder)
    yield from (Entry("note", note) for note in tokenizer_files.notes(found, source.folder))
    if found.tokenizer:
        yield from _safely(_tokenizer(found, source))
    if found.vq:
        yield Entry("image tokenizer", f"{found.vq}: {tokenizer_files.vq_codes(found.vq):,} codes")
    tokenizer_files.check(found, source.cfg)


def _tokenizer(found: Companions, source: Source) -> Iterator[Entry]:
    vocab = found.vocab()
    codes, sizes = len(vocab.code_ids), int((vocab.size_of > 0).sum())
    told = f"{len(vocab):,} names, {codes:,} image codes, {sizes:,} size tokens, all special names"
    yield Entry("tokenizer", f"{found.tokenizer}: {told}")
    known = [PUBLISHED_CODES] if any(source.cfg.vocab == c.vocab for c in PUBLISHED.values()) else []
    known += [source.sizes[CODEBOOK]["a"]] if CODEBOOK in source.sizes else []
    if wrong := [count for count in known if count != codes]:
        yield Entry(
            "problem", f"{found.tokenizer} names {codes} image codes, the model has {wrong[0]}: not its tokenizer"
        )
