"""The command line of lumina_jax: ``python run.py VERB --help``. It joins rooms and holds no mathematics."""

import argparse
import json
import os
import runpy
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent
TOY_MODEL = "assets/toy"
OMNI_MINUTES = 40
TASK_EXERCISES = 96
DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}


def main(arguments: list[str] | None = None) -> int:
    """Runs one verb and returns the exit code: what a user can mend is one line on stderr and 2."""
    parser = _parser()
    options, rest = parser.parse_known_args(arguments)
    # argparse takes positional arguments in one run only; changes may stand before and after --options.
    if strange := [word for word in rest if word.startswith("-") or "=" not in word or "changes" not in options]:
        parser.error(f"unknown arguments: {' '.join(strange)}; see run.py {options.verb} --help")
    if rest:
        options.changes += rest
    try:
        return options.run(options) or 0
    except (ValueError, OSError, ImportError, FloatingPointError) as error:
        print(f"run.py {options.verb}: {error}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="run.py", description="Lumina-mGPT in JAX: pictures and text in one model.")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")

    quickstart = verbs.add_parser("quickstart", help="train, sample and judge the embedded world; writes report.html")
    quickstart.add_argument(
        "--minutes", type=_positive, default=10, help="budget on 2 cores, compilation included (10)"
    )
    quickstart.add_argument("--out", default="out/quickstart", help="folder of everything it makes (out/quickstart)")
    quickstart.add_argument(
        "--omni",
        type=_positive,
        nargs="?",
        const=OMNI_MINUTES,
        metavar="MINUTES",
        help=f"then go on to one model for all tasks, with a budget of its own ({OMNI_MINUTES}); writes omni/tasks.html",
    )
    quickstart.set_defaults(run=_quickstart)

    _add_pretokenize(verbs)

    grow = verbs.add_parser("grow", help="weights for the larger tokenizer of a config: what its training starts from")
    _config_arguments(grow)
    _model_arguments(grow)
    grow.set_defaults(run=_grow)

    train = verbs.add_parser("train", help="train a config, or go on where it stopped")
    _config_arguments(train)
    _process_arguments(train)
    train.set_defaults(run=_train)

    _add_data(verbs)
    _add_compile(verbs)
    _add_sample(verbs)
    _add_convert(verbs)
    _add_refine(verbs)
    _add_evaluate(verbs)
    return parser


def _add_data(verbs: argparse._SubParsersAction) -> None:
    data = verbs.add_parser("data", help="look at tokens before training, and prepare sources to share them")
    what = data.add_subparsers(dest="what", required=True, metavar="WHAT")

    look = what.add_parser("inspect", help="counts, lengths, batches, mixture, and samples to read")
    look.add_argument("path", help="a folder of run.py pretokenize, or several with commas between")
    look.add_argument("--config", help="a config: its buckets, mixture, tokenizer and VQ model")
    look.add_argument("changes", nargs="*", metavar="a.b=value", help="with --config: fields to change")
    look.add_argument("--tokenizer", help="tokenizer.json or its folder (default: the config's)")
    look.add_argument("--vq", help="vqgan.ckpt, PatchVQ .npz or their folder (default: the config's)")
    look.add_argument("--samples", type=int, default=24, help="records on the sheet (24)")
    look.add_argument("--seed", type=int, default=0, help="draws the samples (0)")
    look.add_argument("--out", default="out/data.html", help="the sheet (out/data.html)")
    look.set_defaults(run=_data_inspect)

    prepare = what.add_parser("prepare", help="any source to a TFDS data set, made once and shared")
    prepare.add_argument("--source", required=True, help="as of run.py pretokenize")
    prepare.add_argument("--name", required=True, help="of the data set")
    prepare.add_argument("--out", required=True, help="the TFDS data_dir; read it as tfds:NAME@OUT")
    prepare.set_defaults(run=_data_prepare)

    export = what.add_parser("export", help="any source to JSON lines and pictures, to read and to edit")
    export.add_argument("--source", required=True, help="as of run.py pretokenize")
    export.add_argument("--out", required=True, help="the folder; read it as OUT/records.jsonl")
    export.set_defaults(run=_data_export)


def _add_pretokenize(verbs: argparse._SubParsersAction) -> None:
    pretokenize = verbs.add_parser("pretokenize", help="pictures and text to token shards")
    _config_arguments(pretokenize)
    pretokenize.add_argument(
        "--source",
        required=True,
        help="toy:COUNT, omni:COUNT, omni_slow:COUNT, or any of lumina_jax.data.sources.open_source",
    )
    pretokenize.add_argument("--fit", action="store_true", help="first fit codebook and tokenizer to these records")
    pretokenize.add_argument("--base", help="with --fit and omni: the PatchVQ .npz whose codes keep their numbers")
    pretokenize.add_argument("--seed", type=int, default=0, help="draws the crops, and the toy world's scenes (0)")
    pretokenize.add_argument(
        "--sizes", type=_numbers, metavar="S,S", help="read once for several stages: data.size S into data.path/S, each"
    )
    pretokenize.add_argument(
        "--max-tokens",
        type=_numbers,
        metavar="N",
        help="reject what takes more tokens; 0 for no limit; with --sizes one for all or one for each (what data.buckets hold)",
    )
    pretokenize.add_argument("--shard-records", type=int, default=8192, help="source records of a shard (8192)")
    share = pretokenize.add_mutually_exclusive_group()
    share.add_argument(
        "--worker", metavar="I/N", help="the share of process I of N, from 0; auto on a TPU pod, Slurm or MPI"
    )
    share.add_argument("--shards", metavar="A:B", help="only the shards from A up to but not with B")
    share.add_argument("--runner", help="run as an Apache Beam pipeline on this runner: DirectRunner, DataflowRunner")
    pretokenize.add_argument(
        "--beam", default="", metavar="OPTIONS", help="with --runner: Beam's own options, as one text"
    )
    pretokenize.set_defaults(run=_pretokenize)


