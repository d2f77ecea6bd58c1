"""What training will see of folders of tokens: counts, lengths, batches and their padding, the mixture, samples."""

import fileinput
import io
import itertools
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table as RichTable

from lumina_jax.config import DataConfig
from lumina_jax.data.batch_plan import BatchPlan, quotas
from lumina_jax.data.shards import REJECTS, Shards
from lumina_jax.data.sheet import STYLE, card, pieces
from lumina_jax.model.image_tokenizer import ImageTokenizer
from lumina_jax.pictures.html import Html, meter, page, percent, section, tag
from lumina_jax.progress import ProgressDisplay
from lumina_jax.vocab import Vocab

BAR = 20
"""Letters of the bar of a share of 1, on a terminal."""
WIDTH = 132
MAX_ROWS = 16


@dataclass(frozen=True)
class Table:
    """A table of the report, with a ``caption``. A float cell is a share from 0 to 1, drawn as a bar."""

    title: str
    caption: str
    heads: tuple[str, ...]
    rows: tuple[tuple[str | float, ...], ...]


def tables(folders: Sequence[Shards], cfg: DataConfig | None, seed: int = 0) -> Iterator[Table]:
    """What ``folders`` hold and, with ``cfg``, the batches that it makes of them."""
    yield _folders(folders)
    yield _settings(folders)
    yield _kinds(folders)
    yield _lengths(folders)
    if crops := sum((Counter(folder.manifest.crops) for folder in folders), Counter()):
        caption = f"{crops.total():,} images in {len(crops)} sizes, width x height in pixels" + _the_first(len(crops))
        yield Table("Images", caption, ("size", "images", "share"), _shares(crops))
    if cfg:
        yield _batches(folders, cfg, seed)
        if len(folders) > 1:
            yield _mixture(folders, cfg)
    if any(folder.manifest.rejected for folder in folders):
        yield _rejected(folders)


def as_text(tables: Sequence[Table]) -> str:
    """The tables as text for a terminal."""
    out = io.StringIO()
    console = Console(file=out, width=WIDTH)
    for table in tables:
        console.print(table.title, table.caption, sep="\n" if table.caption else "", highlight=False)
        rich_table = RichTable(box=box.SIMPLE)
        for column, head in enumerate(table.heads):
            rich_table.add_column(head, justify="right" if column else "left")
        for row in table.rows:
            rich_table.add_row(*(cell if isinstance(cell, str) else _bar(cell) for cell in row))
        console.print(rich_table)
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines())


def sheet(
    folders: Sequence[Shards], tables: Sequence[Table], vocab: Vocab, vq: ImageTokenizer, samples: int, seed: int = 0
) -> str:
    """One HTML file: the tables, and ``samples`` records drawn at random, with their pictures decoded."""
    drawn = _draw(folders, samples, seed)
    cards = []
    with ProgressDisplay("samples", len(drawn)) as progress:
        for folder, index in drawn:
            cards.append(_card(folders[folder], index, vocab, vq))
            progress.advance(1)
    names = ", ".join(folder.path.name for folder in folders)
    caption = "Drawn at random, as training reads them. Green is learned: text on green, pictures in a green frame."
    sample_html = section("Samples", caption, tag("div", *cards, class_="sheet"))
    table_html = tag("div", *(section(table.title, table.caption, _grid(table)) for table in tables), class_="tables")
    return page(names, STYLE.read_text(encoding="utf-8"), tag("h1", names), sample_html, table_html)


def _folders(folders: Sequence[Shards]) -> Table:
    rows = []
    for folder in folders:
        manifest, quantiles = folder.manifest, np.quantile(folder.lengths, (0, 0.5, 1)).astype(int)
        counts = (manifest.kept, manifest.rejected, manifest.tokens, *quantiles)
        rows.append((str(folder.path), *(f"{count:,}" for count in counts), manifest.learned / manifest.tokens))
    heads = ("folder", "records", "rejected", "tokens", "shortest", "median", "longest", "learned")
    return Table("Folders", "Lengths are in tokens; the last column is the share of learned ones.", heads, tuple(rows))


def _settings(folders: Sequence[Shards]) -> Table:
    settings = [(str(folder.path), folder.manifest.settings) for folder in folders]
    rows = tuple((path, s.name, s.tokenizer, s.vq, f"{s.seed}") for path, s in settings)
    caption = "Training refuses tokens whose fingerprints differ from those of its tokenizer and VQ model."
    return Table("Made with", caption, ("folder", "source", "tokenizer", "VQ model", "seed"), rows)


def _kinds(folders: Sequence[Shards]) -> Table:
    kinds = sum((Counter(folder.manifest.kinds) for folder in folders), Counter())
    return Table("What is learned", "By what the record shows.", ("kind", "records", "share"), _shares(kinds))


