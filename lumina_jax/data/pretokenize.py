"""Records -> folders of tokens, by any number of processes; killed at any moment, the same call continues."""

from collections.abc import Sequence
from pathlib import Path

from lumina_jax import layout
from lumina_jax.config import DataConfig
from lumina_jax.data.encode import BatchEncoder
from lumina_jax.data.shard_maker import FETCHERS, PretokenizeStage, ShardMaker
from lumina_jax.data.shard_writer import write_totals
from lumina_jax.data.shards import (
    MANIFEST,
    OURS,
    SETTINGS,
    Manifest,
    Settings,
    read_json,
    rejects_in_words,
    to_json,
)
from lumina_jax.data.sources import Source, TokenSource
from lumina_jax.data.sources.fetch import DEFAULT_LIMITS, FetchLimits
from lumina_jax.data.sources.record import MAX_CONSECUTIVE_REJECTS
from lumina_jax.errors import ExistingFileError, InputError, interrupted
from lumina_jax.model.image_tokenizer import ImageTokenizer, fingerprint
from lumina_jax.progress import ProgressDisplay, print_line
from lumina_jax.storage import StorageFolder
from lumina_jax.vocab import Vocab, size_name

SHARD_RECORDS = 8192
"""Some 100 MB of tokens of 768-px images. A kill costs each process at most the work on two shards."""

ALL_SHARDS = slice(None)


def pretokenize(
    source: Source | TokenSource,
    vq: ImageTokenizer,
    vocab: Vocab,
    out: str | Path,
    cfg: DataConfig,
    seed: int,
    sizes: Sequence[tuple[int, int]] | None = None,
    max_tokens: int | None = None,
    **options: object,
) -> Manifest | None:
    """:func:`pretokenize_stages` with ``options`` for one stage: ``out``, with crops of ``sizes``, by default those of ``cfg``."""
    stage = PretokenizeStage(out, tuple(sizes or layout.crop_sizes(cfg.size, cfg.patch, cfg.max_ratio)), max_tokens)
    manifests = pretokenize_stages(source, vq, vocab, [stage], seed, **(reading(cfg) | options))
    return manifests[0] if manifests else None


def reading(cfg: DataConfig) -> dict[str, object]:
    """How :func:`pretokenize_stages` reads, as its arguments of these names."""
    return dict(
        threads=cfg.threads,
        max_consecutive_rejects=cfg.max_consecutive_rejects,
        fetchers=cfg.fetchers,
        limits=FetchLimits(cfg.fetch_seconds, cfg.fetch_mb << 20),
    )


def pretokenize_stages(
    source: Source | TokenSource,
    vq: ImageTokenizer,
    vocab: Vocab,
    stages: Sequence[PretokenizeStage],
    seed: int,
    shard_records: int = SHARD_RECORDS,
    batch: int = 64,
    threads: int = 2,
    fetchers: int = FETCHERS,
    limits: FetchLimits = DEFAULT_LIMITS,
    progress: bool = True,
    shard_slice: slice = ALL_SHARDS,
    name: str = "",
    max_consecutive_rejects: int = MAX_CONSECUTIVE_REJECTS,
) -> list[Manifest]:
    """Writes every record of ``source`` as tokens into the folder of each stage (format: data.shards).

    Each image is read once, cropped at random to the best size of each stage, and encoded with images of its size, at most
    ``batch`` at a time on each device. A folder is a pure function of these arguments, independent of the other stages. Killed
    at any moment and called again, this redoes at most two shards and ends in the same bytes. A bad record is listed with its
    reason in rejects.jsonl; it is never replaced or cut, and never ends the run. At the end rejects are summed up by cause.
    ``threads`` decode and crop, while up to ``fetchers`` more fetch pictures from web servers, each within ``limits``.

    This process makes the shards of ``shard_slice``: ``slice(i, None, n)`` for process i of n, which may all write into the
    same folders at once. The last process to finish writes the totals and returns the manifests, the others an empty list.
    Complete shards are kept, whoever made them, so a later start may have another number of processes.

    Raises InputError when a folder was begun with other settings, or when sizes, VQ model and tokenizer do not fit together, and
    SourceError when ``max_consecutive_rejects`` records in a row (0: any number) are rejected for one cause. A KeyboardInterrupt
    has a note on what is kept.
    """
    settings = stage_settings(source, vq, vocab, stages, seed, shard_records, name)
    folders = begin(stages, settings)
    shards = set(range(settings[0].shards)[shard_slice])
    title = f"pretokenize {', '.join(map(str, folders))}"
    with ProgressDisplay(title, sum(len(settings[0].span(shard)) for shard in shards), progress) as meter:
        if all(folder.exists(MANIFEST) for folder in folders):
            meter.print_line(f"{', '.join(map(str, folders))}: finished already")
            return finish(stages)
        todo = shards_to_make(folders, settings, shards)
        meter.skip(sum(len(settings[0].span(shard)) for shard in shards - set(todo)))
        encoder = BatchEncoder.on_devices(vq, batch)
        maker = ShardMaker(source, vocab, encoder, stages, settings, threads, max_consecutive_rejects, fetchers, limits)
        with interrupted(lambda: _kept(folders, settings)):
            maker.make(todo, meter)
            if missing := shards_to_make(folders, settings, set(range(settings[0].shards))):
                meter.print_line(
                    f"{len(missing)} of {settings[0].shards} shards are still to be made by other processes"
                )
                return []
            manifests = finish(stages)
    if progress:
        print_rejects(folders, manifests)
    return manifests