def _add_compile(verbs: argparse._SubParsersAction) -> None:
    check = verbs.add_parser("compile", help="what a config needs on a TPU pod and how fast it can be, without the pod")
    _config_arguments(check)
    check.add_argument("--topology", required=True, help="chip and slice: v5p:4x4x4, v4:4x4x4, v5e:16x16, v6e:16x16")
    check.add_argument("--slices", type=int, default=1, help="that many of it, joined by the data-center network (1)")
    check.add_argument("--what", default="train,prefill,decode", help="programs, with commas (train,prefill,decode)")
    check.add_argument("--plan", action="store_true", help="try ways to train it, and recommend one")
    check.add_argument("--int8", action="store_true", help="sampling with int8 matrices, as run.py sample --int8")
    check.add_argument("--tries", type=int, default=6, help="with --plan: at most so many compilations (6)")
    check.add_argument("--out", help="also write tables, JSON and the compiled programs into this folder")
    check.set_defaults(run=_compile)


def _add_sample(verbs: argparse._SubParsersAction) -> None:
    sample = verbs.add_parser("sample", help="text to pictures and text")
    _model_arguments(sample)
    sample.add_argument("--prompt", action="append", default=[], help="what to paint, or to do; may be given again")
    sample.add_argument(
        "--prompts", metavar="FILE", help="a prompt a line; in .jsonl files an object with prompt, size, task ..."
    )
    sample.add_argument("--task", help="what to do with --image: depth, segmentation, edit, describe ... (generate)")
    sample.add_argument(
        "--image", action="append", default=[], help="a picture for --task or --raw; may be given again"
    )
    sample.add_argument(
        "--size", type=_size, help="WIDTHxHEIGHT in pixels (default: a square of the model's training area)"
    )
    sample.add_argument("--free-size", action="store_true", help="say the size in the prompt only; do not force it")
    sample.add_argument("--raw", action="store_true", help="give the prompts as they are: for dialog, without a size")
    sample.add_argument("--chat", action="store_true", help="talk: a line a turn, pictures where @file.png stands")
    sample.add_argument(
        "--live", action="store_true", help="show one answer as it grows: text here, the picture in live.png"
    )
    sample.add_argument("--per-prompt", type=int, default=1, metavar="N", help="answers to each prompt (1)")
    sample.add_argument(
        "--rows", type=int, default=16, help="answers at work at once; a row that ends takes the next (16)"
    )
    sample.add_argument(
        "--tensor", type=int, metavar="N", help="split the model over N of this host's devices, answers over the others"
    )
    sample.add_argument("--resume", action="store_true", help="go on in a folder that a run of the same command left")
    sample.add_argument(
        "--worker", metavar="I/N", help="the share of process I of N, from 0; auto on a TPU pod, Slurm or MPI"
    )
    sample.add_argument("--seed", type=int, default=0, help="same seed, same pictures (0)")
    sample.add_argument("--guidance", type=float, help="classifier-free guidance scale; 1 is off")
    sample.add_argument("--temperature", type=float, help="below 1 safer, above 1 wilder")
    sample.add_argument("--top-k", type=int, help="image tokens to draw from; 1 is greedy")
    sample.add_argument("--min-p", type=float, help="drop tokens less likely than this share of the likeliest")
    sample.add_argument("--max-new-tokens", type=int, help="longest answer")
    sample.add_argument("--grid", action="store_true", help="also write all pictures on one sheet")
    sample.add_argument("--out", default="out/samples", help="folder for the PNGs (out/samples)")
    sample.set_defaults(run=_sample)


def _add_convert(verbs: argparse._SubParsersAction) -> None:
    convert = verbs.add_parser("convert", help="checkpoints of Chameleon and Lumina-mGPT in and out, any layout to any")
    what = convert.add_subparsers(dest="what", required=True, metavar="WHAT")

    bring = what.add_parser("import", help="any checkpoint into our own layout (Orbax)")
    _path_arguments(bring)
    _process_arguments(bring)
    bring.set_defaults(run=_import)

    send = what.add_parser("export", help="any checkpoint, a run's among them, into a layout for PyTorch")
    _path_arguments(send)
    send.add_argument(
        "--layout",
        choices=("hf", "lumina", "meta"),
        required=True,
        help="transformers, Lumina-mGPT or Meta's Chameleon",
    )
    send.add_argument("--shards", type=int, help="number of files (default: 5 GB each; Meta: one per QK-norm group)")
    send.add_argument("--bin", action="store_true", help="torch's .bin files instead of safetensors")
    _process_arguments(send)
    send.set_defaults(run=_export)

    look = what.add_parser("inspect", help="what a folder holds, what is missing, and where to put it")
    look.add_argument("path", help="a checkpoint's folder, of any layout")
    look.set_defaults(run=_inspect)

    compare = what.add_parser("verify", help="whether two checkpoints are the same model; exit code 1 if not")
    compare.add_argument("a", metavar="A", help="a checkpoint's folder, of any layout")
    compare.add_argument("b", metavar="B", help="another")
    compare.add_argument(
        "--by",
        choices=("auto", "logits", "weights"),
        default="auto",
        help="logits: the same tokens through both, each by the rule of its own layout; weights: number by number, for models "
        "too large for that (auto: logits where they fit)",
    )
    compare.add_argument("--tokens", type=int, default=32, help="with logits: length of the two random prompts (32)")
    compare.add_argument("--seed", type=int, default=0, help="with logits: draws the prompts (0)")
    compare.add_argument("--tolerance", type=float, help="largest difference allowed (logits 5e-4, weights 0)")
    compare.set_defaults(run=_verify)


