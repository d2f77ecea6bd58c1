"""Command-line options of a model to sample from, and how it is loaded: folder, tokenizer files, dtype."""

import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from lumina_jax.cli.arguments import HubModel, at, at_least, dtype, model_path, shipped, target_size
from lumina_jax.cli.compiler import compile_cache_arguments, keep_compiled, say_compiler_options
from lumina_jax.errors import InputError, MissingFileError, printable

if TYPE_CHECKING:
    from lumina_jax.config import Experiment, SampleConfig

TOY_MODEL = "assets/toy"
POSITIONS = 4096
"""Chameleon's."""


def model_arguments(parser: ArgumentParser) -> None:
    model_help = f"a run's folder, a checkpoint of any layout, or hf://OWNER/NAME (default: the shipped {TOY_MODEL})"
    parser.add_argument("--model", type=model_path, default=str(shipped(TOY_MODEL)), help=model_help)
    parser.add_argument(
        "--tokenizer", type=model_path, help="tokenizer.json or its folder (default: the one the model names or holds)"
    )
    parser.add_argument("--vq", type=model_path, help="vqgan.ckpt, PatchVQ .npz or their folder (default: likewise)")
    dtype_help = "dtype of the weights: fp32, bf16 or fp16 (default: as they are; on a CPU, where bf16 is slow, fp32)"
    parser.add_argument("--dtype", type=dtype, metavar="NAME", help=dtype_help)
    parser.add_argument("--int8", action="store_true", help="blocks' matrices in int8, which halves the memory to read")
    parser.add_argument("--int4", action="store_true", help="blocks' matrices in int4, a quarter of the memory to read")
    image_layout_argument(parser)
    compile_cache_arguments(parser)


def target_size_argument(parser: ArgumentParser) -> None:
    target_help = (
        "the model's pictures have at most the area of a square of N x N pixels: 512, 768, 1024 ... (default: as its experiment or "
        "metadata say, else as a released name such as Lumina-mGPT-7B-768 tells)"
    )
    parser.add_argument("--target-size", type=target_size, metavar="N", help=target_help)


def tensor_argument(parser: ArgumentParser) -> None:
    tensor_help = "split the model over N devices, answers over the rest (default: one device)"
    parser.add_argument("--tensor", type=at_least(1), metavar="N", help=tensor_help)


@contextmanager
def mesh_of(options: Namespace) -> Iterator:
    """The mesh of --tensor over this host's devices, which is set in the block; None without it: the model is on one device."""
    if options.tensor is None:
        yield None
        return
    import jax

    from lumina_jax.config import MeshConfig
    from lumina_jax.sharding import make_mesh

    devices = jax.local_devices()
    if len(devices) % options.tensor:
        raise InputError(
            f"--tensor {options.tensor} does not divide the {len(devices)} devices of this host; give a number that does, or leave "
            "it out to use one device"
        )
    mesh = make_mesh(MeshConfig(replica=-1, fsdp=1, tensor=options.tensor), devices)
    with jax.set_mesh(mesh):
        yield mesh


def image_layout_argument(parser: ArgumentParser) -> None:
    layout_help = (
        "how the model's pictures stand among its tokens: lumina, any size; chameleon, 512x512, as in Meta's Chameleon (default: "
        "as its metadata say, else by its name or files)"
    )
    parser.add_argument("--image-layout", choices=("lumina", "chameleon"), help=layout_help)


def load_for_sampling(options: Namespace, mesh=None, ahead=None):
    """(Chameleon, Vocab, image tokenizer, Experiment or None) of --model, --tokenizer and --vq; the model is on ``mesh``.

    Without ``mesh`` it is on the first device. ``ahead`` is called with (the form of the model, vocab, image tokenizer, experiment)
    and returns a context in which the weights are read; not for a mesh, and not for int8 and int4, which change the form. Raises
    UserErrors naming what is missing or damaged.
    """
    from lumina_jax.progress import waiting

    if options.int4 and options.int8:
        raise InputError("--int4 --int8: the matrices have one dtype; give one of the two")

    fetch_options(options)
    with waiting(f"loading {options.model}"):
        say_compiler_options()
        keep_compiled(options)
        return _load_for_sampling(options, mesh, ahead)


