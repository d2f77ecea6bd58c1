"""What training will see of folders of tokens: counts, lengths, batches and their padding, the mixture, and samples to read."""

import io
import itertools
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table as Printed

from lumina_jax.config import DataConfig
from lumina_jax.data.batch_plan import BatchPlan, quotas
from lumina_jax.data.shards import REJECTS, Shards
from lumina_jax.data.sheet import STYLE, card, pieces
from lumina_jax.model.image_tokenizer import ImageTokenizer
from lumina_jax.pictures.html import Html, meter, page, percent, section, tag
from lumina_jax.progress import ProgressDisplay
from lumina_jax.vocab import Vocab

BAR = 20
"""Letters of a share of 1 on a terminal."""
WIDTH = 132
MOST_ROWS = 16


@dataclass(frozen=True)
class Table:
    """A table for people; a cell that is a float is a share 0..1, drawn as a bar."""

    title: str
    words: str
    heads: tuple[str, ...]
    rows: tuple[tuple[str | float, ...], ...]


def tables(folders: Sequence[Shards], cfg: DataConfig | None, seed: int = 0) -> Iterator[Table]:
    """What ``folders`` hold and, with ``cfg``, what batches it makes of them."""
    yield _folders(folders)
    yield _made_with(folders)
    yield _kinds(folders)
    yield _lengths(folders)
    if crops := sum((Counter(part.manifest.crops) for part in folders), Counter()):
        total = sum(crops.values())
        rows = tuple((size, f"{count:,}", count / total) for size, count in crops.most_common(MOST_ROWS))
        words = f"{total:,} images in {len(crops)} sizes, width x height in pixels" + _the_first(len(crops))
        yield Table("Images", words, ("size", "images", "share"), rows)
    if cfg:
        yield _batches(folders, cfg, seed)
        if len(folders) > 1:
            yield _mixture(folders, cfg)
    if any(part.manifest.rejected for part in folders):
        yield _rejected(folders)


def printed(tables: Sequence[Table]) -> str:
    """The tables for a terminal."""
    out = io.StringIO()
    console = Console(file=out, width=WIDTH)
    for table in tables:
        console.print(table.title, table.words, sep="\n" if table.words else "", highlight=False)
        shown = Printed(box=box.SIMPLE)
        for place, head in enumerate(table.heads):
            shown.add_column(head, justify="left" if place == 0 else "right")
        for row in table.rows:
            shown.add_row(*(cell if isinstance(cell, str) else _bar(cell) for cell in row))
        console.print(shown)
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines())


def sheet(
    folders: Sequence[Shards], tables: Sequence[Table], vocab: Vocab, vq: ImageTokenizer, samples: int, seed: int = 0
) -> str:
    """One HTML file: the tables, and ``samples`` records drawn at random with their pictures decoded."""
    chosen = _draw(folders, samples, seed)
    cards = []
    with ProgressDisplay("samples", len(chosen)) as progress:
        for folder, index in chosen:
            cards.append(_card(folders[folder], index, vocab, vq))
            progress.advance(1)
    names = ", ".join(part.path.name for part in folders)
    words = "Drawn at random, as training reads them. Green is learned: text on green, pictures in a green frame."
    shown = section("Samples", words, tag("div", *cards, class_="sheet"))
    counted = tag("div", *(section(table.title, table.words, _grid(table)) for table in tables), class_="tables")
    return page(names, STYLE.read_text(encoding="utf-8"), tag("h1", names), shown, counted)


def _folders(folders: Sequence[Shards]) -> Table:
    rows = []
    for part in folders:
        made, quantiles = part.manifest, np.quantile(part.lengths, (0, 0.5, 1)).astype(int)
        counts = (made.kept, made.rejected, made.tokens, *quantiles)
        rows.append((str(part.path), *(f"{count:,}" for count in counts), made.learned / made.tokens))
    heads = ("folder", "records", "rejected", "tokens", "shortest", "median", "longest", "learned")
    return Table("Folders", "Lengths are in tokens; what is learned is a share of them.", heads, tuple(rows))


def _made_with(folders: Sequence[Shards]) -> Table:
    made = [(str(part.path), part.manifest.settings) for part in folders]
    rows = tuple((path, by.name, by.tokenizer, by.vq, f"{by.seed}") for path, by in made)
    words = "Training refuses tokens whose fingerprints are not those of its own tokenizer and VQ model."
    return Table("Made with", words, ("folder", "source", "tokenizer", "VQ model", "seed"), rows)