def _add_refine(verbs: argparse._SubParsersAction) -> None:
    refine = verbs.add_parser("refine", help='pictures through the model\'s "No edit.", measured against the originals')
    _model_arguments(refine)
    refine.add_argument("images", nargs="+", metavar="IMAGE", help="pictures")
    refine.add_argument("--seed", type=int, default=0, help="same seed, same pictures (0)")
    refine.add_argument("--top-k", type=int, default=1, help="image tokens to draw from; 1 is greedy (1)")
    refine.add_argument(
        "--out",
        default="out/refined",
        help="folder for the pictures and for original, decoded and refined side by side",
    )
    refine.set_defaults(run=_refine)


def _add_evaluate(verbs: argparse._SubParsersAction) -> None:
    evaluate = verbs.add_parser("evaluate", help="held-out loss, and how well the tokens of pictures are known")
    _model_arguments(evaluate)
    evaluate.add_argument(
        "--data", help="a folder of run.py pretokenize the model has not seen: loss, accuracy, greedy"
    )
    evaluate.add_argument(
        "--greedy", action="store_true", help="with --data: also paint each prompt greedily and compare"
    )
    evaluate.add_argument(
        "--toy", type=int, metavar="N", help="paint N fresh prompts of the embedded world and judge them"
    )
    evaluate.add_argument(
        "--tasks",
        type=int,
        nargs="?",
        const=TASK_EXERCISES,
        metavar="N",
        help=f"N fresh exercises of every task of the embedded world ({TASK_EXERCISES}): a table, JSON and a sheet",
    )
    evaluate.add_argument(
        "--sizes",
        type=int,
        help="edge of the canvases' area in px (with --toy 128, with --tasks 64, which most records have)",
    )
    evaluate.add_argument("--attention", metavar="PROMPT", help="paint it, and show where its last token looks")
    evaluate.add_argument("--size", type=_size, help="with --attention: WIDTHxHEIGHT in pixels")
    evaluate.add_argument(
        "--out",
        default="out/evaluation",
        help="folder of the sheet of --tasks and the picture of --attention (out/evaluation)",
    )
    evaluate.add_argument("--pictures", nargs="+", metavar="FILE", help="reconstruct these through the image tokenizer")
    evaluate.add_argument("--seed", type=int, default=0, help="with --toy and --tasks: other seed, other prompts (0)")
    evaluate.set_defaults(run=_evaluate)


def _path_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="SRC", help="a checkpoint's folder: Hugging Face, Meta's, or a run's")
    parser.add_argument("target", metavar="DST", help="the folder to write; it must not exist")
    parser.add_argument("--dtype", choices=DTYPES, help="of the weights (default: as they are)")
    parser.add_argument(
        "--zero-image-head",
        action="store_true",
        help="zero the image tokens' rows of the output head: where FP-SFT starts from Chameleon",
    )
    parser.add_argument("--tokenizer", default="", help="a tokenizer that does not lie with the weights")
    parser.add_argument(
        "--vq", default="", help="a vqgan.ckpt (its .yaml beside it) that does not lie with the weights"
    )


def _process_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--distributed", action="store_true", help="join the other processes of the run: all is found on Cloud TPU"
    )
    parser.add_argument("--coordinator", metavar="HOST:PORT", help="elsewhere: where process 0 is to be reached")
    parser.add_argument("--processes", type=int, metavar="N", help="elsewhere: how many there are")
    parser.add_argument("--process", type=int, metavar="I", help="elsewhere: which this is, from 0")


def _config_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", help="a file of configs/, such as configs/toy_stage1.py")
    parser.add_argument("changes", nargs="*", metavar="a.b=value", help="fields to change, such as optim.lr=1e-4")


def _model_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model",
        default=str(REPOSITORY / TOY_MODEL),
        help=f"a run's folder or a checkpoint of any layout ({TOY_MODEL})",
    )
    parser.add_argument("--tokenizer", help="tokenizer.json or its folder (default: the one the model names or holds)")
    parser.add_argument("--vq", help="vqgan.ckpt, PatchVQ .npz or their folder (default: likewise)")
    parser.add_argument(
        "--int8", action="store_true", help="hold the blocks' matrices in int8: half the memory to read"
    )


def _size(text: str) -> tuple[int, int]:
    width, _, height = text.partition("x")
    if not (width.isdigit() and height.isdigit()):
        raise argparse.ArgumentTypeError(f"{text!r} is not WIDTHxHEIGHT in pixels, such as 96x64")
    return int(width), int(height)


def _numbers(text: str) -> list[int]:
    if not all(part.isdigit() for part in text.split(",")):
        raise argparse.ArgumentTypeError(f"{text!r} is not one or more whole numbers with commas, such as 512,768,1024")
    return [int(part) for part in text.split(",")]


def _positive(text: str) -> float:
    value = float(text)
    if value <= 0:
        raise argparse.ArgumentTypeError(f"{text} is not a positive number of minutes")
    return value