def _load_for_sampling(options: Namespace, mesh, ahead):
    from contextlib import nullcontext

    import jax

    from convert import load_image_tokenizer, load_model, model_form, tokenizer_files
    from convert.file_sums import check_written
    from convert.metadata import experiment_of
    from convert.pictures import carried_encoder, fitted, image_layout_of, of_tokenizer
    from lumina_jax.progress import waiting
    from lumina_jax.vocab import UNI_REP

    source = open_model(options)
    experiment = experiment_of(source)
    files = tokenizer_files.find(source.folder, experiment, options.tokenizer or "", options.vq or "")
    encoder = None if files.vq else carried_encoder(source)
    if missing := tokenizer_files.notes(files, source.folder, encoder is not None):
        raise MissingFileError("; ".join(missing))
    tokenizer_files.check(files, source.cfg)
    with waiting(f"comparing the checksums of {options.model}"):
        check_written(source.folder, jax.process_index(), jax.process_count())
    wanted = options.dtype or ("float32" if jax.default_backend() == "cpu" else "")  # a CPU is slow in bfloat16
    image_layout = image_layout_of(source, options.image_layout or "").image_layout or UNI_REP
    with waiting(f"reading the tokenizers of {options.model}"):
        form, vocab = model_form(options.model, mesh, wanted), files.vocab()
        vq = encoder or load_image_tokenizer(files.vq)
    compiling = nullcontext()
    if ahead and mesh is None and not (options.int8 or options.int4):
        compiling = ahead(form, vocab.with_images(of_tokenizer(image_layout, vq)), vq, experiment)
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(form))
    amount = f"{size / 1e9:,.1f} GB" if size >= 1e9 else f"{size / 1e6:,.0f} MB"
    with compiling, waiting(f"reading {amount} of weights"):
        model = load_model(options.model, mesh, wanted)[0]
    vocab = vocab.with_images(fitted(image_layout, model, vocab, vq))
    return _quantized(model, vocab, options.int4) if options.int8 or options.int4 else model, vocab, vq, experiment


def _quantized(model, vocab, int4: bool):
    """The model with int8 or int4 matrices; prints how much that changes the logits of a prompt."""
    import numpy as np

    from lumina_jax.conversation import image_prompt, tokenize
    from lumina_jax.model.int4 import quantized_int4
    from lumina_jax.model.int8 import logit_error, quantized

    ids = tokenize([(image_prompt(512, 512, "A lighthouse at dusk, seen from the sea."), None)], [], vocab)[0]
    ids = np.minimum(ids, model.cfg.vocab - 1)[None]
    exact = model.logits(model(ids))
    model = quantized_int4(model, consume=True) if int4 else quantized(model, consume=True)
    print(
        f"{'int4' if int4 else 'int8'} matrices: over a prompt's {ids.size} tokens, {logit_error(exact, model.logits(model(ids)))}"
    )
    return model


def fetch_options(options: Namespace) -> None:
    """Puts what this machine has, or fetches, in the place of --model, --tokenizer and --vq that are hf:// addresses."""
    given = (options.model, options.tokenizer or "", options.vq or "")
    if not any(isinstance(address, HubModel) for address in given):
        return
    from lumina_jax.progress import waiting

    with waiting("loading the converter"):
        from convert.fetch import fetch_model
    local = fetch_model(*given)
    options.asked_model = options.model
    options.model, options.tokenizer, options.vq = local.folder, local.tokenizer, local.vq


def settings_of(experiment: "Experiment | None") -> "SampleConfig":
    """The default SampleConfig of a model: its experiment's, if it has one."""
    from lumina_jax.config import SampleConfig

    return experiment.sample if experiment else SampleConfig()


def origin_of(options: Namespace, model, vq, vocab):
    """The sample.made.PictureOrigin of a loaded model; the shipped one is named from its folder of assets."""
    from lumina_jax import __version__
    from lumina_jax.sample.made import PictureOrigin

    address = str(vars(options).get("asked_model", options.model))  # hf://, not where it was fetched to
    address = TOY_MODEL if address == str(shipped(TOY_MODEL)) else address
    return PictureOrigin.of(address, model, vq, vocab, __version__)


