"""Records -> folders of tokens, once and for all, by any number of processes, resumable after a kill at any moment."""

from collections.abc import Sequence
from pathlib import Path

from lumina_jax import layout
from lumina_jax.config import DataConfig
from lumina_jax.data.encode import Encoder
from lumina_jax.data.shard_maker import Maker, Stage
from lumina_jax.data.shard_writer import write_totals
from lumina_jax.data.shards import MANIFEST, SETTINGS, Manifest, Settings, read_json, write_json
from lumina_jax.data.sources import Source
from lumina_jax.errors import InputError
from lumina_jax.model.image_tokenizer import ImageTokenizer, fingerprint
from lumina_jax.progress import Meter
from lumina_jax.storage import Folder
from lumina_jax.vocab import Vocab, size_name

SHARD_RECORDS = 8192
"""Some 100 MB of tokens of 768-px images. A kill costs each process the work on two shards at the most."""

EVERY = slice(None)


def pretokenize(
    source: Source,
    vq: ImageTokenizer,
    vocab: Vocab,
    out: str | Path,
    cfg: DataConfig,
    seed: int,
    shard_records: int = SHARD_RECORDS,
    batch: int = 64,
    sizes: Sequence[tuple[int, int]] | None = None,
    progress: bool = True,
    max_tokens: int | None = None,
    own: slice = EVERY,
    name: str = "",
) -> Manifest | None:
    """:func:`pretokenize_stages` with one stage: the folder ``out`` with crops of ``sizes``.

    They are by default the crop sizes of cfg.size, cfg.patch and cfg.max_ratio.
    """
    stage = Stage(out, tuple(sizes or layout.crop_sizes(cfg.size, cfg.patch, cfg.max_ratio)), max_tokens)
    manifests = pretokenize_stages(
        source, vq, vocab, [stage], seed, shard_records, batch, cfg.threads, progress, own, name
    )
    return manifests[0] if manifests else None


def pretokenize_stages(
    source: Source,
    vq: ImageTokenizer,
    vocab: Vocab,
    stages: Sequence[Stage],
    seed: int,
    shard_records: int = SHARD_RECORDS,
    batch: int = 64,
    threads: int = 2,
    progress: bool = True,
    own: slice = EVERY,
    name: str = "",
) -> list[Manifest]:
    """Writes every record of ``source`` as tokens into the folder of each stage (its format: data.shards).

    Each image is read once, cropped at random to the best size of each stage, and encoded with images of its size, at most
    ``batch`` at a time on each device. A folder is a pure function of these arguments, whatever the other stages are: killed
    at any moment and called again, this redoes what it had begun, two shards at most, and ends in the same bytes. A bad record
    is listed with its reason in rejects.jsonl, never replaced, never cut and never fatal.

    Of the shards this process makes those of ``own``: ``slice(i, None, n)`` are those of process i of n, which may write
    into the same folders at the same time. The last to finish writes the totals, and gets the manifests; the others get an
    empty list. What is whole is left as it is, whoever made it, so a later start may have another number of processes.

    Raises ValueError when a folder was begun with other settings, or when sizes, VQ model and tokenizer do not fit together.
    """
    settings = stage_settings(source, vq, vocab, stages, seed, shard_records, name)
    folders = begin(stages, settings)
    mine = set(range(settings[0].shards)[own])
    title = f"pretokenize {', '.join(map(str, folders))}"
    with Meter(title, sum(len(settings[0].span(shard)) for shard in mine), progress) as meter:
        if all(folder.has(MANIFEST) for folder in folders):
            meter.say(f"{', '.join(map(str, folders))}: finished already")
            return finish(stages)
        todo = shards_to_make(folders, settings, mine)
        meter.skip(sum(len(settings[0].span(shard)) for shard in mine - set(todo)))
        encoder = Encoder.on_devices(vq, batch)
        Maker(source, vocab, encoder, stages, settings, threads).make(todo, meter)
        if left := shards_to_make(folders, settings, set(range(settings[0].shards))):
            meter.say(f"{len(left)} of {settings[0].shards} shards are still to be made by other processes")
            return []
    return finish(stages)


def stage_settings(
    source: Source,
    vq: ImageTokenizer,
    vocab: Vocab,
    stages: Sequence[Stage],
    seed: int,
    shard_records: int = SHARD_RECORDS,
    name: str = "",
) -> list[Settings]:
    """What the folder of each stage will say it was made from; ValueError when the parts do not fit together."""
    if len(source) == 0:
        raise InputError("the source has no records; there is nothing to pretokenize")
    for stage in stages:
        _check_fit(stage.sizes, vq, vocab)
    made_from = dict(
        records=len(source), source=source.fingerprint, tokenizer=vocab.fingerprint, vq=fingerprint(vq), seed=seed
    )
    return [
        Settings(
            **made_from,
            crops=tuple(f"{width}x{height}" for width, height in stage.sizes),
            shard_records=shard_records,
            max_tokens=stage.max_tokens,
            name=name,
        )
        for stage in stages
    ]


def begin(stages: Sequence[Stage], settings: Sequence[Settings]) -> list[Folder]:
    """Claims the folder of each stage; ValueError when one belongs to other settings."""
    folders = [Folder(stage.out) for stage in stages]
    if len({folder.place for folder in folders}) < len(folders):
        raise InputError(f"two stages have one folder, {folders[0]}; give each its own")
    for folder, wanted in zip(folders, settings, strict=True):
        if not folder.has(SETTINGS):
            write_json(folder, SETTINGS, wanted)
    for folder, wanted in zip(folders, settings, strict=True):
        if differences := read_json(folder, SETTINGS, Settings).differences(wanted):
            raise InputError(
                f"{folder} was begun with {', '.join(differences)}; choose another folder, or delete this one to make it anew"
            )
    return folders


def shards_to_make(
    folders: Sequence[Folder], settings: Sequence[Settings], shards: set[int]
) -> dict[int, tuple[int, ...]]:
    """Of ``shards`` those that are not whole -> the numbers of the stages that lack them."""
    missing = [set(each.missing(folder)) & shards for folder, each in zip(folders, settings, strict=True)]
    return {
        shard: tuple(stage for stage, lacks in enumerate(missing) if shard in lacks)
        for shard in sorted(set().union(*missing))
    }


def finish(stages: Sequence[Stage]) -> list[Manifest]:
    """The manifests of folders whose shards are all whole, written where they are not yet. It needs no source.

    Raises ValueError naming the shards that a folder lacks.
    """
    return [_finish(Folder(stage.out)) for stage in stages]


def _finish(folder: Folder) -> Manifest:
    if folder.has(MANIFEST):
        folder.tidy()
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