def load_experiment(path: str, changes: list[str]):
    """The experiment of a config file with the command line's changes; errors before anything else is imported."""
    from lumina_jax.config import Experiment, override

    file = Path(path)
    if file.suffix != ".py" or not file.is_file():
        known = ", ".join(sorted(str(p) for p in Path("configs").rglob("[a-z]*.py")))
        raise FileNotFoundError(f"no config {path}; the configs here are: {known}")
    experiment = runpy.run_path(str(file)).get("experiment")
    if not isinstance(experiment, Experiment):
        raise ValueError(f"{path} does not end in `experiment = Experiment(...)`")
    return override(experiment, changes)


def _quickstart(options) -> None:
    from lumina_jax.toyworld.quickstart import quickstart

    stages = [load_experiment(str(REPOSITORY / f"configs/toy_stage{n}.py"), []) for n in (1, 2, 3)]
    print(quickstart(stages, Path(options.out), options.minutes))
    if options.omni:
        from lumina_jax.toyworld.omni_quickstart import omni_quickstart

        names = ("toy_omni_first", "toy_omni")
        parts = [load_experiment(str(REPOSITORY / f"configs/{name}.py"), []) for name in names]
        print(omni_quickstart(parts, Path(options.out), options.omni))


def _grow(options) -> None:
    cfg = load_experiment(options.config, options.changes)
    from lumina_jax.toyworld.grow import write_start
    from lumina_jax.vocab import Vocab

    model, old, _, _ = load_for_sampling(options)
    print(write_start(model, old, Vocab.load(cfg.data.tokenizer), cfg))


def _pretokenize(options) -> None:
    cfg = load_experiment(options.config, options.changes)
    if not cfg.data.path or len(cfg.data.paths) > 1:
        raise ValueError(f"data.path={cfg.data.path!r}; say where the tokens go, one folder: data.path=FOLDER")
    from functools import partial
    from shlex import split

    from lumina_jax.data.pretokenize import pretokenize_stages

    source, sizes = _source(options.source, options.seed, cfg)
    if options.fit:
        _fit(cfg, source, options, sizes)
    stages, own = _stages(options, cfg, sizes), _own(options)
    arguments = dict(shard_records=options.shard_records, threads=cfg.data.threads, name=options.source)
    if options.runner:
        from lumina_jax.data.beam import pretokenize_with_beam

        beam = [f"--runner={options.runner}", *split(options.beam)]
        parts = partial(_parts, options.source, options.seed, cfg)
        manifests = pretokenize_with_beam(parts, stages, options.seed, beam, **arguments)
    else:
        parts = _parts(options.source, options.seed, cfg)
        manifests = pretokenize_stages(*parts, stages, options.seed, own=own, **arguments)
    for stage, manifest in zip(stages, manifests, strict=False):
        print(f"{stage.out}: {manifest.kept:,} records, {manifest.tokens:,} tokens, {manifest.rejected:,} rejected")


def _parts(spec: str, seed: int, cfg):
    """(source, VQ model, tokenizer), opened here: a Beam worker calls this too."""
    from lumina_jax.vocab import Vocab

    return _source(spec, seed, cfg)[0], load_vq(cfg.vq.path), Vocab.load(cfg.data.tokenizer)


def _stages(options, cfg, sizes) -> list:
    """The folders to write: data.path, or one in it for each of --sizes."""
    from lumina_jax.data.making import Stage
    from lumina_jax.layout import crop_sizes

    if options.sizes and sizes:
        raise ValueError(f"--sizes goes with pictures to crop; {options.source} draws its own, for data.size")
    edges = options.sizes or [cfg.data.size]
    limits = options.max_tokens or [0 if options.sizes else cfg.data.buckets[-1] + 1]
    if len(limits) not in (1, len(edges)):
        raise ValueError(f"--max-tokens has {len(limits)} numbers for {len(edges)} sizes; give one, or one for each")
    limits = limits * len(edges) if len(limits) == 1 else limits
    place = cfg.data.path.rstrip("/")
    return [
        Stage(
            f"{place}/{edge}" if options.sizes else place,
            tuple(sizes or crop_sizes(edge, cfg.data.patch, cfg.data.max_ratio)),
            limit or None,
        )
        for edge, limit in zip(edges, limits, strict=True)
    ]


def _own(options) -> slice:
    """The shards that --worker or --shards give to this process."""
    if options.worker:
        index, workers = _worker(options.worker)
        return slice(index, None, workers)
    first, sign, last = (options.shards or "0:").partition(":")
    if not sign or not first.isdigit() or (last and not last.isdigit()):
        raise ValueError(f"--shards {options.shards}: expected A:B, the shards from A up to but not with B")
    return slice(int(first), int(last) if last else None)


def _worker(text: str) -> tuple[int, int]:
    """--worker I/N, or auto -> (I, N)."""
    if text == "auto":
        from lumina_jax.config import PodConfig
        from lumina_jax.train.processes import find_place

        try:
            place = find_place(None, None, None, PodConfig().wait)
        except ValueError as error:
            raise ValueError("no TPU pod, Slurm or MPI job is to be found here; give --worker I/N") from error
        return place.index, place.processes
    first, _, last = text.partition("/")
    if not (first.isdigit() and last.isdigit() and int(first) < int(last)):
        raise ValueError(f"{text!r}: expected --worker I/N with I from 0 to N - 1")
    return int(first), int(last)


