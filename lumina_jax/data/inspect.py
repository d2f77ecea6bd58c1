"""What training will see of folders of tokens: counts, lengths, batches and their padding, the mixture, samples."""

import io
import itertools
import json
import shutil
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from lumina_jax.config import DataConfig
from lumina_jax.data.batch_plan import BatchPlan
from lumina_jax.data.length_index import quotas
from lumina_jax.data.shards import REJECTS, RejectLine, Shards, sum_causes
from lumina_jax.data.sheet import STYLE, card, pieces
from lumina_jax.data.sources.record import Reject, read_record
from lumina_jax.errors import MissingFileError, prefixed_errors, printable
from lumina_jax.model.image_tokenizer import ImageTokenizer
from lumina_jax.pictures.html import Html, meter, page, percent, section, tag
from lumina_jax.progress import ProgressDisplay
from lumina_jax.vocab import Vocab

BAR = 20
"""Letters of the bar of a share of 1, on a terminal."""
WIDTH = 132
MAX_ROWS = 16
REASON_LETTERS = 400
"""Of a reason in a table."""
DRAWN = "█─"
"""The letters of bars and lines."""


@dataclass(frozen=True)
class Table:
    """A table of the report, with a ``caption``. A float cell is a share from 0 to 1, drawn as a bar."""

    title: str
    caption: str
    heads: tuple[str, ...]
    rows: tuple[tuple[str | float, ...], ...]

    @property
    def numbers(self) -> set[int]:
        """The columns of numbers and shares, which align at the right."""
        columns = range(1, len(self.heads))
        return {c for c in columns if all(not isinstance(row[c], str) or row[c][:1].isdigit() for row in self.rows)}


def tables(folders: Sequence[Shards], cfg: DataConfig | None, seed: int = 0) -> Iterator[Table]:
    """What ``folders`` hold and, with ``cfg``, the batches that it makes of them."""
    yield _folders(folders)
    yield _settings(folders)
    filled = [folder for folder in folders if folder.manifest.kept]
    if filled:
        yield _kinds(filled)
        yield _lengths(filled)
    if crops := sum((Counter(folder.manifest.crops) for folder in folders), Counter()):
        caption = f"{_count(crops.total(), 'image')} in {_count(len(crops), 'size')}, width x height in pixels"
        caption += _the_first(len(crops))
        yield Table("Images", caption, ("size", "images", "share"), _shares(crops))
    if cfg and len(filled) == len(folders):
        yield _batches(folders, cfg, seed)
        if len(folders) > 1:
            yield _mixture(folders, cfg)
    if any(folder.manifest.rejected for folder in folders):
        yield _causes(folders)
        yield _rejected(folders)


def as_text(tables: Sequence[Table]) -> str:
    """The tables as text for the terminal of stdout, at most WIDTH letters wide."""
    out = io.StringIO()
    console = Console(file=out, width=min(WIDTH, shutil.get_terminal_size((WIDTH, 24)).columns))
    for table in tables:
        console.print(Text("\n".join(printable(line) for line in (table.title, table.caption) if line)))
        rich_table = RichTable(box=box.SIMPLE)
        for column, head in enumerate(table.heads):
            # A long word, such as a path, goes on in the next line; nothing of it is left out.
            rich_table.add_column(head, justify="right" if column in table.numbers else "left", overflow="fold")
        for row in table.rows:
            rich_table.add_row(*(Text(printable(cell) if isinstance(cell, str) else _bar(cell)) for cell in row))
        console.print(rich_table)
    text = "\n".join(line.rstrip() for line in out.getvalue().split("\n")).rstrip("\n")
    return text if _can_print(DRAWN) else text.translate(str.maketrans(DRAWN, "#-"))


def sheet(
    folders: Sequence[Shards],
    tables: Sequence[Table],
    vocab: Vocab | None,
    vq: ImageTokenizer | None,
    samples: int,
    seed: int = 0,
) -> str:
    """One HTML file: the tables and, with ``vocab`` and ``vq``, ``samples`` records drawn at random, their pictures decoded."""
    names = printable(", ".join(folder.path.name for folder in folders))
    content = [tag("h1", names)]
    drawn = _draw([folder for folder in folders if folder.manifest.kept], samples, seed)
    if drawn and vocab and vq:
        caption = "Drawn at random, as training reads them. Green is learned: text on green, pictures in a green frame."
        content.append(section("Samples", caption, tag("div", *_cards(drawn, vocab, vq), class_="sheet")))
    shown = (section(printable(table.title), printable(table.caption), _grid(table)) for table in tables)
    return page(names, STYLE.read_text(encoding="utf-8"), *content, tag("div", *shown, class_="tables"))


def _cards(drawn: Sequence[tuple[Shards, int]], vocab: Vocab, vq: ImageTokenizer) -> list[Html]:
    cards = []
    with ProgressDisplay("samples", len(drawn)) as progress:
        for folder, index in drawn:
            made = read_record(_card, folder, index, vocab, vq)
            cards.append(_broken_card(folder, index, made.reason) if isinstance(made, Reject) else made)
            progress.advance(1)
    return cards


