"""Whether two checkpoints are the same model: the same tokens through both, or number by number."""

import math
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path

import jax
import numpy as np

from convert import tokenizer_files
from convert.chameleon import load_model
from convert.convert import open_source, run_of
from convert.describe import LAYOUTS, dtype_names, parameters, readable
from convert.files import copy_into
from convert.reference import Trace, hugging_face, libraries, meta, read_hugging_face, read_meta
from convert.sources import VQ_PATH, Source, layers_of
from convert.table import Row, is_qk_norm
from lumina_jax.config import MeshConfig, ModelConfig
from lumina_jax.errors import InputError
from lumina_jax.model.chameleon import Chameleon
from lumina_jax.progress import ProgressDisplay
from lumina_jax.sharding import make_mesh

TOLERANCE = {"logits": 5e-4, "weights": 0.0}
PROMPTS = 2
FREE = ("dropout", "qk_groups")
"""Fields that may differ: the first acts in training only, and the rows of the other are compared head by head."""
SLAB = 1 << 24
"""How many numbers are compared at a time."""


@dataclass(frozen=True)
class Line:
    """One part of the models: how far the two are ``apart`` at most, how far they may be, and a remark."""

    part: str
    apart: float
    allowed: float
    remark: str

    @property
    def ok(self) -> bool:
        """Whether the part is the same; NaN never is."""
        return self.apart <= self.allowed


@dataclass(frozen=True)
class Verdict:
    """What was compared, ``how`` and why so, with what outcome. ``remark`` heads the last column of the lines."""

    sides: tuple[str, str]
    how: str
    lines: tuple[Line, ...] = ()
    remark: str = ""
    problems: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def same(self) -> bool:
        """Whether both are one model."""
        return not self.problems and all(line.ok for line in self.lines)

    def text(self) -> str:
        """The comparison as lines for a terminal."""
        told = [*(f"{name}  {side}" for name, side in zip("AB", self.sides, strict=True)), self.how]
        if self.lines:
            width = max(len(line.part) for line in self.lines)
            told.append(f"{'':{width}}  {'max |A - B|':>11}  {'allowed':>9}  {self.remark}")
            for line in self.lines:
                told.append(f"{line.part:{width}}  {line.apart:11.3g}  {line.allowed:9.2g}  {line.remark}".rstrip())
        told += [f"note: {note}" for note in self.notes]
        problems = list(self.problems)
        if apart := [line.part for line in self.lines if not line.ok]:
            problems.append(f"further apart than allowed in {_some(apart)}, first in {apart[0]}")
        told += [f"difference: {problem}" for problem in problems]
        return "\n".join([*told, "the same model" if self.same else "NOT the same model"])


def verify(
    a: str | Path,
    b: str | Path,
    by: str = "auto",
    tokens: int = 32,
    seed: int = 0,
    tolerance: float | None = None,
    show: bool = True,
) -> Verdict:
    """Compares the checkpoints at ``a`` and ``b``, of any layouts, and the tokenizers found with them.

    ``by="logits"`` sends two random prompts of ``tokens`` tokens through both in float32, each by the rule of its own layout:
    transformers, Meta's arithmetic, or our model. Logits may differ by ``tolerance`` (default 5e-4), what a layer gives by
    ``tolerance`` times its largest number, since that is what float32 rounds relative to. ``by="weights"`` compares every
    number in float32 (tolerance 0), one layer of one weight in memory at a time. ``by="auto"`` takes logits where both models
    fit into half of the free memory. Raises FileNotFoundError or ValueError for a broken checkpoint, ImportError for what a
    rule needs.
    """
    if by not in ("auto", *TOLERANCE) or tokens < 1:
        raise InputError(
            f"by={by!r}, tokens={tokens}; choose one of {', '.join(('auto', *TOLERANCE))}, and at least 1 token"
        )
    pair = open_source(a), open_source(b)
    sides = tuple(f"{source.folder}: {LAYOUTS[source.layout]}, {dtype_names(source)}" for source in pair)
    notes, problems = _tokenizers(pair)
    numbers = [(field.name, *(getattr(source.cfg, field.name) for source in pair)) for field in fields(ModelConfig)]
    if other := [f"model.{name} is {x} in A and {y} in B" for name, x, y in numbers if name not in FREE and x != y]:
        return Verdict(sides, "models of other numbers are not compared further", (), "", (*other, *problems), notes)
    method, why = _choose(by, pair)
    tolerance = TOLERANCE[method] if tolerance is None else tolerance
    if method == "logits":
        lines, remark = _by_logits(pair, tokens, seed, tolerance), "std of A"
        how = f"by logits: {PROMPTS} prompts of {tokens} random tokens (seed {seed}), each by its own layout's rule"
    else:
        lines, remark = _by_weights(pair, tolerance, show), "weights that differ"
        how = "by weights: every number, in float32"
    encoder_notes, encoder_problems = _encoders(pair, method)
    notes, problems = (*notes, *encoder_notes), (*problems, *encoder_problems)
    return Verdict(sides, f"{how} ({why})", tuple(lines), remark, problems, notes)