def _source(spec: str, seed: int, cfg):
    """(records, canvas sizes or None for the config's crops) of --source."""
    kind, _, count = spec.partition(":")
    if kind == "toy":
        from lumina_jax.toyworld.scenes import MINI
        from lumina_jax.toyworld.source import ToySource, training_sizes

        if not count.isdigit() or int(count) < 1:
            raise ValueError(f"--source {spec}: say how many scenes, as toy:10000")
        source = ToySource(MINI, training_sizes(cfg.data.size), int(count), seed)
        return source, source.sizes
    if kind.startswith("omni"):
        from lumina_jax.toyworld.omni import LESSONS, OmniSource
        from lumina_jax.toyworld.scenes import OMNI

        if not count.isdigit() or int(count) < 1:
            raise ValueError(f"--source {spec}: say how many exercises, as omni:10000")
        if kind not in LESSONS:
            raise ValueError(f"--source {spec}: no {kind}; choose one of {', '.join(LESSONS)}")
        source = OmniSource(OMNI, LESSONS[kind].sizes(cfg.data.size), int(count), seed, LESSONS[kind].mix)
        return source, source.sizes
    from lumina_jax.data.sources import open_source

    return open_source(spec, seed), None


def _fit(cfg, source, options, sizes) -> None:
    """Writes vq.path and data.tokenizer, fitted to the pictures and words of ``source``."""
    if cfg.vq.kind != "patch" or not cfg.vq.path or not cfg.data.tokenizer:
        raise ValueError("--fit needs vq.kind=patch, vq.path=FILE.npz and data.tokenizer=FOLDER")
    from lumina_jax.toyworld.fit import fit, fit_world

    if options.source.startswith("omni"):
        from lumina_jax.toyworld.omni_fit import fit_omni

        fit_omni(cfg.vq, cfg.data, load_vq(options.base) if options.base else None)
        return
    if options.base:
        raise ValueError(f"--base goes with --source omni:COUNT; {options.source} makes a codebook of its own")
    if options.source.startswith("toy:"):
        fit_world(cfg.vq, cfg.data)
        return
    report = fit(source, cfg.vq, cfg.data, options.seed, sizes)
    print(f"{cfg.vq.path}: {json.dumps(report)}")


def _data_inspect(options) -> None:
    cfg = load_experiment(options.config, [*options.changes, f"data.path={options.path}"]) if options.config else None
    if options.changes and not cfg:
        raise ValueError(f"{options.changes[0]} changes a config; name it with --config")
    if options.samples < 1:
        raise ValueError(f"--samples {options.samples}; give at least 1")
    from lumina_jax.data.inspect import printed, sheet, tables
    from lumina_jax.data.shards import Shards, check_made_with
    from lumina_jax.vocab import Vocab

    folders = [Shards(path.strip()) for path in options.path.split(",")]
    found = list(tables(folders, cfg and cfg.data, options.seed))
    print(printed(found))
    tokenizer, vq = options.tokenizer or (cfg and cfg.data.tokenizer), options.vq or (cfg and cfg.vq.path)
    if not tokenizer or not vq:
        print("no samples without a tokenizer and a VQ model: name them with --tokenizer and --vq, or with --config")
        return
    vocab = Vocab.load(tokenizer)
    for folder in folders:
        check_made_with(folder.manifest, vocab, where=str(folder.path))
    out = Path(options.out)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(sheet(folders, found, vocab, load_vq(vq), options.samples, options.seed), encoding="utf-8")
    print(out)


def _data_prepare(options) -> None:
    from lumina_jax.data.prepare import prepare
    from lumina_jax.data.sources import open_source

    folder = prepare(open_source(options.source), options.out, options.name)
    print(f"{folder}: read it as tfds:{options.name}@{options.out}")


def _data_export(options) -> None:
    from lumina_jax.data.export import export
    from lumina_jax.data.sources import open_source

    path, good, bad = export(open_source(options.source), options.out)
    print(f"{path}: {good:,} records, {bad:,} rejected")


def load_vq(path: str):
    """The image tokenizer at ``path``: a PatchVQ .npz, a vqgan.ckpt, or a folder that holds either."""
    from lumina_jax.model.patchvq import PatchVQ

    found = Path(path)
    if found.is_dir() and (found / "vq.npz").is_file():
        found = found / "vq.npz"
    if found.suffix == ".npz":
        return PatchVQ.load(found)
    from convert import load_vqvae

    return load_vqvae(found)


def _train(options) -> None:
    cfg = load_experiment(options.config, options.changes)
    with _group(options, cfg.pod) as group:
        _train_in(group, cfg, options.config)


def _group(options, limits):
    """The processes that the command line joins, as a context; without --distributed this one alone."""
    place = (options.coordinator, options.processes, options.process)
    if not options.distributed and any(part is not None for part in place):
        raise ValueError("--coordinator, --processes and --process go with --distributed")
    from contextlib import nullcontext

    from lumina_jax.train.processes import Alone, joined

    return joined(limits, *place) if options.distributed else nullcontext(Alone())