def make_prompt_builder(
    vq, vocab, experiment, forced: bool = True, positions: int = POSITIONS, target: int | None = None
):
    """The PromptBuilder for a model of ``experiment``; ``forced``: a picture and its size are forced token by token.

    ``positions``: how many tokens a model without experiment was trained on. ``target`` in px (:func:`target_size_for`) takes the
    place of the experiment's; without both, the builder refuses what needs one.
    """
    from dataclasses import replace

    from lumina_jax.sample.prompt import PromptBuilder, data_of

    patches, data = experiment is not None and experiment.vq.kind == "patch", experiment.data if experiment else None
    if target:
        data = replace(data, size=target) if data else data_of(target, vq.stride, positions)
    return PromptBuilder(vq, vocab, data, forced, patches, positions)


def target_size_for(options: Namespace, purpose: str, needed: bool = True) -> int | None:
    """The target size of --model in px by --target-size, its metadata or its name; None where its experiment tells it, or nothing,
    and where its pictures have the one size of Chameleon's layout.

    Only headers are read. ``purpose`` is what needs the size, in words; "" for nothing. With one, an assumption or an option that
    contradicts the checkpoint is printed as a line, and an unknown size raises InputError, or is such a line where it may turn out
    not to be ``needed``.
    """
    from lumina_jax.progress import waiting

    fetch_options(options)
    with waiting(f"loading {options.model}"):
        from convert.target_sizes import EXPERIMENT, known_size, target_size_of

        pictures, found = image_layout_for(options), target_size_of(open_model(options), options.target_size)
    if purpose and pictures.line:
        print(printable(pictures.line), file=sys.stderr)
    if pictures.is_chameleon:
        return None
    line = found.line
    try:
        known_size(found, options.model, purpose)
    except InputError as error:
        if purpose and needed:
            raise
        line = str(error)
    if purpose and line:
        print(printable(line), file=sys.stderr)
    return None if found.source == EXPERIMENT else found.size


def image_layout_for(options: Namespace):
    """The convert.pictures.FoundLayout of --model by --image-layout, its metadata, its name or its files; only headers are read."""
    from convert.pictures import image_layout_of

    return image_layout_of(open_model(options), options.image_layout or "", options.target_size)


def list_sizes(options: Namespace) -> int:
    """Prints the (width x height) of --target-size, or of --model, with the tokens of such a picture; no weights are loaded."""
    from lumina_jax.config import DataConfig, VQConfig
    from lumina_jax.layout import CODES_PER_UNIT, crop_sizes, grid_tokens
    from lumina_jax.vocab import CHAMELEON

    if not options.target_size and image_layout_for(options).is_chameleon:
        rows, cols = CHAMELEON.shape
        stride = VQConfig().stride
        print(f"{cols * stride}x{rows * stride} {grid_tokens(rows, cols, CHAMELEON):,} tokens")
        return 0
    data = DataConfig(size=options.target_size) if options.target_size else _data_of_model(options)
    for width, height in crop_sizes(data.size, data.patch, data.max_ratio):
        rows, cols = (side * CODES_PER_UNIT // data.patch for side in (height, width))
        print(f"{width}x{height} {grid_tokens(rows, cols):,} tokens")
    return 0


def _data_of_model(options: Namespace):
    """The DataConfig of --model with its sizes of pictures. Raises InputError where they are unknown."""
    from convert.metadata import experiment_of
    from lumina_jax.config import DataConfig

    target, experiment = target_size_for(options, "--list-sizes"), experiment_of(open_model(options))
    return DataConfig(size=target) if target else experiment.data


def open_model(options: Namespace):
    """The checkpoint of --model; its headers are read. Raises UserErrors naming what is missing or damaged."""
    from convert.convert import open_source

    fetch_options(options)
    folder = at(options.model)
    if not folder.is_dir():
        raise MissingFileError(f"--model {folder}: no such folder; give a run's folder or a checkpoint of any layout")
    return open_source(folder)


def positions_of(options: Namespace) -> int:
    """How many tokens the model of --model was made for, as its config tells; POSITIONS where it tells nothing."""
    settings = open_model(options).settings
    settings = settings.get("settings", settings)  # an imported checkpoint keeps the config of its origin
    return settings.get("max_position_embeddings") or POSITIONS
