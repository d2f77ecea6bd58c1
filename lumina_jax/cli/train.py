"""run.py train: trains a config on the devices of this machine or run. run.py compile: checks it for a pod that is absent."""

import os
from argparse import Namespace, _SubParsersAction
from pathlib import Path
from shlex import quote

from lumina_jax.cli.arguments import at, at_least, output_path
from lumina_jax.cli.checks import check_run
from lumina_jax.cli.compiler import say_compiler_options
from lumina_jax.cli.ending import say
from lumina_jax.cli.experiments import config_arguments, load_experiment
from lumina_jax.cli.hub_fields import fetched_fields
from lumina_jax.cli.processes import join, process_arguments
from lumina_jax.errors import InputError, MissingFileError, interrupted


def add_train(verbs: _SubParsersAction) -> None:
    train = verbs.add_parser("train", help="train a config, or continue it from its newest checkpoint")
    config_arguments(train)
    process_arguments(train)
    train.set_defaults(run=_train, keeps="finished checkpoints are kept; the same command goes on from the newest")


def add_compile(verbs: _SubParsersAction) -> None:
    check = verbs.add_parser("compile", help="what a config needs on a TPU pod and how fast it can be")
    config_arguments(check)
    check.add_argument(
        "--topology", required=True, help="chip and slice: v5p:4x4x4, v4:4x4x4, v5e:16x16, v6e:16x16, tpu7x:4x4x4"
    )
    check.add_argument(
        "--slices", type=at_least(1), default=1, metavar="N", help="number of slices, joined by the data-center network"
    )
    check.add_argument("--what", default="train,prefill,decode", help="programs, with commas")
    check.add_argument("--plan", action="store_true", help="find the fastest mesh, remat and accumulation to train")
    check.add_argument("--int8", action="store_true", help="sampling with int8 matrices, as run.py sample --int8")
    check.add_argument("--int4", action="store_true", help="sampling with int4 matrices, as run.py sample --int4")
    pictures_help = "pictures that the chips of one copy of the model sample at once"
    check.add_argument("--pictures", type=at_least(1), default=1, metavar="N", help=pictures_help)
    check.add_argument(
        "--tries", type=at_least(1), default=6, metavar="N", help="with --plan: the largest number of compilations"
    )
    check.add_argument(
        "--out", type=output_path, help="also write tables, JSON and the compiled programs into this folder"
    )
    check.set_defaults(run=_compile, keeps="finished programs are kept; the same command starts again")


def _train(options: Namespace) -> None:
    from lumina_jax.cluster.slices import on_slices, slice_counts

    cfg = load_experiment(options.config, options.changes)
    keeps = f"finished checkpoints in {cfg.out} are kept; the same command goes on from the newest"
    with interrupted(keeps), join(options, cfg.pod, cfg.name, slice_counts(cfg)) as group:
        cfg = fetched_fields(cfg, options.distributed, trains=True)
        _train_in(group, on_slices(cfg, group.present or cfg.pod.slices), options.config)