def _train_in(group, cfg, config: str) -> None:
    """Trains as one process of ``group``."""
    for field, value in (*(("data.path", path) for path in cfg.data.paths), ("data.tokenizer", cfg.data.tokenizer)):
        if not value or not Path(value).exists():
            raise FileNotFoundError(f"{field}={value!r} is not there; make it with run.py pretokenize {config}")
    import jax

    if cfg.compile_cache:
        jax.config.update("jax_compilation_cache_dir", cfg.compile_cache)
    from lumina_jax.config import to_dict
    from lumina_jax.data.pipeline import batches
    from lumina_jax.data.shards import Shards
    from lumina_jax.sharding import data_share, make_mesh
    from lumina_jax.train.agreement import agree
    from lumina_jax.train.loop import train
    from lumina_jax.vocab import Vocab

    vocab = Vocab.load(cfg.data.tokenizer)
    vocab.check_fits(cfg.model.vocab)
    manifests = {path: Shards(path).manifest for path in cfg.data.paths}
    _check_vq(cfg, vocab, manifests)
    agree(cfg, group, {"tokenizer": vocab.fingerprint, "manifests": [to_dict(part) for part in manifests.values()]})

    host, hosts = data_share(make_mesh(cfg.mesh), jax.process_index())

    def local(start: int):
        return batches(cfg.data.path, cfg.data, vocab, cfg.seed, start, cfg.optim.steps, host, hosts)

    train(cfg, local, group=group)
    if jax.process_index() == 0:
        print(f"{cfg.name}: {cfg.optim.steps} steps done; weights and metrics in {cfg.out}")


def _check_vq(cfg, vocab, manifests) -> None:
    """Refuses tokens of pictures that another VQ model than that of vq.path has made."""
    if not cfg.vq.path or not any(manifest.crops for manifest in manifests.values()):
        return
    if not Path(cfg.vq.path).exists():
        print(f"vq.path={cfg.vq.path} is not here: whether it made the tokens of the pictures is not known")
        return
    from lumina_jax.data.encode import vq_fingerprint
    from lumina_jax.data.shards import check_made_with

    own = vq_fingerprint(load_vq(cfg.vq.path))
    for path, manifest in manifests.items():
        check_made_with(manifest, vocab, own, path)


def _compile(options) -> int:
    """Exit code 1 when a program does not fit."""
    from lumina_jax.pods import topology

    cfg = load_experiment(options.config, options.changes)
    target = topology.parse(options.topology, options.slices)
    os.environ.update(topology.environment())
    from lumina_jax.pods import plan, report
    from lumina_jax.pods.compile import check_programs, outcomes
    from lumina_jax.pods.flags import libtpu_init_args

    out = Path(options.out) if options.out else None
    if options.plan:
        return 0 if plan.run(cfg, target, options.tries, out) else 1
    what = check_programs(options.what)
    found = [report.show(outcome, out) for outcome in outcomes(cfg, target, what, options.int8)]
    print(f"a run on such a pod wants: export LIBTPU_INIT_ARGS='{libtpu_init_args(target.chip)}'")
    return 0 if all(outcome.costs for outcome in found) else 1


def load_for_sampling(options, mesh=None):
    """(model, vocab, VQ, experiment or None) that --model, --tokenizer and --vq name; the model on ``mesh``."""
    from convert import companions, load_model
    from convert.job import open_source, run_of

    folder = Path(options.model)
    if not folder.is_dir():
        raise FileNotFoundError(f"--model {folder}: no such folder; give a run's folder or a checkpoint of any layout")
    source = open_source(folder)
    experiment = run_of(source)
    found = companions.find(source.folder, experiment, options.tokenizer or "", options.vq or "")
    if missing := companions.notes(found, source.folder):
        raise FileNotFoundError("; ".join(missing))
    companions.check(found, source.cfg)
    model, vocab = _for_this_device(load_model(folder, mesh)[0]), found.vocab()
    return _as_int8(model, vocab) if options.int8 else model, vocab, load_vq(str(found.vq)), experiment


def _for_this_device(model):
    """float32 on CPU, where bfloat16 is slow; as stored elsewhere."""
    import jax
    import jax.numpy as jnp

    if jax.default_backend() != "cpu":
        return model
    return jax.tree.map(lambda weight: weight.astype(jnp.float32), model)


def _as_int8(model, vocab):
    """The model with int8 matrices; says what that does to the logits of a prompt."""
    import numpy as np

    from lumina_jax.conversation import image_prompt, tokenize
    from lumina_jax.model.int8 import logit_error, quantized

    ids = tokenize([(image_prompt(512, 512, "A lighthouse at dusk, seen from the sea."), None)], [], vocab)[0]
    ids = np.minimum(ids, model.cfg.vocab - 1)[None]
    exact = model.logits(model(ids))
    model = quantized(model, consume=True)
    print(f"int8 matrices: over a prompt's {ids.size} tokens, {logit_error(exact, model.logits(model(ids)))}")
    return model


def _sample(options) -> None:
    from lumina_jax.sample.ask import read_lines

    lines = read_lines(Path(options.prompts)) if options.prompts else []
    if not (lines or options.prompt or options.image or options.chat):
        raise ValueError("no prompts; give --prompt TEXT (again for more), --prompts FILE, or --task NAME --image FILE")
    if options.per_prompt < 1 or options.rows < 1:
        raise ValueError(f"--per-prompt {options.per_prompt} --rows {options.rows}; both must be at least 1")
    with _sampling_mesh(options) as mesh:
        model, vocab, vq, experiment = load_for_sampling(options, mesh)
        desk = _desk(vq, vocab, experiment, not options.free_size)
        if options.chat:
            return _chat(model, desk, options, _settings(options, experiment)("describe"))
        _paint(model, desk, options, tuple(_asks(desk, options, lines, _settings(options, experiment))))


def _desk(vq, vocab, experiment, forced: bool = True):
    from lumina_jax.sample.ask import Desk

    patches = experiment is not None and experiment.vq.kind == "patch"
    return Desk(vq, vocab, experiment.data if experiment else None, forced, as_is=patches)


