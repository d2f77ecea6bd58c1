"""run.py data: inspects tokens before training, prepares sources to share them, exports sources to read and edit."""

from argparse import ArgumentParser, Namespace, _SubParsersAction

from lumina_jax.cli.arguments import (
    NOTHING,
    at_least,
    check_address,
    expand_home,
    input_path,
    input_paths,
    model_path,
    output_file,
    output_path,
    seed,
)
from lumina_jax.cli.ending import say
from lumina_jax.cli.experiments import load_experiment
from lumina_jax.cli.hub_fields import fetched_files
from lumina_jax.cli.results import command_of, results_folder
from lumina_jax.errors import InputError

SHEET = "out/data.html"
SOURCES = "any kind that lumina_jax/data/SOURCES.md lists but toy:"


def add_data(verbs: _SubParsersAction) -> None:
    data = verbs.add_parser("data", help="inspect tokens before training; prepare and export sources")
    what = data.add_subparsers(dest="action", required=True, metavar="WHAT")

    inspect = what.add_parser("inspect", help="counts, lengths, batches, mixture, and samples to read")
    inspect.add_argument(
        "path", type=input_paths, help="a folder written by run.py pretokenize, or several with commas between"
    )
    inspect.add_argument("--config", help="a config: its buckets, mixture, tokenizer and VQ model")
    inspect.add_argument("changes", nargs="*", default=[], metavar="a.b=value", help="with --config: fields to change")
    inspect.add_argument("--tokenizer", type=model_path, help="tokenizer.json or its folder (default: the config's)")
    inspect.add_argument(
        "--vq", type=model_path, help="vqgan.ckpt, PatchVQ .npz or their folder (default: the config's)"
    )
    inspect.add_argument("--samples", type=at_least(1), default=24, metavar="N", help="records on the sheet")
    inspect.add_argument("--seed", type=seed, default=0, help="of the draw of samples")
    out_help = f"the HTML file (default: {SHEET}, else out/data-2.html ...)"
    inspect.add_argument("--out", type=output_file, help=out_help)
    deep_help = "compare every byte of the tokens with its checksum; exit code 1 where a file is damaged"
    inspect.add_argument("--deep", action="store_true", help=deep_help)
    inspect.set_defaults(run=_data_inspect, keeps=NOTHING)

    prepare = what.add_parser("prepare", help="write any source as a TFDS data set, to share it")
    prepare.add_argument("--source", type=expand_home, required=True, help=SOURCES)
    prepare.add_argument("--name", required=True, help="the name of the data set")
    prepare.add_argument("--out", type=output_path, required=True, help="the TFDS data_dir; read it as tfds:NAME@OUT")
    _streak_argument(prepare)
    prepare.set_defaults(run=_data_prepare, keeps=NOTHING)

    export = what.add_parser(
        "export", help="write a source as JSON lines and pictures, or tokens as the original's files"
    )
    exported = export.add_mutually_exclusive_group(required=True)
    exported.add_argument("--source", type=expand_home, help=SOURCES)
    tokens_help = "a folder written by run.py pretokenize, exported as token files of the original, OUT/record.json"
    exported.add_argument("--tokens", type=input_path, metavar="FOLDER", help=tokens_help)
    export.add_argument("--out", type=output_path, required=True, help="the folder; read it as OUT/records.jsonl")
    _streak_argument(export)
    export.set_defaults(run=_data_export, keeps=NOTHING)


def _streak_argument(parser: ArgumentParser) -> None:
    limit = "end when so many records in a row are rejected for one cause; 0: never"
    parser.add_argument("--max-consecutive-rejects", type=at_least(0), default=1000, metavar="N", help=limit)


def _data_inspect(options: Namespace) -> int:
    cfg = load_experiment(options.config, [*options.changes, f"data.path={options.path}"]) if options.config else None
    if options.changes and not cfg:
        raise InputError(f"{options.changes[0]} changes a config, but none is given; give it with --config")
    from lumina_jax.progress import waiting

    with waiting(f"loading {options.path}"):
        from convert import load_image_tokenizer
        from lumina_jax.data.inspect import as_text, sheet, tables
        from lumina_jax.data.shards import Shards, check_made_with
        from lumina_jax.storage import atomic_write_text, claim
        from lumina_jax.vocab import Vocab

        folders = [Shards(path.strip(), may_be_empty=True) for path in options.path.split(",")]
    if options.deep and (damaged := _damaged_tokens(folders)):
        print("\n".join(damaged))
        return 1
    command = command_of(options)
    out = results_folder(options.out, SHEET, lambda file: claim(file.parent, [file.name], command))
    with waiting("counting"):
        report = list(tables(folders, cfg and cfg.data, options.seed))
    print(as_text(report))
    tokenizer, vq = options.tokenizer or (cfg and cfg.data.tokenizer), options.vq or (cfg and cfg.vq.path)
    opened = None, None
    if tokenizer and vq:
        tokenizer, vq = fetched_files(tokenizer, vq)
        with waiting(f"loading {vq} and {tokenizer}"):
            opened = Vocab.load(tokenizer), load_image_tokenizer(vq)
        for folder in folders:
            check_made_with(folder.manifest, opened[0], where=str(folder.path))
    else:
        print("no samples without a tokenizer and a VQ model: give them with --tokenizer and --vq, or with --config")
    with waiting("decoding the samples"):
        html = sheet(folders, report, *opened, options.samples, options.seed)
    atomic_write_text(out, html)
    say(out)
    return 0


def _damaged_tokens(folders) -> list[str]:
    """A line for each damaged file of tokens of the Shards ``folders``; says which are verified."""
    from lumina_jax.data.shards import TOKEN_BYTES
    from lumina_jax.data.verify import damaged_shards
    from lumina_jax.progress import ProgressDisplay

    damaged = []
    for folder in folders:
        if not folder.manifest.shard_crc32:
            say(f"{folder.path} was written by an older version, without checksums; pretokenize it again to have them")
            continue
        size = TOKEN_BYTES * folder.manifest.tokens
        with ProgressDisplay(f"verifying {folder.path}", size, unit="MB", unit_size=10**6) as progress:
            found = damaged_shards(folder, progress.advance)
        damaged += found
        if not found:
            say(f"{folder.path}: all {size:,} bytes of tokens are as they were written")
    return damaged


def _data_prepare(options: Namespace) -> None:
    if check_address(options.out):
        raise InputError(
            f"--out {options.out}: TFDS writes its files on a disk; give a local folder and copy it from there"
        )
    from lumina_jax.progress import waiting

    with waiting(f"loading {options.source}"):
        from lumina_jax.data.prepare import prepare
        from lumina_jax.data.sources import open_records

        source = open_records(options.source)
    folder = prepare(source, options.out, options.name, max_consecutive_rejects=options.max_consecutive_rejects)
    say(f"{folder}: read it as tfds:{options.name}@{options.out}")


def _data_export(options: Namespace) -> None:
    from lumina_jax.progress import waiting

    if options.tokens:
        with waiting(f"loading {options.tokens}"):
            from lumina_jax.data.export_tokens import export_tokens
            from lumina_jax.data.shards import Shards

            shards = Shards(options.tokens)
        path = export_tokens(shards, options.out)
        say(f"{path}: {len(shards):,} records; the original's trainer reads it, and so does lumina-tokens:{path}")
        return
    with waiting(f"loading {options.source}"):
        from lumina_jax.data.export import export
        from lumina_jax.data.sources import open_records

        source = open_records(options.source)
    path, good, bad = export(source, options.out, max_consecutive_rejects=options.max_consecutive_rejects)
    say(f"{path}: {good:,} records, {bad:,} rejected")
