"""Whether two checkpoints are the same model: by the logits of the same tokens through both, or weight by weight."""

import math
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np

from convert import reference, tokenizer_files
from convert.buffers import copy_into
from convert.convert import LAYOUTS, open_source
from convert.describe import dtype_names, parameters, readable
from convert.forward import forward, lumina_forward
from convert.metadata import experiment_of
from convert.sources import VQ_PATH, Checkpoint, layers_of
from convert.table import WeightRow, is_qk_norm
from convert.tensor_files import listed
from lumina_jax.config import ModelConfig
from lumina_jax.errors import InputError, MissingFileError, MissingPackageError
from lumina_jax.places import Place
from lumina_jax.progress import ProgressDisplay

TOLERANCE = {"logits": 5e-4, "weights": 0.0}
PROMPTS = 2
VARYING = ("dropout", "qk_groups")
"""Fields that may differ: dropout acts in training only, and QK-norm rows are compared head by head."""
SLAB = 1 << 24
"""How many numbers are compared at a time."""
Pair = tuple[Checkpoint, Checkpoint]
LISTED = 6
"""How many names are listed before the rest is counted."""


@dataclass(frozen=True)
class PartComparison:
    """One part of the models, such as a layer: the largest ``difference``, the largest ``allowed``, and a remark."""

    part: str
    difference: float
    allowed: float
    remark: str

    @property
    def same(self) -> bool:
        """Whether the difference is allowed; NaN never is."""
        return self.difference <= self.allowed


@dataclass(frozen=True)
class Comparison:
    """Two checkpoints compared: ``method`` says how, and why so; ``remark`` heads the last column of ``parts``."""

    sides: tuple[str, str]
    method: str
    parts: tuple[PartComparison, ...] = ()
    remark: str = ""
    problems: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def same(self) -> bool:
        """Whether both are one model."""
        return not self.problems and all(part.same for part in self.parts)

    def text(self) -> str:
        """The comparison as lines for a terminal."""
        lines = [*(f"{name}  {side}" for name, side in zip("AB", self.sides, strict=True)), self.method]
        if self.parts:
            width = max(len(part.part) for part in self.parts)
            lines.append(f"{'':{width}}  {'max |A - B|':>11}  {'allowed':>9}  {self.remark}")
            for part in self.parts:
                numbers = f"{part.difference:11.3g}  {part.allowed:9.2g}"
                lines.append(f"{part.part:{width}}  {numbers}  {part.remark}".rstrip())
        lines += [f"note: {note}" for note in self.notes]
        problems = list(self.problems)
        if names := [part.part for part in self.parts if not part.same]:
            problems.append(f"further apart than allowed in {listed(names, LISTED)}, first in {names[0]}")
        lines += [f"difference: {problem}" for problem in problems]
        return "\n".join([*lines, "the same model" if self.same else "NOT the same model"])