def _folders(folders: Sequence[Shards]) -> Table:
    rows = []
    for folder in folders:
        manifest, lengths = folder.manifest, folder.lengths if len(folder) else np.zeros(1)
        counts = (manifest.kept, manifest.rejected, manifest.tokens, *np.quantile(lengths, (0, 0.5, 1)).astype(int))
        learned = manifest.learned / max(manifest.tokens, 1)
        rows.append((str(folder.path), *(f"{count:,}" for count in counts), learned))
    heads = ("folder", "records", "rejected", "tokens", "shortest", "median", "longest", "learned")
    return Table("Folders", "Lengths are in tokens; the last column is the share of learned ones.", heads, tuple(rows))


def _settings(folders: Sequence[Shards]) -> Table:
    settings = [(str(folder.path), folder.manifest.settings) for folder in folders]
    vqs = (f"{s.vq}{' (assumed)' if s.vq_assumed else ''}" for _, s in settings)
    rows = tuple((path, s.name, s.tokenizer, vq, f"{s.seed}") for (path, s), vq in zip(settings, vqs, strict=True))
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


def _causes(folders: Sequence[Shards]) -> Table:
    counts, examples = Counter(), {}
    for folder in folders:
        for cause in folder.manifest.causes or sum_causes(_reject_lines(folder)):
            counts[cause.cause] += cause.count
            where = f"record {cause.index:,}{f' of {folder.path}' if len(folders) > 1 else ''}"
            examples.setdefault(cause.cause, f"{where}: {cause.reason[:REASON_LETTERS]}")
    rows = tuple((*row, examples[row[0]]) for row in _shares(counts))
    caption = f"{counts.total():,} records of the source were not kept, for {len(counts):,} causes" + _the_first(
        len(counts)
    )
    return Table("Why records were rejected", caption, ("cause", "records", "share", "for example"), rows)


def _rejected(folders: Sequence[Shards]) -> Table:
    lines = itertools.chain.from_iterable(map(_reject_lines, folders))
    rows = tuple((f"{line['index']:,}", line["reason"][:REASON_LETTERS]) for line in itertools.islice(lines, MAX_ROWS))
    count = sum(folder.manifest.rejected for folder in folders)
    caption = f"Not kept: {_count(count, 'record')}{_the_first(count)}; {REJECTS} in each folder lists all."
    return Table("Rejected", caption, ("record of the source", "why"), rows)


def _reject_lines(folder: Shards) -> Iterator[RejectLine]:
    """The entries of a folder's rejects.jsonl."""
    path = folder.path / REJECTS
    if not path.is_file():
        raise MissingFileError(f"{path}: no such file; copy the folder whole or pretokenize it again")
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            with prefixed_errors(
                f"{path}, line {number} is damaged; copy the folder again", ValueError, KeyError, TypeError
            ):
                reject = json.loads(line)
                yield {"index": int(reject["index"]), "reason": str(reject["reason"]), "cause": reject.get("cause", "")}


def _counts(folders: Sequence[Shards]) -> np.ndarray:
    """Records of each folder by the positions they take, i64[F L]."""
    longest = max(int(folder.lengths.max()) for folder in folders)
    return np.stack([np.bincount(folder.lengths - 1, minlength=longest) for folder in folders])


def _draw(folders: Sequence[Shards], samples: int, seed: int) -> list[tuple[Shards, int]]:
    """(folder, record) of the samples, in order: equally many of each folder, or all of a smaller one."""
    rng, each = np.random.default_rng(seed), -(-samples // max(len(folders), 1))
    drawn = [
        (folder, int(index))
        for folder in folders
        for index in np.sort(rng.choice(len(folder), min(each, len(folder)), replace=False))
    ]
    return drawn[:samples]


def _card(folder: Shards, index: int, vocab: Vocab, vq: ImageTokenizer) -> Html:
    tokens, learn = folder[index]
    title = f"{_title(folder, index)}: {len(tokens):,} tokens, {int(learn.sum()):,} learned"
    return card(title, tuple(pieces(tokens, learn, vocab)), vq)


def _broken_card(folder: Shards, index: int, reason: str) -> Html:
    words = tag("p", f"a record that cannot be read: {printable(reason)}", class_="broken")
    return tag("figure", tag("figcaption", _title(folder, index)), words, class_="sample")


def _title(folder: Shards, index: int) -> str:
    return f"{printable(folder.path.name)}, record {index:,}"


def _grid(table: Table) -> Html:
    heads = tag("tr", *(tag("th", head, scope="col") for head in table.heads))
    cells = (
        [tag("td", printable(cell) if isinstance(cell, str) else meter(cell)) for cell in row] for row in table.rows
    )
    rows = (tag("tr", *row) for row in cells)
    return tag("div", tag("table", tag("thead", heads), tag("tbody", *rows), class_="facts"), class_="wide")


def _bar(share: float) -> str:
    return f"{DRAWN[0] * round(BAR * share):<{BAR}} {percent(share):>6}"


def _can_print(letters: str) -> bool:
    """Whether stdout has these letters."""
    try:
        letters.encode(getattr(sys.stdout, "encoding", None) or "utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _the_first(count: int) -> str:
    return f", here the first {MAX_ROWS}" if count > MAX_ROWS else ""
