"""Command-line options of a model to sample from, and how it is loaded: folder, tokenizer files, dtype."""

from argparse import ArgumentParser, Namespace
from pathlib import Path

from lumina_jax.cli.arguments import REPOSITORY, dtype, input_path
from lumina_jax.errors import MissingFileError

TOY_MODEL = "assets/toy"
POSITIONS = 4096
"""Chameleon's."""


def model_arguments(parser: ArgumentParser) -> None:
    model_help = f"a run's folder or a checkpoint of any layout (default: {TOY_MODEL} of the repository)"
    parser.add_argument("--model", type=input_path, default=str(REPOSITORY / TOY_MODEL), help=model_help)
    parser.add_argument(
        "--tokenizer", type=input_path, help="tokenizer.json or its folder (default: the one the model names or holds)"
    )
    parser.add_argument("--vq", type=input_path, help="vqgan.ckpt, PatchVQ .npz or their folder (default: likewise)")
    dtype_help = "dtype of the weights: fp32, bf16 or fp16 (default: as they are; on a CPU, where bf16 is slow, fp32)"
    parser.add_argument("--dtype", type=dtype, metavar="NAME", help=dtype_help)
    parser.add_argument("--int8", action="store_true", help="blocks' matrices in int8, which halves the memory to read")


def load_for_sampling(options: Namespace, mesh=None):
    """(Chameleon, Vocab, image tokenizer, Experiment or None) of --model, --tokenizer and --vq; the model is on ``mesh``.

    Without ``mesh`` it is on the first device. Raises UserErrors naming what is missing or damaged.
    """
    from lumina_jax.progress import waiting

    with waiting(f"loading {options.model}"):
        return _load_for_sampling(options, mesh)


def _load_for_sampling(options: Namespace, mesh):
    import jax

    from convert import load_image_tokenizer, load_model, tokenizer_files
    from convert.convert import open_source
    from convert.metadata import experiment_of
    from lumina_jax.progress import waiting

    folder = Path(options.model)
    if not folder.is_dir():
        raise MissingFileError(f"--model {folder}: no such folder; give a run's folder or a checkpoint of any layout")
    source = open_source(folder)
    experiment = experiment_of(source)
    files = tokenizer_files.find(source.folder, experiment, options.tokenizer or "", options.vq or "")
    if missing := tokenizer_files.notes(files, source.folder):
        raise MissingFileError("; ".join(missing))
    tokenizer_files.check(files, source.cfg)
    with waiting(f"loading {folder}"):
        wanted = options.dtype or ("float32" if jax.default_backend() == "cpu" else "")
        model, vocab, vq = load_model(folder, mesh, wanted)[0], files.vocab(), load_image_tokenizer(files.vq)
    return _as_int8(model, vocab) if options.int8 else model, vocab, vq, experiment


def _as_int8(model, vocab):
    """The model with int8 matrices; prints how much that changes the logits of a prompt."""
    import numpy as np

    from lumina_jax.conversation import image_prompt, tokenize
    from lumina_jax.model.int8 import logit_error, quantized

    ids = tokenize([(image_prompt(512, 512, "A lighthouse at dusk, seen from the sea."), None)], [], vocab)[0]
    ids = np.minimum(ids, model.cfg.vocab - 1)[None]
    exact = model.logits(model(ids))
    model = quantized(model, consume=True)
    print(f"int8 matrices: over a prompt's {ids.size} tokens, {logit_error(exact, model.logits(model(ids)))}")
    return model


def settings_of(experiment):
    """The default SampleConfig of a model: its experiment's, if it has one."""
    from lumina_jax.config import SampleConfig

    return experiment.sample if experiment else SampleConfig()


def make_prompt_builder(vq, vocab, experiment, forced: bool = True, positions: int = POSITIONS):
    """The PromptBuilder for a model of ``experiment``; ``forced``: a picture and its size are forced token by token.

    ``positions``: how many tokens a model without experiment was trained on.
    """
    from lumina_jax.sample.prompt import PromptBuilder

    patches = experiment is not None and experiment.vq.kind == "patch"
    return PromptBuilder(vq, vocab, experiment.data if experiment else None, forced, patches, positions)


def positions_of(options: Namespace) -> int:
    """How many tokens the model of --model was made for, as its config tells; POSITIONS where it tells nothing."""
    from convert.convert import open_source

    settings = open_source(Path(options.model)).settings
    settings = settings.get("settings", settings)  # an imported checkpoint keeps the config of its origin
    return settings.get("max_position_embeddings") or POSITIONS
