"""A model to sample from: weights, vocabulary, image tokenizer and settings, loaded by what ``run.py sample`` loads them by."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from os import PathLike
from typing import Literal, NoReturn

import jax
from jax.sharding import Mesh

from lumina_jax.cli.models import (
    load_for_sampling,
    make_prompt_builder,
    model_arguments,
    positions_of,
    settings_of,
    target_size_argument,
    target_size_for,
)
from lumina_jax.cli.parser import Parser
from lumina_jax.config import SampleConfig
from lumina_jax.errors import InputError
from lumina_jax.model.chameleon import Chameleon
from lumina_jax.model.image_tokenizer import ImageTokenizer
from lumina_jax.sample.prompt import PromptBuilder
from lumina_jax.vocab import Vocab

Address = str | PathLike[str]
"""A path, or a URL of a kind that ``--model`` takes."""


@dataclass(frozen=True)
class LoadedModel:
    """What :func:`load` returns: the weights, which ``mesh`` they are on (None: the first device), and what belongs to them.

    ``vocab`` turns text into ids and back, ``image_tokenizer`` pictures into codes and back, ``settings`` are the model's own for
    sampling, and ``prompts`` makes its prompts and knows its sizes: ``prompts.sizes`` lists (width, height) in px.
    """

    model: Chameleon
    vocab: Vocab
    image_tokenizer: ImageTokenizer
    settings: SampleConfig
    prompts: PromptBuilder
    mesh: Mesh | None = None

    def on_mesh(self) -> AbstractContextManager[object]:
        """In its block what is computed runs on ``mesh``."""
        return nullcontext() if self.mesh is None else jax.set_mesh(self.mesh)


def load(
    model: Address = "",
    mesh: Mesh | None = None,
    dtype: str = "",
    quantize: Literal["", "int8", "int4"] = "",
    *,
    tokenizer: Address = "",
    vq: Address = "",
    image_layout: Literal["", "lumina", "chameleon"] = "",
    target_size: int | None = None,
) -> LoadedModel:
    """Loads a model: a run's folder, a checkpoint of any layout, or a URL; without one the small model that is shipped.

    The arguments are the options of ``run.py sample`` and mean the same. ``mesh`` splits the weights over its devices
    (lumina_jax.sharding.make_mesh); None puts them on the first. ``dtype`` is fp32, bf16 or fp16; "" leaves the weights as they
    are, but in float32 on a CPU, which is slow in bfloat16. ``quantize`` puts the blocks' matrices into int8 or int4.
    ``tokenizer`` and ``vq`` name the files of vocabulary and image tokenizer where the model neither names nor holds them,
    ``image_layout`` and ``target_size`` (px) what its files do not tell. Compiled programs are kept where the command line keeps
    them (lumina_jax.compile_cache).

    Raises a lumina_jax.errors.UserError that says what is missing, damaged or wrong, before the weights are read.
    """
    named = dict(model=model, tokenizer=tokenizer, vq=vq, dtype=dtype, image_layout=image_layout)
    named["target_size"] = "" if target_size is None else str(target_size)
    words = [f"--{name.replace('_', '-')}={value}" for name, value in named.items() if str(value)]
    if quantize not in ("", "int8", "int4"):
        raise InputError(f"quantize={quantize!r}; give int8, int4, or nothing for weights as they are")
    parser = _Options()
    model_arguments(parser)
    target_size_argument(parser)
    options = parser.parse_args([*words, *[f"--{quantize}"] * bool(quantize)])
    target = target_size_for(options, "", needed=False)
    with nullcontext() if mesh is None else jax.set_mesh(mesh):
        weights, vocab, image_tokenizer, experiment = load_for_sampling(options, mesh)
    prompts = make_prompt_builder(image_tokenizer, vocab, experiment, positions=positions_of(options), target=target)
    return LoadedModel(weights, vocab, image_tokenizer, settings_of(experiment), prompts, mesh)


class _Options(Parser):
    """The options of a model; what argparse has against their values is raised."""

    def __init__(self) -> None:
        super().__init__(prog="load", add_help=False, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        raise InputError(message.removeprefix("argument --"))