def _choose(by: str, pair: tuple[Source, Source]) -> tuple[str, str]:
    """The way to compare, and why."""
    if by != "auto":
        return by, "as asked"
    needed, free = sum(4 * parameters(source.cfg) for source in pair), free_memory()
    said = f"both models in float32 take {readable(needed)}, {readable(free)} are free"
    if 2 * needed > free:
        return "weights", said
    try:
        if any(source.layout in ("hf", "lumina") for source in pair):
            libraries()
    except ImportError as error:
        return "weights", str(error)
    return "logits", said


def free_memory() -> int:
    """Bytes that programs can still take; where the system does not say (no Linux), half of what there is."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    except FileNotFoundError:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2


def _by_logits(pair: tuple[Source, Source], tokens: int, seed: int, tolerance: float) -> Iterator[Line]:
    ids = np.random.default_rng(seed).integers(0, pair[0].cfg.vocab, (PROMPTS, tokens), np.int32)
    a, b = (trace(source, ids) for source in pair)
    parts = ["embeddings", *(f"layer {layer}" for layer in range(pair[0].cfg.layers))]
    for part, x, y in zip(parts, a.layers, b.layers, strict=True):
        yield Line(part, _apart(x, y), tolerance * float(np.abs(x).max()), f"{x.std():.3g}")
    yield Line("logits", _apart(a.logits, b.logits), tolerance, f"{a.logits.std():.3g}")


def trace(source: Source, ids: np.ndarray) -> Trace:
    """Token ids i32[B T] through ``source`` in float32, by the rule of its layout."""
    if source.layout == "meta":
        return meta(*read_meta(source.folder), ids)
    if source.layout in ("hf", "lumina"):
        return hugging_face(*read_hugging_face(source.folder), ids)
    # On the CPU, where float32 is exact and the memory is that of the other rules.
    mesh = make_mesh(MeshConfig(fsdp=1), jax.local_devices(backend="cpu")[:1])
    model, _ = load_model(source.folder, mesh, dtype="float32")
    layers, logits = jax.device_get(_run(model, ids))
    return Trace(list(layers), logits)


@jax.jit
def _run(model: Chameleon, ids: jax.Array) -> tuple[jax.Array, jax.Array]:
    layers = model.layers(ids)
    return layers, model.logits(model.norm(layers[-1]))


def _by_weights(pair: tuple[Source, Source], tolerance: float, show: bool) -> Iterator[Line]:
    a, b = pair
    shared = [row for row in a.rows if is_qk_norm(row) or a.sizes[row.path] == b.sizes.get(row.path)]
    worst: dict[str, float] = {}
    differing: dict[str, list[str]] = {}
    nbytes = [math.prod(a.sizes[row.path].values()) * a.dtypes[row.path].itemsize for row in shared]
    total = sum(size * len(layers_of(a, row)) for size, row in zip(nbytes, shared, strict=True))
    with ProgressDisplay("compared", total, show, unit="MB", unit_size=10**6) as meter:
        for row, size in zip(shared, nbytes, strict=True):
            for layer in layers_of(a, row):
                part = f"layer {layer}" if row.per_layer else "VQ encoder" if row.path.startswith(VQ_PATH) else row.path
                apart = _apart(*(_by_head(source, row, layer) for source in pair))
                worst[part] = float(np.maximum(worst.get(part, 0.0), apart))
                if not apart <= tolerance:
                    differing.setdefault(part, []).append(row.path.removeprefix("blocks/").removeprefix(VQ_PATH))
                meter.advance(size)
    for part, apart in worst.items():
        yield Line(part, apart, tolerance, _some(differing.get(part, [])))


def _by_head(source: Source, row: Row, layer: int) -> np.ndarray:
    """One layer of ``row``, copied; a QK-norm row that several heads share stands once for each of them."""
    array = source.read(row, layer, {})
    if is_qk_norm(row):
        heads = source.cfg.kv_heads if "k_norm" in row.path else source.cfg.heads
        array = np.repeat(array, heads // len(array), axis=0)
    copy = np.empty(array.shape, array.dtype)
    copy_into(copy, array)
    return copy


def _apart(a: np.ndarray, b: np.ndarray) -> float:
    """The largest |a - b| in float32; two NaN are 0 apart, one is NaN apart."""
    worst, flat = np.float32(0), (a.reshape(-1), b.reshape(-1))
    for at in range(0, a.size, SLAB):
        x, y = (array[at : at + SLAB] for array in flat)
        if x.dtype == y.dtype and np.array_equal(x.view(np.uint8), y.view(np.uint8)):
            continue
        x, y = x.astype(np.float32), y.astype(np.float32)
        with np.errstate(invalid="ignore"):  # inf - inf
            apart = np.where((x == y) | (np.isnan(x) & np.isnan(y)), 0, np.abs(x - y))
        worst = np.maximum(worst, apart.max())
    return float(worst)


def _encoders(pair: tuple[Source, Source], method: str) -> tuple[list[str], list[str]]:
    """(notes, problems) about the VQ encoders that the two carry."""
    a, b = ({path: sizes for path, sizes in source.sizes.items() if path.startswith(VQ_PATH)} for source in pair)
    if bool(a) != bool(b):
        return [f"only {'A' if a else 'B'} carries a VQ encoder; it was not compared"], []
    if other := sorted(path.removeprefix(VQ_PATH) for path in a | b if a.get(path) != b.get(path)):
        return [], [f"VQ encoders of other sizes: {_some(other)}"]
    skipped = a and method == "logits"
    return ["both carry a VQ encoder, which no token passes through; --by weights compares it"] if skipped else [], []


def _tokenizers(pair: tuple[Source, Source]) -> tuple[list[str], list[str]]:
    """(notes, problems) about the tokenizers found with the two; other names are no problem where texts have the same ids."""
    try:
        a, b = (tokenizer_files.find(source.folder, run_of(source)).vocab() for source in pair)
    except FileNotFoundError as error:
        return [f"tokenizers were not compared; an experiment names {error}"], []
    if not (a and b):
        absent = " and ".join(side for side, vocab in (("A", a), ("B", b)) if not vocab)
        return [f"tokenizers were not compared: none found with {absent}"], []
    if a == b:
        return ["the tokenizers are the same"], []
    names = [vocab.names(sys.maxsize) for vocab in (a, b)]
    other = [name for name in names[0] | names[1] if names[0].get(name) != names[1].get(name)]
    # The text of all that both name: wherever their merges differ, one of them takes it apart in another way.
    text = a.decode([at for name, at in names[0].items() if names[1].get(name) == at])
    if any(name in names[0] and name in names[1] for name in other) or a.encode(text) != b.encode(text):
        return [], [f"the tokenizers give the same text other ids; names that differ: {_some(other) or 'none'}"]
    return [f"the tokenizers differ in {_some(other) or 'settings'}; all other text has the same ids in both"], []


def _some(names: list[str], limit: int = 6) -> str:
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")