def verify(
    a: str | Place,
    b: str | Place | None = None,
    by: str = "auto",
    tokens: int = 32,
    seed: int = 0,
    tolerance: float | None = None,
    show: bool = True,
) -> Comparison:
    """Compares the checkpoints at ``a`` and ``b``, of any layouts, and the tokenizers found with them.

    Without ``b`` the code of ``a``'s layout is compared, by logits, with what lumina_jax makes of the same files.

    ``by="logits"`` sends two random prompts of ``tokens`` tokens through both in float32, each by its own layout's code:
    transformers, Meta's arithmetic, or lumina_jax; one side after the other, with one layer in memory at a time. Logits may differ
    by ``tolerance`` (default 5e-4), a layer's output by ``tolerance`` times its largest number, because float32 rounds relative to
    that. ``by="weights"`` compares every number in float32 (tolerance 0), one layer of one weight in memory at a time.
    ``by="auto"`` takes logits where half of the free memory holds a layer, the embedding and the head. Raises MissingFileError or
    InputError for a broken checkpoint or one that has nothing to be compared with, MissingPackageError for torch or transformers.
    """
    if by not in ("auto", *TOLERANCE) or tokens < 1 or seed < 0:
        limits = f"choose auto, {' or '.join(TOLERANCE)}, at least 1 token, and a seed of at least 0"
        raise InputError(f"by={by!r}, tokens={tokens}, seed={seed}; {limits}")
    source = open_source(a)
    if b is None and (by == "weights" or source.layout == "ours"):
        raise InputError(
            f"{a}: compared with nothing; give a second checkpoint, or one of PyTorch alone with --by logits"
        )
    pair = source, source if b is None else open_source(b)
    sides = tuple(f"{source.folder}: {LAYOUTS[source.layout]}, {dtype_names(source)}" for source in pair)
    notes, problems = ([], []) if b is None else _tokenizers(pair)
    if b is None:
        by, sides = "logits", (sides[0], f"{source.folder}, read and run by lumina_jax")
    values = [(field.name, *(getattr(source.cfg, field.name) for source in pair)) for field in fields(ModelConfig)]
    if other := [f"model.{name} is {x} in A and {y} in B" for name, x, y in values if name not in VARYING and x != y]:
        problems = (*other, *problems)
        return Comparison(sides, "models of different sizes are not compared further", problems=problems, notes=notes)
    method, reason = _choose(by, pair)
    tolerance = TOLERANCE[method] if tolerance is None else tolerance
    if method == "logits":
        parts, remark = _by_logits(pair, tokens, seed, tolerance, show, alone=b is None), "std of A"
        how = f"by logits: {PROMPTS} prompts of {tokens} random tokens (seed {seed}), each by its own layout's rule"
    else:
        parts, remark = _by_weights(pair, tolerance, show), "weights that differ"
        how = "by weights: every number, in float32"
    encoder_notes, encoder_problems = ([], []) if b is None else _encoders(pair, method)
    notes, problems = (*notes, *encoder_notes), (*problems, *encoder_problems)
    return Comparison(sides, f"{how} ({reason})", tuple(parts), remark, problems, notes)


def _choose(by: str, pair: Pair) -> tuple[str, str]:
    """The method, "logits" or "weights", and the reason for it."""
    if by != "auto":
        return by, "as asked"
    needed, free = max(4 * parameters(replace(source.cfg, layers=1)) for source in pair), free_memory()
    reason = f"a layer, the embedding and the head take {readable(needed)} in float32, {readable(free)} are free"
    if 2 * needed > free:
        return "weights", reason
    try:
        if any(source.layout in ("hf", "lumina") for source in pair):
            reference.need_transformers()
    except MissingPackageError as error:
        return "weights", str(error)
    return "logits", reason


def free_memory() -> int:
    """Bytes of memory available to programs; half of all memory where the system does not tell (not Linux)."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    except FileNotFoundError:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2


def _by_logits(
    pair: Pair, tokens: int, seed: int, tolerance: float, show: bool, alone: bool
) -> Iterator[PartComparison]:
    """``alone``: both are one checkpoint, and the second pass is lumina_jax's."""
    ids = np.random.default_rng(seed).integers(0, pair[0].cfg.vocab, (PROMPTS, tokens), np.int32)
    runs = forward, lumina_forward if alone else forward
    with ProgressDisplay("verify", sum(source.cfg.layers for source in pair), show, unit="layers") as progress:
        a, b = (run(source, ids, lambda: progress.advance(1)) for run, source in zip(runs, pair, strict=True))
    names = ["embeddings", *(f"layer {layer}" for layer in range(pair[0].cfg.layers))]
    for name, x, y in zip(names, a.layers, b.layers, strict=True):
        yield PartComparison(name, _difference(x, y), tolerance * float(np.abs(x).max()), f"{x.std():.3g}")
    yield PartComparison("logits", _difference(a.logits, b.logits), tolerance, f"{a.logits.std():.3g}")


