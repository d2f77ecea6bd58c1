"""run.py pretokenize: pictures and text to token shards, by one process, by one of many, or by a Beam pipeline."""

import json
from argparse import ArgumentTypeError, Namespace, _SubParsersAction

from lumina_jax.cli.arguments import OutputFile, at, at_least, check_output, expand_home, input_path, seed
from lumina_jax.cli.checks import check_field
from lumina_jax.cli.ending import say
from lumina_jax.cli.experiments import config_arguments, load_experiment
from lumina_jax.cli.hub_fields import fetched_fields
from lumina_jax.cli.processes import worker
from lumina_jax.errors import InputError, prefixed_errors
from lumina_jax.numbers import whole_number


def add_pretokenize(verbs: _SubParsersAction) -> None:
    pretokenize = verbs.add_parser("pretokenize", help="pictures and text to token shards")
    config_arguments(pretokenize)
    sources = "toy:COUNT, omni:COUNT, omni_slow:COUNT, or any kind that lumina_jax/data/SOURCES.md lists"
    pretokenize.add_argument("--source", type=expand_home, required=True, help=sources)
    pretokenize.add_argument("--fit", action="store_true", help="first fit a codebook and a tokenizer to these records")
    pretokenize.add_argument(
        "--base", type=input_path, help="with --fit and omni: the PatchVQ .npz whose codes keep their numbers"
    )
    pretokenize.add_argument("--seed", type=seed, default=0, help="of the crops and of the embedded world's scenes")
    stages = "edges in pixels, read once: data.size S into data.path/S, each (default: the config's data.size)"
    pretokenize.add_argument("--sizes", type=_numbers, metavar="S,S", help=stages)
    limits = "tokens; longer samples are rejected; 0: no limit; with --sizes one or one each (default: what data.buckets hold)"
    pretokenize.add_argument("--max-tokens", type=_numbers, metavar="N", help=limits)
    pretokenize.add_argument(
        "--shard-records", type=at_least(1), default=8192, metavar="N", help="source records per shard"
    )
    share = pretokenize.add_mutually_exclusive_group()
    worker_help = "the shards of process I of N, counted from 0; auto on a TPU pod, Slurm or MPI (default: all shards)"
    share.add_argument("--worker", metavar="I/N", help=worker_help)
    share.add_argument("--shards", metavar="A:B", help="only the shards from A up to, not including, B (default: all)")
    share.add_argument(
        "--runner",
        help="run as an Apache Beam pipeline on this runner: DirectRunner, DataflowRunner (default: without Beam)",
    )
    pretokenize.add_argument(
        "--beam", default="", metavar="OPTIONS", help="with --runner: Beam's options as one string"
    )
    pretokenize.set_defaults(run=_pretokenize, keeps="finished shards are kept; the same command goes on")


def _numbers(text: str) -> list[int]:
    try:
        return [whole_number(word) for word in text.split(",")]
    except InputError as error:
        raise ArgumentTypeError(
            f"{text!r} is not one or more whole numbers with commas, such as 512,768,1024"
        ) from error


def _pretokenize(options: Namespace) -> None:
    cfg = load_experiment(options.config, options.changes)
    if not cfg.data.path or len(cfg.data.paths) > 1:
        raise InputError(f"data.path={cfg.data.path!r}; give the one folder to write the tokens to: data.path=FOLDER")
    check_field("data.path", cfg.data.path, write=True)
    cfg = fetched_fields(cfg)
    for name, address in (("vq.path", OutputFile(cfg.vq.path)), ("data.tokenizer", cfg.data.tokenizer)):
        check_field(name, address, write=options.fit)
    from functools import partial
    from shlex import split

    from lumina_jax.progress import waiting

    with waiting(f"loading {options.source}"):
        from lumina_jax.data.pretokenize import pretokenize_stages, reading
        from lumina_jax.data.sources import TokenSource

        source, sizes = _source(options.source, options.seed, cfg)
    if isinstance(source, TokenSource):
        _check_ready(options, cfg)
    if options.fit:
        _fit(cfg, source, options, sizes)
    stages, shard_slice = _stages(options, cfg, sizes), _shard_slice(options)
    arguments = dict(shard_records=options.shard_records, name=options.source, **reading(cfg.data))
    if options.runner:
        from lumina_jax.data.beam import pretokenize_with_beam

        beam = [f"--runner={options.runner}", *split(options.beam)]
        open_inputs = partial(_open_inputs, options.source, options.seed, cfg)
        manifests = pretokenize_with_beam(open_inputs, stages, options.seed, beam, **arguments)
    else:
        with waiting(f"loading {cfg.vq.path} and {cfg.data.tokenizer}"):
            inputs = _open_inputs(options.source, options.seed, cfg)
        manifests = pretokenize_stages(*inputs, stages, options.seed, shard_slice=shard_slice, **arguments)
    for stage, manifest in zip(stages, manifests, strict=False):
        say(f"{stage.out}: {manifest.kept:,} records, {manifest.tokens:,} tokens, {manifest.rejected:,} rejected")


def _check_ready(options: Namespace, cfg) -> None:
    """Refuses what ready tokens leave nothing to do for, and says what is taken on trust of them."""
    from lumina_jax.progress import print_line

    for given, option in ((options.fit, "--fit"), (options.sizes, "--sizes")):
        if given:
            raise InputError(f"{option} needs pictures, but {options.source} holds ready tokens; leave it out")
    print_line(
        f"{options.source} does not say which VQ model made its tokens: it is assumed to be {cfg.vq.path}, and "
        f"{cfg.data.tokenizer} their tokenizer; what these cannot have made is rejected"
    )


