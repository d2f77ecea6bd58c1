"""Compiles an experiment's programs for a topology and reads the result; no array is ever made.

They are the very programs that :mod:`lumina_jax.train.step` and :mod:`lumina_jax.sample.decode` run.
"""

import functools
import math
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from lumina_jax.batch import Batch
from lumina_jax.config import Experiment, MeshConfig, ModelConfig
from lumina_jax.errors import InputError
from lumina_jax.model.chameleon import Chameleon
from lumina_jax.model.int8 import quantized
from lumina_jax.model.params import count
from lumina_jax.pods import hlo
from lumina_jax.pods.chips import GIB
from lumina_jax.pods.executable import Costs, Memory, costs, memory, round_costs
from lumina_jax.pods.flags import compiler_options
from lumina_jax.pods.topology import Topology
from lumina_jax.sample.decode import WINDOW
from lumina_jax.sample.loop import KNOWN
from lumina_jax.sample.lowering import lower
from lumina_jax.sharding import ROWS, check_rows, make_mesh, shardings
from lumina_jax.train.step import jitted_step, state_shapes
from lumina_jax.vocab import BEGIN, BEGIN_IMAGE, END_IMAGE, END_OF_LINE, END_OF_TURN, Vocab, image_code_name, size_name

PROGRAMS = ("train", "prefill", "decode")
PROMPT = 128
"""Tokens of the prompts that sampling is compiled for."""

HOST = 4
"""Chips of a host, over which sampling splits a model that training keeps whole."""


@dataclass(frozen=True)
class Work:
    """What one run of a program does: ``rows`` times ``length`` tokens over all chips.

    ``flops`` per chip are those the model asks for, recomputation left out (training only). ``weights``, ``optimizer`` and
    ``cache`` are bytes of one chip; ``dtype`` is that of the weights, in words.
    """

    rows: int
    length: int
    flops: float = 0.0
    weights: float = 0.0
    optimizer: float = 0.0
    cache: float = 0.0
    dtype: str = "float32"

    @property
    def tokens(self) -> int:
        return self.rows * self.length


@dataclass(frozen=True)
class Build:
    """A compilation: its ``seconds`` with tracing, and the program's ``text`` and ``memory``; where the compiler refused, how
    many bytes of HBM it wanted (``needed``), and its words as the text.
    """

    seconds: float
    text: str
    memory: Memory | None
    needed: float


@dataclass(frozen=True)
class Outcome:
    """One program on one topology; without ``costs`` it does not fit."""

    what: str
    experiment: Experiment
    topology: Topology
    mesh: dict[str, int]
    work: Work
    build: Build
    costs: Costs | None

    @property
    def spare(self) -> float:
        """HBM bytes of a chip that stay free; negative when the program does not fit."""
        return self.topology.chip.hbm - self.build.needed

    @property
    def bound(self) -> float:
        """Seconds to read the weights and a full cache once, the least a decoded token can take."""
        m = self.experiment.model
        embedding = 2 * m.vocab * m.width / self.mesh["tensor"]  # a token reads one row of it
        return (self.work.weights - embedding + self.work.cache) / self.topology.chip.bandwidth

    def mfu(self, seconds: float) -> float:
        """Share of the chips' peak that the model's own products reach in a run of ``seconds``."""
        return self.work.flops / self.topology.chip.flops / seconds


def check_programs(text: str) -> tuple[str, ...]:
    """ "train,decode" -> the names. Raises ValueError for one that is no program."""
    names = tuple(text.split(","))
    if unknown := [name for name in names if name not in PROGRAMS]:
        raise InputError(f"--what {text}: no program {unknown[0]!r}; they are {', '.join(PROGRAMS)}")
    return names


def outcomes(
    cfg: Experiment, topology: Topology, what: Sequence[str] = PROGRAMS, int8: bool = False
) -> Iterator[Outcome]:
    """Compiles and reads the programs ``what``, one after the other; with ``int8`` those of sampling have int8 matrices.

    Raises ValueError when mesh, batch or model do not divide over the chips, ImportError without libtpu.
    """
    devices = topology.devices()
    if "train" in what:
        yield train_step(cfg, topology, devices)
    if set(what) - {"train"}:
        yield from sampling(cfg, topology, devices, what, int8)