def _by_weights(pair: Pair, tolerance: float, show: bool) -> Iterator[PartComparison]:
    a, b = pair
    shared = [row for row in a.rows if is_qk_norm(row) or a.sizes[row.path] == b.sizes.get(row.path)]
    largest: dict[str, float] = {}
    differing: dict[str, list[str]] = {}
    nbytes = [math.prod(a.sizes[row.path].values()) * a.dtypes[row.path].itemsize for row in shared]
    total = sum(size * len(layers_of(a, row)) for size, row in zip(nbytes, shared, strict=True))
    with ProgressDisplay("compared", total, show, unit="MB", unit_size=10**6) as progress:
        for row, size in zip(shared, nbytes, strict=True):
            for layer in layers_of(a, row):
                name = f"layer {layer}" if row.per_layer else "VQ encoder" if row.path.startswith(VQ_PATH) else row.path
                difference = _difference(*(_by_head(source, row, layer) for source in pair))
                largest[name] = float(np.maximum(largest.get(name, 0.0), difference))
                if not difference <= tolerance:
                    differing.setdefault(name, []).append(row.path.removeprefix("blocks/").removeprefix(VQ_PATH))
                progress.advance(size)
    for name, difference in largest.items():
        yield PartComparison(name, difference, tolerance, listed(differing.get(name, []), LISTED))


def _by_head(source: Checkpoint, row: WeightRow, layer: int) -> np.ndarray:
    """One layer of ``row``, copied; a QK-norm row that several heads share is repeated for each of them."""
    array = source.read(row, layer, {})
    if is_qk_norm(row):
        heads = source.cfg.kv_heads if "k_norm" in row.path else source.cfg.heads
        array = np.repeat(array, heads // len(array), axis=0)
    copy = np.empty(array.shape, array.dtype)
    copy_into(copy, array)
    return copy


def _difference(a: np.ndarray, b: np.ndarray) -> float:
    """The largest |a - b| in float32: 0 for two NaN, NaN for one."""
    largest, flat = np.float32(0), (a.reshape(-1), b.reshape(-1))
    for start in range(0, a.size, SLAB):
        x, y = (array[start : start + SLAB] for array in flat)
        if x.dtype == y.dtype and np.array_equal(x.view(np.uint8), y.view(np.uint8)):
            continue
        x, y = x.astype(np.float32), y.astype(np.float32)
        with np.errstate(invalid="ignore"):  # inf - inf
            difference = np.where((x == y) | (np.isnan(x) & np.isnan(y)), 0, np.abs(x - y))
        largest = np.maximum(largest, difference.max())
    return float(largest)


def _encoders(pair: Pair, method: str) -> tuple[list[str], list[str]]:
    """(notes, problems) about the VQ encoders in the two checkpoints."""
    a, b = ({path: sizes for path, sizes in source.sizes.items() if path.startswith(VQ_PATH)} for source in pair)
    if bool(a) != bool(b):
        return [f"only {'A' if a else 'B'} carries a VQ encoder; it was not compared"], []
    if other := sorted(path.removeprefix(VQ_PATH) for path in a | b if a.get(path) != b.get(path)):
        return [], [f"VQ encoders of other sizes: {listed(other, LISTED)}"]
    skipped = a and method == "logits"
    return ["both carry a VQ encoder, which no token passes through; --by weights compares it"] if skipped else [], []


def _tokenizers(pair: Pair) -> tuple[list[str], list[str]]:
    """(notes, problems) about the tokenizers found with the two; different names are allowed where texts have the same ids."""
    try:
        a, b = (tokenizer_files.find(source.folder, experiment_of(source)).vocab() for source in pair)
    except MissingFileError as error:
        return [f"tokenizers were not compared; an experiment names {error}"], []
    if not (a and b):
        absent = " and ".join(side for side, vocab in (("A", a), ("B", b)) if not vocab)
        return [f"tokenizers were not compared: none found with {absent}"], []
    if a == b:
        return ["the tokenizers are the same"], []
    names = [vocab.names(sys.maxsize) for vocab in (a, b)]
    differing = [name for name in names[0] | names[1] if names[0].get(name) != names[1].get(name)]
    # The text of all shared names: wherever the two merge differently, it splits into different tokens.
    text = a.decode([id for name, id in names[0].items() if names[1].get(name) == id])
    listing = listed(differing, LISTED)
    if any(name in names[0] and name in names[1] for name in differing) or a.encode(text) != b.encode(text):
        return [], [f"the tokenizers give the same text other ids; names that differ: {listing or 'none'}"]
    return [f"the tokenizers differ in {listing or 'settings'}; all other text has the same ids in both"], []