def _asks(desk, options, lines: list[dict], settings) -> list:
    """The prompts of the command line, then those of a file."""
    from lumina_jax.sample.ask import open_image

    images, task = [open_image(Path(file)) for file in options.image], options.task or "generate"
    if options.size and (options.raw or task != "generate"):
        raise ValueError(
            "--size goes with pictures made from text alone; those of other tasks have their picture's size"
        )
    if options.raw:
        asks = [desk.talk(text, images, settings("question")) for text in options.prompt]
    elif task == "generate":
        if images:
            raise ValueError("--image goes with --task or --raw; run.py sample --task depth --image FILE")
        asks = [desk.generate(text, options.size, settings(task)) for text in options.prompt]
    elif options.prompt:
        asks = [desk.task(task, text, images, settings(task)) for text in options.prompt]
    else:
        asks = [desk.task(task, "", [image], settings(task)) for image in images]
    for number, line in enumerate(lines, start=1):
        try:
            asks.append(desk.line(line, Path(options.prompts).parent, settings))
        except ValueError as error:
            raise ValueError(f"{options.prompts}, prompt {number}: {error}") from error
    return asks


def _paint(model, desk, options, asks: tuple) -> None:
    """Answers ``asks`` into --out."""
    from lumina_jax.data.meter import Meter
    from lumina_jax.model.params import fingerprint
    from lumina_jax.sample.job import Job, finished, paint, sheet

    own = _worker(options.worker) if options.worker else (0, 1)
    job = Job(asks, options.seed, options.per_prompt, options.rows, own, fingerprint(model))
    out = Path(options.out)
    if options.live:
        return _live(model, desk, job, out)
    done = finished(job, out) if options.resume else []
    answers = list(done)
    shown = len(job.places) > 1
    with Meter("sampling", len(job.places), shown, unit="answers") as meter:
        meter.skip(len(done))
        for answer in paint(model, desk.vq, desk.vocab, job, out, done):
            answers.append(answer)
            _show(out, job, answer)
            meter.advance(1)
    if options.grid and any(answer.files for answer in answers):
        print(sheet(job, out, answers))


def _show(out: Path, job, answer) -> None:
    text = answer.text or "; ".join(answer.broken)
    for name in answer.files or [job.record]:
        print(out / name, text, flush=True)


def _live(model, desk, job, out: Path) -> None:
    """One answer in sight: text on stdout, each picture in live.png until it is whole."""
    if len(job.places) != 1:
        raise ValueError(f"--live shows one answer, not {len(job.places)}; give one prompt")
    from lumina_jax.sample.live import watch

    (place,) = job.places
    ask = job.asks[place[0]]
    _follow(watch(model, desk.vq, desk.vocab, ask.ids, job.key(place), ask.cfg, size=ask.size), out, job.stem(place))


def _follow(events, out: Path, stem: str) -> None:
    """Prints what is said, and keeps the newest preview of each picture in live.png, the last as STEM-K.png."""
    from lumina_jax.sample.live import Words

    out.mkdir(parents=True, exist_ok=True)
    for event in events:
        if isinstance(event, Words):
            print(event.text, end="", flush=True)
            continue
        event.picture.save(out / "live.tmp.png")
        os.replace(out / "live.tmp.png", out / "live.png")
        print(f"\r{out / 'live.png'}: {event.lines} of {event.of} lines ", end="", file=sys.stderr, flush=True)
        if event.lines == event.of:
            event.picture.save(out / f"{stem}-{event.number}.png")
            print(f"\n{out / f'{stem}-{event.number}.png'}", flush=True)
    print(flush=True)


def _chat(model, desk, options, cfg) -> None:
    """A dialog on stdin and stdout, until an empty line or the end of the input."""
    import re

    import jax

    from lumina_jax.sample.ask import open_image
    from lumina_jax.sample.live import Chat

    chat, turn = Chat(model, desk, jax.random.key(options.seed), cfg), 0
    print("a line is a turn; @file.png in it is a picture; an empty line ends", file=sys.stderr)
    while line := (input("> ") if sys.stdin.isatty() else sys.stdin.readline()).strip():
        try:
            images = [open_image(Path(file)) for file in re.findall(r"@(\S+)", line)]
            _follow(chat.say(re.sub(r"@\S+", "<|image|>", line), images), Path(options.out), f"turn{turn}")
        except ValueError as error:
            print(f"run.py sample: {error}", file=sys.stderr)
            continue
        turn += 1


def _settings(options, experiment):
    """Task -> how it is sampled: the model's own settings, as the task is served, changed by what the command line says."""
    from dataclasses import replace

    from lumina_jax.config import SampleConfig
    from lumina_jax.conversation import TASKS, served

    if options.task and options.task not in TASKS:
        raise ValueError(f"--task {options.task}: the tasks are {', '.join(TASKS)}")
    said = dict(
        guidance=options.guidance,
        temperature=options.temperature,
        image_top_k=options.top_k,
        min_p=options.min_p,
        max_new_tokens=options.max_new_tokens,
    )
    changes = {name: value for name, value in said.items() if value is not None}
    own = experiment.sample if experiment else SampleConfig()
    return lambda task: replace(own if task == "generate" else served(task, own), **changes)


def _sampling_mesh(options):
    """The devices that share the model, as a context; without --tensor one device."""
    from contextlib import contextmanager, nullcontext

    if options.tensor is None:
        return nullcontext()
    import jax

    from lumina_jax.config import MeshConfig
    from lumina_jax.sharding import make_mesh

    mesh = make_mesh(MeshConfig(replica=-1, fsdp=1, tensor=options.tensor), jax.local_devices())

    @contextmanager
    def on():
        with jax.set_mesh(mesh):
            yield mesh

    return on()