def _shares(counts: Counter[str]) -> tuple[tuple[str, str, float], ...]:
    """Name, count and share of the MAX_ROWS most frequent names."""
    return tuple((name, f"{count:,}", count / counts.total()) for name, count in counts.most_common(MAX_ROWS))


def _lengths(folders: Sequence[Shards]) -> Table:
    counts = _counts(folders).sum(0)
    edges = np.unique(np.linspace(np.flatnonzero(counts)[0], len(counts), MAX_ROWS + 1).astype(int))
    rows = tuple(
        (f"{low:,} to {high - 1:,}", f"{int(number):,}", float(number / counts.sum()))
        for low, high in itertools.pairwise(edges)
        for number in [counts[low:high].sum()]
    )
    caption = "Positions a record takes: one less than its tokens."
    return Table("Lengths", caption, ("positions", "records", "share"), rows)


def _batches(folders: Sequence[Shards], cfg: DataConfig, seed: int) -> Table:
    plan = BatchPlan([folder.lengths for folder in folders], cfg, seed)
    rows = tuple(
        (f"{b.length:,}", f"{b.rows:,}", f"{b.steps:,}", f"{b.samples / (b.steps * b.rows):.2f}", b.padding)
        for b in plan.buckets
    )
    caption = f"An epoch takes {plan.steps:,} steps; {percent(plan.padding)} of it is padding or comes twice."
    return Table("Batches", caption, ("row length", "rows", "steps an epoch", "samples a row", "padding"), rows)


def _mixture(folders: Sequence[Shards], cfg: DataConfig) -> Table:
    counts = _counts(folders)
    quota = quotas(counts, cfg.weights, cfg.mix_by)
    records, positions = quota.sum(1), quota @ np.arange(counts.shape[1])
    shares = ((number / number.sum()).tolist() for number in (records, positions))
    times = (f"{number / len(folder):.2f}" for number, folder in zip(records, folders, strict=True))
    weights = map(str, cfg.weights or ("",) * len(folders))
    rows = tuple(zip((str(folder.path) for folder in folders), weights, *shares, times, strict=True))
    caption = f"Weights are shares of {cfg.mix_by}." if cfg.weights else "No weights: every record once an epoch."
    heads = ("folder", "weight", "share of records", "share of positions", "times an epoch")
    return Table("Mixture", caption, heads, rows)


def _rejected(folders: Sequence[Shards]) -> Table:
    with fileinput.FileInput([folder.path / REJECTS for folder in folders], encoding="utf-8") as lines:
        rejects = [json.loads(line) for line in itertools.islice(lines, MAX_ROWS)]
    rows = tuple((f"{reject['index']:,}", reject["reason"]) for reject in rejects)
    count = sum(folder.manifest.rejected for folder in folders)
    caption = f"{count:,} records were not kept{_the_first(count)}; {REJECTS} in each folder lists all."
    return Table("Rejected", caption, ("record of the source", "why"), rows)


def _counts(folders: Sequence[Shards]) -> np.ndarray:
    """Records of each folder by the positions they take, i64[F L]."""
    longest = max(int(folder.lengths.max()) for folder in folders)
    return np.stack([np.bincount(folder.lengths - 1, minlength=longest) for folder in folders])


def _draw(folders: Sequence[Shards], samples: int, seed: int) -> list[tuple[int, int]]:
    """(folder, record) of the samples, sorted: equally many of each folder, or all of a smaller one."""
    rng, each = np.random.default_rng(seed), -(-samples // len(folders))
    drawn = [
        (number, int(index))
        for number, folder in enumerate(folders)
        for index in np.sort(rng.choice(len(folder), min(each, len(folder)), replace=False))
    ]
    return drawn[:samples]


def _card(folder: Shards, index: int, vocab: Vocab, vq: ImageTokenizer) -> Html:
    tokens, learn = folder[index]
    title = f"{folder.path.name}, record {index:,}: {len(tokens):,} tokens, {int(learn.sum()):,} learned"
    return card(title, tuple(pieces(tokens, learn, vocab)), vq)


def _grid(table: Table) -> Html:
    heads = tag("tr", *(tag("th", head, scope="col") for head in table.heads))
    cells = ([tag("td", cell if isinstance(cell, str) else meter(cell)) for cell in row] for row in table.rows)
    rows = (tag("tr", *row) for row in cells)
    return tag("div", tag("table", tag("thead", heads), tag("tbody", *rows), class_="facts"), class_="wide")


def _bar(share: float) -> str:
    return f"{'█' * round(BAR * share):<{BAR}} {percent(share):>6}"


def _the_first(count: int) -> str:
    return f", here the first {MAX_ROWS}" if count > MAX_ROWS else ""