def _kinds(folders: Sequence[Shards]) -> Table:
    kinds = sum((Counter(part.manifest.kinds) for part in folders), Counter())
    total = sum(kinds.values())
    rows = tuple((kind, f"{count:,}", count / total) for kind, count in kinds.most_common())
    return Table("What is learned", "From what is shown.", ("kind", "records", "share"), rows)


def _lengths(folders: Sequence[Shards]) -> Table:
    counts = _counts(folders).sum(0)
    edges = np.unique(np.linspace(np.flatnonzero(counts)[0], len(counts), MOST_ROWS + 1).astype(int))
    rows = tuple(
        (f"{low:,} to {high - 1:,}", f"{int(number):,}", float(number / counts.sum()))
        for low, high in itertools.pairwise(edges)
        for number in [counts[low:high].sum()]
    )
    return Table(
        "Lengths", "Positions a record takes: one less than its tokens.", ("positions", "records", "share"), rows
    )


def _batches(folders: Sequence[Shards], cfg: DataConfig, seed: int) -> Table:
    plan = BatchPlan([folder.lengths for folder in folders], cfg, seed)
    rows = tuple(
        (f"{b.length:,}", f"{b.rows:,}", f"{b.steps:,}", f"{b.samples / (b.steps * b.rows):.2f}", b.padding)
        for b in plan.buckets
    )
    words = f"An epoch takes {plan.steps:,} steps; {percent(plan.padding)} of its positions are padding or come twice."
    return Table("Batches", words, ("row length", "rows", "steps an epoch", "samples a row", "padding"), rows)


def _mixture(folders: Sequence[Shards], cfg: DataConfig) -> Table:
    counts = _counts(folders)
    taken = quotas(counts, cfg.weights, cfg.mix_by)
    positions = taken @ np.arange(counts.shape[1])
    weights = cfg.weights or ("",) * len(folders)
    rows = tuple(
        (
            str(part.path),
            f"{weight}",
            float(own.sum() / taken.sum()),
            float(size / positions.sum()),
            f"{own.sum() / len(part):.2f}",
        )
        for part, weight, own, size in zip(folders, weights, taken, positions, strict=True)
    )
    words = f"Weights are shares of {cfg.mix_by}." if cfg.weights else "No weights: every record once an epoch."
    heads = ("folder", "weight", "share of records", "share of positions", "times an epoch")
    return Table("Mixture", words, heads, rows)


def _rejected(folders: Sequence[Shards]) -> Table:
    lines = (line for part in folders for line in _lines(part.path / REJECTS))
    rows = tuple(
        (f"{found['index']:,}", found["reason"]) for found in map(json.loads, itertools.islice(lines, MOST_ROWS))
    )
    count = sum(part.manifest.rejected for part in folders)
    words = f"{count:,} records were not kept{_the_first(count)}; {REJECTS} in each folder has all."
    return Table("Rejected", words, ("record of the source", "why"), rows)


def _lines(path: Path) -> Iterator[str]:
    with open(path, encoding="utf-8") as file:
        yield from file


def _counts(folders: Sequence[Shards]) -> np.ndarray:
    """Records of each folder by the positions they take, i64[F L]."""
    longest = max(int(part.lengths.max()) for part in folders)
    return np.stack([np.bincount(part.lengths - 1, minlength=longest) for part in folders])


def _draw(folders: Sequence[Shards], samples: int, seed: int) -> list[tuple[int, int]]:
    """(folder, record) of the samples: as many of each folder, as far as it has them, in the order they lie."""
    rng, each = np.random.default_rng(seed), -(-samples // len(folders))
    drawn = [
        (number, int(index))
        for number, part in enumerate(folders)
        for index in np.sort(rng.choice(len(part), min(each, len(part)), replace=False))
    ]
    return drawn[:samples]


def _card(part: Shards, index: int, vocab: Vocab, vq: ImageTokenizer) -> Html:
    tokens, learn = part[index]
    title = f"{part.path.name}, record {index:,}: {len(tokens):,} tokens, {int(learn.sum()):,} learned"
    return card(title, tuple(pieces(tokens, learn, vocab)), vq)


def _grid(table: Table) -> Html:
    heads = tag("tr", *(tag("th", head, scope="col") for head in table.heads))
    rows = (
        tag("tr", *(tag("td", cell if isinstance(cell, str) else meter(cell)) for cell in row)) for row in table.rows
    )
    return tag("div", tag("table", tag("thead", heads), tag("tbody", *rows), class_="facts"), class_="wide")


def _bar(share: float) -> str:
    return f"{'█' * round(BAR * share):<{BAR}} {percent(share):>6}"


def _the_first(count: int) -> str:
    return f", here the first {MOST_ROWS}" if count > MOST_ROWS else ""