def train_step(cfg: Experiment, topology: Topology, devices: list[jax.Device]) -> Outcome:
    """The training step on batches of the longest bucket."""
    mesh = make_mesh(cfg.mesh, devices)
    check_rows(cfg.data.batch // cfg.optim.accumulate, mesh)
    begin = time.monotonic()
    state = state_shapes(cfg, mesh)
    rows, length = cfg.data.batch, max(cfg.data.buckets)
    part = jax.ShapeDtypeStruct((rows, length), jnp.int32, sharding=NamedSharding(mesh, P(ROWS)))
    batch = Batch(**dict.fromkeys(Batch._fields, part) | {"learn": part.update(dtype=jnp.bool_)})
    with jax.set_mesh(mesh):
        lowered = jitted_step(cfg, mesh).lower(state, batch)
    flops = train_flops(cfg, count(state.model), rows, length) / topology.chips
    work = Work(rows, length, flops, _held(state.model), _held(state.opt))
    build = _build(lowered, topology, begin)
    read = costs(hlo.parse(build.text), topology.chip) if build.memory else None
    return Outcome("train", cfg, topology, dict(mesh.shape), work, build, read)


def sampling(
    cfg: Experiment, topology: Topology, devices: list[jax.Device], what: Sequence[str] = PROGRAMS, int8: bool = False
) -> Iterator[Outcome]:
    """Prefill, and one pass of the loop over tokens: a prompt for each group of chips that shares one model, in bfloat16
    (with ``int8``, the matrices of its blocks in int8).

    A group is mesh.tensor chips; where training does not split over tensor, those of a host that divide heads, MLP and vocabulary.
    """
    m = cfg.model
    tensor = cfg.mesh.tensor if cfg.mesh.tensor > 1 else math.gcd(HOST, len(devices), m.kv_heads, m.mlp, m.vocab)
    mesh = make_mesh(MeshConfig(replica=-1, fsdp=1, tensor=tensor), devices)
    begin = time.monotonic()
    shapes = jax.eval_shape(functools.partial(_stored, cfg.model, int8))
    model = jax.tree.map(lambda leaf, place: leaf.update(sharding=place), shapes, shardings(shapes, mesh))
    prompts = [np.zeros(PROMPT, np.int32)] * mesh.shape["replica"]
    window = KNOWN if cfg.sample.parallel == "off" else cfg.sample.window or WINDOW
    settings = replace(cfg.sample, max_new_tokens=max(max(cfg.data.buckets) - PROMPT - window, 1))
    programs = lower(model, prompts, settings, _stand_in_vocab(cfg.vq.codes), mesh)
    rows = len(prompts) * (2 if cfg.sample.guidance != 1 else 1)
    work = Work(
        rows,
        PROMPT,
        weights=_held(model),
        cache=programs.cache / topology.chips,
        dtype="int8 and bfloat16" if int8 else "bfloat16",
    )
    for name, read in (("prefill", functools.partial(costs, unbounded=0)), ("decode", round_costs)):
        if name in what:
            build = _build(getattr(programs, name), topology, begin)
            found = read(hlo.parse(build.text), topology.chip) if build.memory else None
            done = replace(work, length=PROMPT if name == "prefill" else 1)
            yield Outcome(name, cfg, topology, dict(mesh.shape), done, build, found)
        begin = time.monotonic()


def _stored(cfg: ModelConfig, int8: bool) -> Chameleon:
    """A model as sampling holds it."""
    model = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), Chameleon(cfg, nnx.Rngs(0)))
    return quantized(model) if int8 else model


def train_flops(cfg: Experiment, weights: int, rows: int, length: int) -> float:
    """6 per weight and token, the embedding's left out, and causal attention, forward and backward, nothing twice."""
    m = cfg.model
    attention = 6 * m.layers * m.heads * m.head_dim * length**2
    return rows * (6 * (weights - m.vocab * m.width) * length + attention)


def _build(lowered: jax.stages.Lowered, topology: Topology, begin: float) -> Build:
    """Compiles; that a program does not fit is a result. Other errors of the compiler are raised."""
    try:
        compiled = lowered.compile(compiler_options=compiler_options(topology.chip))
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return Build(time.monotonic() - begin, str(error), None, wanted(str(error)))
    seconds, used = time.monotonic() - begin, memory(compiled)
    return Build(seconds, compiled.as_text(), used, used.total)


def wanted(message: str) -> float:
    """Bytes of HBM that a compiler's refusal names; when it names none, infinity."""
    found = re.search(r"Used ([\d.]+)([KMGT]) of|HLO temporaries \(([\d.]+)([KMGT])\)", message)
    if not found:
        return math.inf
    size, unit = (part for part in found.groups() if part)
    return float(size) * GIB * 1024.0 ** ("KMGT".index(unit) - 2)


def _held(tree) -> float:
    """Bytes of a tree of sharded shapes on one chip."""
    return sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def _stand_in_vocab(codes: int) -> Vocab:
    """A tokenizer with the names the sampler asks for: which ids they have changes nothing in the program."""
    names = [BEGIN, BEGIN_IMAGE, END_IMAGE, END_OF_TURN, END_OF_LINE]
    names += [image_code_name(code) for code in range(codes)] + [size_name(units) for units in range(1, 65)]
    return Vocab(Tokenizer(WordLevel({name: index for index, name in enumerate(names)}, unk_token=BEGIN)))