def _train_in(group, cfg, config: str) -> None:
    """Trains as one process of the Group ``group``."""
    for field, value in (*(("data.path", path) for path in cfg.data.paths), ("data.tokenizer", cfg.data.tokenizer)):
        # What a store lacks is named where it is read, and nothing is asked of it by every host.
        if not value or (isinstance(at(value), Path) and not Path(value).exists()):
            raise MissingFileError(
                f"{field}={value!r} is not there; make it with run.py pretokenize {quote(config)} --source SOURCE"
            )
    from lumina_jax.progress import waiting

    with waiting("loading the trainer"):
        import jax

        from lumina_jax.cluster.consistency import check_consistency
        from lumina_jax.config import to_dict
        from lumina_jax.data.pipeline import batches, fingerprints_of, record_names
        from lumina_jax.data.shards import Shards
        from lumina_jax.data.token_files import StoreReading
        from lumina_jax.data.verify import TokenCheck
        from lumina_jax.sharding import data_share, make_mesh
        from lumina_jax.train.loop import train
        from lumina_jax.vocab import Vocab

    say_compiler_options()
    if jax.process_index() == 0:
        check_run(cfg)
    if cfg.compile_cache:
        jax.config.update("jax_compilation_cache_dir", cfg.compile_cache)
    with waiting(f"loading {cfg.data.path}"):
        vocab = Vocab.load(cfg.data.tokenizer)
        vocab.check_fits(cfg.model.vocab)
        first, reading = jax.process_index() == 0, StoreReading.of(cfg.data)
        folders = {path: Shards(path, reading=reading, check=first) for path in cfg.data.paths}
        manifests = {path: folder.manifest for path, folder in folders.items()}
        _check_vq(cfg, vocab, manifests)
    contents = {"tokenizer": vocab.fingerprint, "manifests": [to_dict(manifest) for manifest in manifests.values()]}
    check_consistency(cfg, group, contents)

    mesh = make_mesh(cfg.mesh)
    host, hosts = data_share(mesh, jax.process_index())
    group.doing("verifying the tokens")
    check = TokenCheck([*folders.values()], cfg.data.verify_mb, jax.process_index(), jax.process_count())
    with waiting("verifying the tokens"):
        check.before()

    def host_batches(span):
        limits = (span.start, span.stop, host, hosts, span.stages)
        return check.during(batches(cfg.data.path, cfg.data, vocab, cfg.seed, *limits))

    train(
        cfg,
        host_batches,
        group=group,
        folders=fingerprints_of([*folders.values()]),
        record_names=lambda span: record_names(cfg.data, cfg.seed, span),
        watchers=_watchers(cfg, vocab, mesh),
    )
    if jax.process_index() == 0:
        say(f"{cfg.name}: {cfg.optim.steps} steps done; weights and metrics in {cfg.out}")


def _watchers(cfg, vocab, mesh) -> list:
    """What cfg.watch asks for; without it nothing of sampling is imported."""
    if not (cfg.watch.held_out_every or cfg.watch.sheet_every):
        return []
    from convert import load_image_tokenizer
    from lumina_jax.evaluate.while_training import watchers

    return watchers(cfg, vocab, mesh, load_image_tokenizer)


def _check_vq(cfg, vocab, manifests) -> None:
    """Raises InputError when the image tokens were made by another VQ model than that of vq.path."""
    if not cfg.vq.path or not any(manifest.crops for manifest in manifests.values()):
        return
    if not at(cfg.vq.path).exists():
        say(f"vq.path={cfg.vq.path} is not there, so it is not checked that it made the image tokens")
        return
    from convert import load_image_tokenizer
    from lumina_jax.data.shards import check_made_with
    from lumina_jax.model.image_tokenizer import fingerprint

    vq = fingerprint(load_image_tokenizer(cfg.vq.path))
    for path, manifest in manifests.items():
        check_made_with(manifest, vocab, vq, path)


def _compile(options: Namespace) -> int:
    """Compiles for the pod and prints what it costs; exit code 1 when a program does not fit."""
    from lumina_jax.pods import topology

    cfg = load_experiment(options.config, options.changes)
    target = topology.parse(options.topology, options.slices)
    os.environ.update(topology.environment())
    from lumina_jax.progress import waiting

    with waiting("loading JAX"):
        from lumina_jax.pods import plan, report
        from lumina_jax.pods.compile import PROGRAMS, check_programs, compile_programs
        from lumina_jax.pods.compiler import compiler_line

    say(compiler_line())
    out = report.output_folder(options.out) if options.out else None
    if options.plan:
        return 0 if plan.run(cfg, target, options.tries, out) else 1
    programs = check_programs(options.what)
    if options.int8 and options.int4:
        raise InputError("--int4 --int8: the matrices have one dtype; give one of the two")
    matrices = "int8" if options.int8 else "int4" if options.int4 else "bfloat16"
    compiled, outcomes = compile_programs(cfg, target, programs, matrices, options.pictures), []
    for program in filter(programs.__contains__, PROGRAMS):
        with waiting(f"compiling {program}, which takes minutes"):
            outcome = next(compiled)
        outcomes.append(report.show(outcome, out))
    return 0 if all(outcome.costs for outcome in outcomes) else 1
