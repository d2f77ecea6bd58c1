"""The command line of lumina_jax: ``python run.py VERB --help``. It joins rooms and holds no mathematics."""

import argparse
import json
import os
import runpy
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent
TOY_MODEL = "assets/toy"
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
    quickstart.set_defaults(run=_quickstart)

    pretokenize = verbs.add_parser("pretokenize", help="pictures and text to token shards")
    _config_arguments(pretokenize)
    pretokenize.add_argument("--source", required=True, help="a JSON or JSONL file of records, or toy:COUNT")
    pretokenize.add_argument("--fit", action="store_true", help="first fit codebook and tokenizer to these records")
    pretokenize.add_argument("--seed", type=int, default=0, help="draws the crops, and the toy world's scenes (0)")
    pretokenize.set_defaults(run=_pretokenize)

    train = verbs.add_parser("train", help="train a config, or go on where it stopped")
    _config_arguments(train)
    _process_arguments(train)
    train.set_defaults(run=_train)

    _add_compile(verbs)
    _add_sample(verbs)
    _add_convert(verbs)
    _add_evaluate(verbs)
    return parser


def _add_compile(verbs: argparse._SubParsersAction) -> None:
    check = verbs.add_parser("compile", help="what a config needs on a TPU pod and how fast it can be, without the pod")
    _config_arguments(check)
    check.add_argument("--topology", required=True, help="chip and slice: v5p:4x4x4, v4:4x4x4, v5e:16x16, v6e:16x16")
    check.add_argument("--slices", type=int, default=1, help="that many of it, joined by the data-center network (1)")
    check.add_argument("--what", default="train,prefill,decode", help="programs, with commas (train,prefill,decode)")
    check.add_argument("--plan", action="store_true", help="try ways to train it, and recommend one")
    check.add_argument("--tries", type=int, default=6, help="with --plan: at most so many compilations (6)")
    check.add_argument("--out", help="also write tables, JSON and the compiled programs into this folder")
    check.set_defaults(run=_compile)


def _add_sample(verbs: argparse._SubParsersAction) -> None:
    sample = verbs.add_parser("sample", help="text to pictures and text")
    _model_arguments(sample)
    sample.add_argument("--prompt", action="append", default=[], help="what to paint; may be given again")
    sample.add_argument("--prompts", help="a file with one prompt a line")
    sample.add_argument(
        "--size", type=_size, help="WIDTHxHEIGHT in pixels (default: a square of the model's training area)"
    )
    sample.add_argument("--free-size", action="store_true", help="say the size in the prompt only; do not force it")
    sample.add_argument("--raw", action="store_true", help="give the prompts as they are: for dialog, without a size")
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
    evaluate.add_argument("--sizes", type=int, default=128, help="with --toy: edge of the canvases' area in px (128)")
    evaluate.add_argument("--pictures", nargs="+", metavar="FILE", help="reconstruct these through the image tokenizer")
    evaluate.add_argument("--seed", type=int, default=0, help="with --toy: other seed, other prompts (0)")
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


def _size(text: str) -> tuple[int, int]:
    width, _, height = text.partition("x")
    if not (width.isdigit() and height.isdigit()):
        raise argparse.ArgumentTypeError(f"{text!r} is not WIDTHxHEIGHT in pixels, such as 96x64")
    return int(width), int(height)


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


def _pretokenize(options) -> None:
    cfg = load_experiment(options.config, options.changes)
    if not cfg.data.path:
        raise ValueError("data.path is empty; say where the tokens go: data.path=FOLDER")
    from lumina_jax.data.pretokenize import pretokenize
    from lumina_jax.vocab import Vocab

    source, sizes = _source(options, cfg)
    if options.fit:
        _fit(cfg, source, options, sizes)
    vocab = Vocab.load(cfg.data.tokenizer)
    vq = load_vq(cfg.vq.path)
    manifest = pretokenize(source, vq, vocab, cfg.data.path, cfg.data, options.seed, sizes=sizes)
    print(f"{cfg.data.path}: {manifest.kept:,} records, {manifest.tokens:,} tokens, {manifest.rejected:,} rejected")


def _source(options, cfg):
    """(records, canvas sizes or None for the config's crops) of --source."""
    kind, _, count = options.source.partition(":")
    if kind == "toy":
        from lumina_jax.toyworld.scenes import MINI
        from lumina_jax.toyworld.source import ToySource, training_sizes

        if not count.isdigit() or int(count) < 1:
            raise ValueError(f"--source {options.source}: say how many scenes, as toy:10000")
        source = ToySource(MINI, training_sizes(cfg.data.size), int(count), options.seed)
        return source, source.sizes
    from lumina_jax.data.sources import JsonSource

    return JsonSource(options.source), None