def print_rejects(folders: Sequence[StorageFolder], manifests: Sequence[Manifest]) -> None:
    """Says on stderr what was rejected, summed up by cause; nothing when nothing was."""
    for folder, manifest in zip(folders, manifests, strict=True):
        for line in rejects_in_words(str(folder), manifest.kept, manifest.causes):
            print_line(line)


def _kept(folders: Sequence[StorageFolder], settings: Sequence[Settings]) -> str:
    """What an interrupt leaves."""
    made = [
        f"{each.shards - len(each.missing(folder))} of {each.shards}"
        for folder, each in zip(folders, settings, strict=True)
    ]
    counts = " and ".join(f"{count} shards in {folder}" for count, folder in zip(made, folders, strict=True))
    return f"{counts} are kept; give the same command again to go on"


def stage_settings(
    source: Source | TokenSource,
    vq: ImageTokenizer,
    vocab: Vocab,
    stages: Sequence[PretokenizeStage],
    seed: int,
    shard_records: int = SHARD_RECORDS,
    name: str = "",
) -> list[Settings]:
    """The settings of each stage's folder; InputError when sizes, VQ model and tokenizer do not fit together."""
    if len(source) == 0:
        raise InputError("the source has no records; there is nothing to pretokenize")
    ready = isinstance(source, TokenSource)  # of which nothing is cropped, nor drawn by the seed
    sizes = [() if ready else stage.sizes for stage in stages]
    for stage_sizes in sizes:
        _check_fit(stage_sizes, vq, vocab)
    common = (len(source), source.fingerprint, vocab.fingerprint, fingerprint(vq), 0 if ready else seed)
    crops = [tuple("{}x{}".format(*size) for size in stage_sizes) for stage_sizes in sizes]
    return [
        Settings(*common, stage_crops, shard_records, stage.max_tokens, name, ready)
        for stage_crops, stage in zip(crops, stages, strict=True)
    ]


def begin(stages: Sequence[PretokenizeStage], settings: Sequence[Settings]) -> list[StorageFolder]:
    """Writes the settings into the folder of each stage.

    Raises InputError when one was begun with others, ExistingFileError when it holds files of other origin that this would
    overwrite.
    """
    folders = [StorageFolder(stage.out) for stage in stages]
    if len({folder.url for folder in folders}) < len(folders):
        raise InputError(f"two stages have one folder, {folders[0]}; give each its own")
    for folder in folders:
        names = folder.file_names()
        if SETTINGS not in names and (others := sorted(name for name in names if OURS.fullmatch(name))):
            raise ExistingFileError(
                f"{folder} holds {others[0]}, but no {SETTINGS}: another program wrote it; choose another"
            )
    for folder, folder_settings in zip(folders, settings, strict=True):
        folder.write_new_text(SETTINGS, to_json(folder_settings))
    for folder, folder_settings in zip(folders, settings, strict=True):
        if differences := read_json(folder, SETTINGS, Settings).differences(folder_settings):
            raise InputError(
                f"{folder} was begun with {', '.join(differences)}; choose another folder, or delete this one to make it anew"
            )
    return folders


def shards_to_make(
    folders: Sequence[StorageFolder], settings: Sequence[Settings], shards: set[int]
) -> dict[int, tuple[int, ...]]:
    """The incomplete ones of ``shards`` -> the numbers of the stages that lack them."""
    missing = [set(each.missing(folder)) & shards for folder, each in zip(folders, settings, strict=True)]
    return {
        shard: tuple(stage for stage, lacks in enumerate(missing) if shard in lacks)
        for shard in sorted(set().union(*missing))
    }


def finish(stages: Sequence[PretokenizeStage]) -> list[Manifest]:
    """The manifests of the stages' folders, written where they are missing. Needs no source.

    Raises InputError when a folder lacks shards.
    """
    return [_finish(StorageFolder(stage.out)) for stage in stages]


def _finish(folder: StorageFolder) -> Manifest:
    if folder.exists(MANIFEST):
        folder.remove_temporary_files()
        return read_json(folder, MANIFEST, Manifest)
    settings = read_json(folder, SETTINGS, Settings)
    if missing := settings.missing(folder):
        raise InputError(
            f"{folder} lacks {len(missing)} of its {settings.shards} shards, {missing[0]} the first; start the processes "
            "that make them again"
        )
    return write_totals(folder, settings)


def _check_fit(sizes: Sequence[tuple[int, int]], vq: ImageTokenizer, vocab: Vocab) -> None:
    if vq.codes > len(vocab.code_ids):
        raise InputError(
            f"the VQ model has {vq.codes} codes, but {vocab.source} has tokens for {len(vocab.code_ids)}; "
            "use a tokenizer made for this VQ model"
        )
    unit = layout.CODES_PER_UNIT * vq.stride
    for edge in sorted({edge for size in sizes for edge in size}):
        if edge < unit or edge % unit:
            raise InputError(
                f"crops with an edge of {edge} px, but a size token of this VQ model stands for {unit} px; "
                f"set data.patch to a multiple of {unit}"
            )
        if not vocab.has(size_name(edge // unit)):
            raise InputError(
                f"crops with an edge of {edge} px need the token {size_name(edge // unit)}, which {vocab.source} lacks; "
                "choose a smaller data.size or data.max_ratio"
            )