def _import(options) -> None:
    _convert(options, "ours")


def _export(options) -> None:
    _convert(options, options.layout, options.shards, options.bin)


def _convert(options, layout: str, shards: int | None = None, binary: bool = False) -> None:
    from lumina_jax.config import PodConfig

    dtype = DTYPES[options.dtype] if options.dtype else ""
    with _group(options, PodConfig()):
        import jax

        from convert.job import Wish, convert

        wish = Wish(layout, shards, dtype, binary, options.zero_image_head, options.tokenizer, options.vq)
        notes = convert(options.source, options.target, wish)
        first = jax.process_index() == 0
    if first:
        print("\n".join([str(Path(options.target)), *(f"note: {note}" for note in notes)]))


def _inspect(options) -> int:
    from convert.inspect import inspect

    report = inspect(options.path)
    print(report.text())
    return 0 if report.whole else 1


def _verify(options) -> int:
    from convert.verify import verify

    verdict = verify(options.a, options.b, options.by, options.tokens, options.seed, options.tolerance)
    print(verdict.text())
    return 0 if verdict.same else 1


def _evaluate(options) -> None:
    if not (options.data or options.toy or options.pictures or options.tasks or options.attention):
        raise ValueError(
            "nothing to evaluate; give --data FOLDER, --toy N, --tasks, --attention PROMPT or --pictures FILE ..."
        )
    model, vocab, vq, experiment = load_for_sampling(options)
    results = {}
    if options.data:
        from lumina_jax.data.encode import vq_fingerprint
        from lumina_jax.evaluate.heldout import greedy_match, held_out

        made_with = vq_fingerprint(vq)
        results["held_out"] = held_out(model, vocab, options.data, vq=made_with)
        if options.greedy:
            results["greedy"] = greedy_match(model, vocab, options.data, vq=made_with)
    if options.pictures:
        from lumina_jax.evaluate.reconstruction import reconstruction

        results["reconstruction"] = reconstruction(vq, options.pictures)
    if options.toy:
        from lumina_jax.config import SampleConfig
        from lumina_jax.toyworld.score import score_table

        settings = experiment.sample if experiment else SampleConfig()
        results["toy"] = score_table(model, vq, vocab, settings, options.sizes or 128, options.toy, options.seed)
    if options.tasks:
        results["tasks"] = _evaluate_tasks(options, model, vocab, vq, experiment)
    if options.attention:
        results["attention"] = _evaluate_attention(options, model, vocab, vq, experiment)
    print(json.dumps(results, indent=2))


def _evaluate_attention(options, model, vocab, vq, experiment) -> dict:
    """Shares by kind of token; the picture goes into --out."""
    import jax

    from lumina_jax.config import SampleConfig
    from lumina_jax.evaluate.attention import drawing, looks
    from lumina_jax.sample import generate
    from lumina_jax.sample.picture import pictures

    desk = _desk(vq, vocab, experiment)
    ask = desk.generate(options.attention, options.size, experiment.sample if experiment else SampleConfig())
    (answer,) = generate(model, [ask.ids], jax.random.key(options.seed), ask.cfg, vocab, sizes=[ask.size])
    found = looks(model, ask.ids, answer, vocab)
    file = Path(options.out) / "attention.png"
    file.parent.mkdir(parents=True, exist_ok=True)
    drawing(found, pictures(answer, vq, vocab)[0]).save(file)
    print(file)
    return found.table()


def _refine(options) -> None:
    from dataclasses import replace

    import jax

    from lumina_jax.config import SampleConfig
    from lumina_jax.conversation import served
    from lumina_jax.evaluate.refine import refine
    from lumina_jax.sample.ask import open_image
    from lumina_jax.sample.picture import grid

    images = {file: open_image(Path(file)) for file in options.images}
    model, vocab, vq, experiment = load_for_sampling(options)
    desk, out, results = _desk(vq, vocab, experiment), Path(options.out), {}
    cfg = replace(served("refine", experiment.sample if experiment else SampleConfig()), image_top_k=options.top_k)
    out.mkdir(parents=True, exist_ok=True)
    for file, image in images.items():
        found = refine(model, desk, image, cfg, jax.random.key(options.seed))
        results[file] = table = found.table()
        found.refined.save(out / f"{Path(file).stem}.png")
        words = (f"{name} {side['psnr_db']:.1f} dB, SSIM {side['ssim']:.3f}" for name, side in table.items())
        sides = [found.original, found.decoded, found.refined]
        grid(sides, columns=3, captions=["original", *words]).save(out / f"{Path(file).stem}-compared.png")
        print(out / f"{Path(file).stem}-compared.png", flush=True)
    print(json.dumps(results, indent=2))


def _evaluate_tasks(options, model, vocab, vq, experiment) -> dict:
    """Every task's scores; the table goes to the screen, the sheet into --out."""
    from lumina_jax.config import SampleConfig
    from lumina_jax.toyworld.source import stage_sizes
    from lumina_jax.toyworld.task_sheet import line, write_sheets
    from lumina_jax.toyworld.tasks import evaluate_tasks

    settings, found = experiment.sample if experiment else SampleConfig(), []
    sizes = stage_sizes(options.sizes or 64)
    for result in evaluate_tasks(model, vq, vocab, settings, sizes, options.tasks, options.seed):
        found.append(result)
        print(f"{result.task}: {line(result.mean)}", flush=True)
    print(write_sheets(found, Path(options.out)))
    return {result.task: result.mean for result in found}


if __name__ == "__main__":
    sys.exit(main())