def _fit(cfg, source, options, sizes) -> None:
    """Writes vq.path and data.tokenizer, fitted to the pictures and words of ``source``."""
    if cfg.vq.kind != "patch" or not cfg.vq.path or not cfg.data.tokenizer:
        raise ValueError("--fit needs vq.kind=patch, vq.path=FILE.npz and data.tokenizer=FOLDER")
    from lumina_jax.toyworld.fit import fit, fit_world

    if options.source.startswith("toy:"):
        fit_world(cfg.vq, cfg.data)
        return
    report = fit(source, cfg.vq, cfg.data, options.seed, sizes)
    print(f"{cfg.vq.path}: {json.dumps(report)}")


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
    for field, value in (("data.path", cfg.data.path), ("data.tokenizer", cfg.data.tokenizer)):
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
    agree(cfg, group, {"tokenizer": vocab.fingerprint, "manifest": to_dict(Shards(cfg.data.path).manifest)})

    host, hosts = data_share(make_mesh(cfg.mesh), jax.process_index())

    def local(start: int):
        return batches(cfg.data.path, cfg.data, vocab, cfg.seed, start, cfg.optim.steps, host, hosts)

    train(cfg, local, group=group)
    if jax.process_index() == 0:
        print(f"{cfg.name}: {cfg.optim.steps} steps done; weights and metrics in {cfg.out}")


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
    found = [report.show(outcome, out) for outcome in outcomes(cfg, target, what)]
    print(f"a run on such a pod wants: export LIBTPU_INIT_ARGS='{libtpu_init_args(target.chip)}'")
    return 0 if all(outcome.costs for outcome in found) else 1


def load_for_sampling(options):
    """(model, vocab, VQ, experiment or None) that --model, --tokenizer and --vq name."""
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
    model, _ = load_model(folder)
    return _for_this_device(model), found.vocab(), load_vq(str(found.vq)), experiment


def _for_this_device(model):
    """float32 on CPU, where bfloat16 is slow; as stored elsewhere."""
    import jax
    import jax.numpy as jnp

    if jax.default_backend() != "cpu":
        return model
    return jax.tree.map(lambda weight: weight.astype(jnp.float32), model)


def _sample(options) -> None:
    prompts = list(options.prompt)
    if options.prompts:
        prompts += [line for line in Path(options.prompts).read_text().splitlines() if line.strip()]
    if not prompts:
        raise ValueError("no prompts; give --prompt TEXT (again for more) or --prompts FILE")
    from lumina_jax.sample.job import Job, check_size, paint

    model, vocab, vq, experiment = load_for_sampling(options)
    data = experiment.data if experiment else None
    size = None
    if not options.raw:
        size = options.size or ((data.size, data.size) if data else (512, 512))
        check_size(size, vq.stride, vocab, data)
    job = Job(tuple(prompts), size, options.seed, _sample_config(options, experiment), options.free_size)
    for path, text in paint(model, vq, vocab, job, Path(options.out), options.grid):
        print(path, text, flush=True)


def _sample_config(options, experiment):
    """The model's own settings of sampling, changed by what the command line says."""
    from dataclasses import replace

    from lumina_jax.config import SampleConfig

    said = dict(
        guidance=options.guidance,
        temperature=options.temperature,
        image_top_k=options.top_k,
        min_p=options.min_p,
        max_new_tokens=options.max_new_tokens,
    )
    own = experiment.sample if experiment else SampleConfig()
    return replace(own, **{name: value for name, value in said.items() if value is not None})


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
    if not (options.data or options.toy or options.pictures):
        raise ValueError("nothing to evaluate; give --data FOLDER, --toy N or --pictures FILE ...")
    model, vocab, vq, experiment = load_for_sampling(options)
    results = {}
    if options.data:
        from lumina_jax.evaluate.heldout import greedy_match, held_out

        results["held_out"] = held_out(model, vocab, options.data)
        if options.greedy:
            results["greedy"] = greedy_match(model, vocab, options.data)
    if options.pictures:
        from lumina_jax.evaluate.reconstruction import reconstruction

        results["reconstruction"] = reconstruction(vq, options.pictures)
    if options.toy:
        from lumina_jax.config import SampleConfig
        from lumina_jax.toyworld.score import score_table

        settings = experiment.sample if experiment else SampleConfig()
        results["toy"] = score_table(model, vq, vocab, settings, options.sizes, options.toy, options.seed)
    print(json.dumps(results, indent=2))


if __name__ == "__main__":
    sys.exit(main())