def _open_inputs(spec: str, seed: int, cfg):
    """Source, image tokenizer and text tokenizer, opened in this process; Beam workers call this too."""
    from convert import load_image_tokenizer
    from lumina_jax.vocab import Vocab

    return _source(spec, seed, cfg)[0], load_image_tokenizer(cfg.vq.path), Vocab.load(cfg.data.tokenizer)


def _stages(options: Namespace, cfg, sizes) -> list:
    """The folders to write: data.path, or a subfolder for each of --sizes."""
    from lumina_jax.data.shard_maker import PretokenizeStage
    from lumina_jax.layout import crop_sizes

    if options.sizes and sizes:
        raise InputError(f"--sizes needs pictures to crop, but {options.source} draws them for data.size; leave it out")
    edges = options.sizes or [cfg.data.size]
    limits = options.max_tokens or [0 if options.sizes else cfg.data.buckets[-1] + 1]
    if len(limits) not in (1, len(edges)):
        raise InputError(f"--max-tokens has {len(limits)} numbers for {len(edges)} sizes; give one, or one for each")
    limits = limits * len(edges) if len(limits) == 1 else limits
    path = cfg.data.path.rstrip("/")
    return [
        PretokenizeStage(
            f"{path}/{edge}" if options.sizes else path,
            tuple(sizes or crop_sizes(edge, cfg.data.patch, cfg.data.max_ratio)),
            limit or None,
        )
        for edge, limit in zip(edges, limits, strict=True)
    ]


def _shard_slice(options: Namespace) -> slice:
    """The shards that --worker or --shards assigns to this process."""
    if options.worker:
        index, workers = worker(options.worker)
        return slice(index, None, workers)
    first, sign, last = (options.shards or "0:").partition(":")
    with prefixed_errors(f"--shards {options.shards}: expected A:B, the shards from A up to, not including, B"):
        return slice(whole_number(first), whole_number(last) if last or not sign else None)


def _source(spec: str, seed: int, cfg):
    """The records of --source, and their canvas sizes (width, height), or None for the config's crop sizes."""
    kind, _, count = spec.partition(":")
    if kind == "toy" or kind.startswith("omni"):
        from lumina_jax.toyworld.omni import LESSONS, training_source

        with prefixed_errors(f"--source {spec}: say how many records, as {kind}:10000"):
            count = whole_number(count, 1)
        if kind not in ("toy", *LESSONS):
            raise InputError(f"--source {spec}: no {kind}; choose one of {', '.join(LESSONS)}")
        source = training_source(kind, cfg.data.size, count, seed)
        return source, source.sizes
    from lumina_jax.data.sources import open_source

    return open_source(spec), None


def _fit(cfg, source, options: Namespace, sizes) -> None:
    """Writes vq.path and data.tokenizer, fitted to the pictures and words of ``source``."""
    if cfg.vq.kind != "patch" or not cfg.vq.path or not cfg.data.tokenizer:
        raise InputError("--fit needs vq.kind=patch, vq.path=FILE.npz and data.tokenizer=FOLDER")
    if not cfg.vq.path.endswith(".npz") or at(cfg.vq.path).is_dir():
        raise InputError(
            f"vq.path={cfg.vq.path}: --fit writes a file there; name it, such as vq.path={cfg.vq.path.rstrip('/')}/vq.npz"
        )
    for file in (cfg.vq.path, f"{cfg.data.tokenizer}/tokenizer.json"):
        check_output(str(at(file).parent))
    if options.base and not options.source.startswith("omni"):
        raise InputError(f"--base goes with --source omni:COUNT; {options.source} makes a codebook of its own")
    from convert import load_image_tokenizer
    from lumina_jax.data.fit import claim_fit, drop_unfinished, fit
    from lumina_jax.layout import crop_sizes
    from lumina_jax.model.image_tokenizer import fingerprint
    from lumina_jax.progress import waiting
    from lumina_jax.toyworld.fit import fit_omni, fit_world

    base = load_image_tokenizer(options.base) if options.base else None
    world, fitted_to = options.source.partition(":")[0], {"codes": cfg.vq.codes}
    if sizes:  # the embedded world is fitted to whole, however many records of it are wanted
        fitted_to |= {"world": world.removesuffix("_slow"), "base": fingerprint(base) if base else ""}
    else:
        crops = crop_sizes(cfg.data.size, cfg.data.patch, cfg.data.max_ratio)
        fitted_to |= {
            "source": source.fingerprint,
            "records": len(source),
            "seed": options.seed,
            "sizes": list(map(list, crops)),
        }
    if not claim_fit(cfg.vq, cfg.data, fitted_to):
        say(f"{cfg.vq.path}: fitted to these records already")
    elif sizes:
        with waiting(f"fitting {cfg.vq.path}"):
            fit_world(cfg.vq, cfg.data) if world == "toy" else fit_omni(cfg.vq, cfg.data, base)
    else:
        say(f"{cfg.vq.path}: {json.dumps(fit(source, cfg.vq, cfg.data, options.seed, crops))}")
    drop_unfinished(cfg.vq, cfg.data)
