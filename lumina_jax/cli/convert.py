"""run.py convert: checkpoints imported, exported, inspected and compared."""

from argparse import ArgumentParser, Namespace, _SubParsersAction

from lumina_jax.cli.arguments import (
    NOTHING,
    HubModel,
    at_least,
    dtype,
    model_path,
    output_path,
    seed,
    target_size,
    tolerance,
)
from lumina_jax.cli.card import card_arguments, card_of
from lumina_jax.cli.checks import check_output_space
from lumina_jax.cli.ending import say
from lumina_jax.cli.models import image_layout_argument
from lumina_jax.cli.processes import join, process_arguments
from lumina_jax.errors import InputError

NOT_MADE = "{target} was not made; the same command starts again"


def add_convert(verbs: _SubParsersAction) -> None:
    convert = verbs.add_parser("convert", help="checkpoints in and out, from any layout to any")
    actions = convert.add_subparsers(dest="action", required=True, metavar="WHAT")

    importer = actions.add_parser("import", help="any checkpoint into lumina_jax's own layout (Orbax)")
    _path_arguments(importer)
    importer.set_defaults(run=_convert, keeps=NOT_MADE, layout="ours", shards=None, bin=False, card=False)

    exporter = actions.add_parser("export", help="any checkpoint, a run's among them, into a layout for PyTorch")
    _path_arguments(exporter)
    layouts = ("hf", "lumina", "meta")
    exporter.add_argument("--layout", choices=layouts, required=True, help="transformers', Lumina-mGPT's or Meta's")
    exporter.add_argument(
        "--shards",
        type=at_least(1),
        metavar="N",
        help="number of files (default: of 5 GB each; Meta: one a QK-norm group)",
    )
    exporter.add_argument("--bin", action="store_true", help="torch's .bin files instead of safetensors")
    card_arguments(exporter)
    exporter.set_defaults(run=_convert, keeps=NOT_MADE)

    inspector = actions.add_parser("inspect", help="what a folder holds, what is missing, and where to put it")
    inspector.add_argument("path", type=model_path, help="a checkpoint's folder, of any layout, or hf://OWNER/NAME")
    deep_help = "read every number and compare it with the checksums; exit code 1 where one changed"
    inspector.add_argument("--deep", action="store_true", help=deep_help)
    inspector.set_defaults(run=_inspect, keeps=NOTHING)

    verifier = actions.add_parser("verify", help="whether two checkpoints are the same model; exit code 1 if not")
    verifier.add_argument("a", type=model_path, metavar="A", help="a checkpoint's folder, of any layout")
    other = "another (default: A itself, its layout's own code against lumina_jax's, layer by layer)"
    verifier.add_argument("b", nargs="?", type=model_path, metavar="B", help=other)
    by_help = "logits: the same tokens through both, each by its layout's code; weights: every number (auto: by memory)"
    verifier.add_argument("--by", choices=("auto", "logits", "weights"), default="auto", help=by_help)
    verifier.add_argument(
        "--tokens",
        type=at_least(1),
        default=32,
        metavar="N",
        help="with logits: length of the two random prompts in tokens",
    )
    verifier.add_argument("--seed", type=seed, default=0, help="with logits: draws the prompts")
    largest = "largest difference allowed, of logits or of weights (default: 5e-4 of logits, 0 of weights)"
    verifier.add_argument("--tolerance", type=tolerance, help=largest)
    verifier.set_defaults(run=_verify, keeps=NOTHING)


def _path_arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "source",
        type=model_path,
        metavar="SRC",
        help="a checkpoint's folder: Hugging Face, Meta's, or a run's; or hf://OWNER/NAME of the hub",
    )
    parser.add_argument("target", type=output_path, metavar="DST", help="the folder to write; it must not exist")
    parser.add_argument(
        "--dtype", type=dtype, metavar="NAME", help="dtype of the weights: fp32, bf16 or fp16 (default: as they are)"
    )
    head_help = "zero the image tokens' rows of the output head: where FP-SFT starts from Chameleon"
    parser.add_argument("--zero-image-head", action="store_true", help=head_help)
    parser.add_argument("--tokenizer", default="", type=model_path, help="a tokenizer that is not near the weights")
    parser.add_argument(
        "--vq", default="", type=model_path, help="a vqgan.ckpt (its .yaml beside it) that is not near the weights"
    )
    size_help = "record that its pictures have at most the area of N x N pixels (default: what it records, or its released name)"
    parser.add_argument("--target-size", type=target_size, metavar="N", help=size_help)
    image_layout_argument(parser)
    process_arguments(parser)


def _convert(options: Namespace) -> None:
    from lumina_jax.config import PodConfig

    o = options
    from lumina_jax.progress import waiting

    given = (o.source, o.tokenizer, o.vq)
    if options.distributed and any(isinstance(address, HubModel) for address in given):
        raise InputError(
            "--distributed with hf://: every host would fetch its own copy; fetch it once by hf download, to a folder that all "
            "hosts see or to a store"
        )
    with join(options, PodConfig(), "convert"):
        with waiting("loading the converter"):
            import jax

            from convert.convert import Target, convert
            from convert.fetch import fetch_model
        if options.distributed and jax.process_index() == 0:
            check_output_space(options.target)
        source = fetch_model(*given, required=False)
        rest = (o.zero_image_head, source.tokenizer, source.vq, o.target_size, o.image_layout or "")
        card = card_of(o, source.folder)
        target = Target(o.layout, o.shards, o.dtype or "", o.bin, *rest)
        notes = convert(source.folder, options.target, target)
        first = jax.process_index() == 0
        written = card.write(options.target) if first and card else []
    if first:
        for line in (options.target, *written, *(f"note: {note}" for note in notes)):
            say(line)


def _inspect(options: Namespace) -> int:
    from lumina_jax.progress import waiting

    with waiting(f"reading {options.path}"):
        from convert.describe import describe
        from convert.fetch import fetch_checkpoint

    path = fetch_checkpoint(options.path)
    with waiting(f"reading {path}"):
        report = describe(path)
    if options.deep:
        from convert.deep import verified

        report = verified(report, path)
    print(report.text())
    return 1 if report.problems else 0


def _verify(options: Namespace) -> int:
    from lumina_jax.progress import waiting

    with waiting("loading the converter"):
        from convert.fetch import fetch_checkpoint
        from convert.verify import verify

    a, b = (address and fetch_checkpoint(address) for address in (options.a, options.b))
    with waiting(f"comparing {a} and {b or 'what lumina_jax makes of it'}"):
        comparison = verify(a, b, options.by, options.tokens, options.seed, options.tolerance)
    print(comparison.text())
    return 0 if comparison.same else 1
