"""run.py data: inspects tokens before training, prepares sources to share them, exports sources to read and edit."""

from argparse import Namespace, _SubParsersAction
from pathlib import Path

from lumina_jax.cli.arguments import at_least, expand_home, input_path, output_file, output_path, seed
from lumina_jax.cli.experiments import load_experiment
from lumina_jax.errors import InputError


def add_data(verbs: _SubParsersAction) -> None:
    data = verbs.add_parser("data", help="inspect tokens before training; prepare and export sources")
    what = data.add_subparsers(dest="what", required=True, metavar="WHAT")

    inspect = what.add_parser("inspect", help="counts, lengths, batches, mixture, and samples to read")
    inspect.add_argument(
        "path", type=expand_home, help="a folder written by run.py pretokenize, or several with commas between"
    )
    inspect.add_argument("--config", help="a config: its buckets, mixture, tokenizer and VQ model")
    inspect.add_argument("changes", nargs="*", metavar="a.b=value", help="with --config: fields to change")
    inspect.add_argument("--tokenizer", type=input_path, help="tokenizer.json or its folder (default: the config's)")
    inspect.add_argument(
        "--vq", type=input_path, help="vqgan.ckpt, PatchVQ .npz or their folder (default: the config's)"
    )
    inspect.add_argument("--samples", type=at_least(1), default=24, metavar="N", help="records on the sheet")
    inspect.add_argument("--seed", type=seed, default=0, help="of the draw of samples")
    inspect.add_argument("--out", type=output_file, default="out/data.html", help="the HTML file")
    inspect.set_defaults(run=_data_inspect)

    prepare = what.add_parser("prepare", help="write any source as a TFDS data set, to share it")
    prepare.add_argument("--source", type=expand_home, required=True, help="as for run.py pretokenize")
    prepare.add_argument("--name", required=True, help="the name of the data set")
    prepare.add_argument("--out", type=output_path, required=True, help="the TFDS data_dir; read it as tfds:NAME@OUT")
    prepare.set_defaults(run=_data_prepare)

    export = what.add_parser("export", help="write any source as JSON lines and pictures, to read and edit")
    export.add_argument("--source", type=expand_home, required=True, help="as for run.py pretokenize")
    export.add_argument("--out", type=output_path, required=True, help="the folder; read it as OUT/records.jsonl")
    export.set_defaults(run=_data_export)


def _data_inspect(options: Namespace) -> None:
    cfg = load_experiment(options.config, [*options.changes, f"data.path={options.path}"]) if options.config else None
    out = Path(options.out)
    if options.changes and not cfg:
        raise InputError(f"{options.changes[0]} changes a config, but none is given; give it with --config")
    from convert import load_image_tokenizer
    from lumina_jax.data.inspect import as_text, sheet, tables
    from lumina_jax.data.shards import Shards, check_made_with
    from lumina_jax.storage import atomic_write_text, claim
    from lumina_jax.vocab import Vocab

    folders = [Shards(path.strip()) for path in options.path.split(",")]
    report = list(tables(folders, cfg and cfg.data, options.seed))
    print(as_text(report))
    tokenizer, vq = options.tokenizer or (cfg and cfg.data.tokenizer), options.vq or (cfg and cfg.vq.path)
    if not tokenizer or not vq:
        print("no samples without a tokenizer and a VQ model: give them with --tokenizer and --vq, or with --config")
        return
    vocab = Vocab.load(tokenizer)
    for folder in folders:
        check_made_with(folder.manifest, vocab, where=str(folder.path))
    html = sheet(folders, report, vocab, load_image_tokenizer(vq), options.samples, options.seed)
    claim(out.parent, [out.name], "run.py data inspect")
    atomic_write_text(out, html)
    print(out)


def _data_prepare(options: Namespace) -> None:
    from lumina_jax.data.prepare import prepare
    from lumina_jax.data.sources import open_source

    folder = prepare(open_source(options.source), options.out, options.name)
    print(f"{folder}: read it as tfds:{options.name}@{options.out}")


def _data_export(options: Namespace) -> None:
    from lumina_jax.data.export import export
    from lumina_jax.data.sources import open_source

    path, good, bad = export(open_source(options.source), options.out)
    print(f"{path}: {good:,} records, {bad:,} rejected")
