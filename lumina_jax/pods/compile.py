"""Compiles an experiment's programs for a topology without its chips, and estimates their costs; no array is ever allocated.

The programs are those that :mod:`lumina_jax.train.step` and :mod:`lumina_jax.sample.decode` run, with their compiler options.
"""

import functools
import importlib.metadata
import math
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from lumina_jax.config import Experiment, MeshConfig, ModelConfig
from lumina_jax.errors import InputError
from lumina_jax.model.backend import backend
from lumina_jax.model.chameleon import Chameleon
from lumina_jax.model.int4 import quantized_int4
from lumina_jax.model.int8 import quantized
from lumina_jax.model.params import count
from lumina_jax.pods import hlo
from lumina_jax.pods.chips import GIB
from lumina_jax.pods.costs import Costs, HbmUsage, hbm_usage
from lumina_jax.pods.executable import iteration_costs, program_costs
from lumina_jax.pods.links import Place, places
from lumina_jax.pods.topology import Topology
from lumina_jax.sample import decode
from lumina_jax.sample.loop import KNOWN
from lumina_jax.sharding import check_rows, make_mesh, shardings
from lumina_jax.train.compiled_steps import batch_shapes
from lumina_jax.train.step import jitted_step, state_shapes
from lumina_jax.vocab import BEGIN, BEGIN_IMAGE, END_IMAGE, END_OF_LINE, END_OF_TURN, Vocab, image_code_name, size_name

PROGRAMS = ("train", "prefill", "decode")
PROMPT_TOKENS = 128
"""Length of the prompts that sampling is compiled for."""

CHIPS_PER_HOST = 4
"""Sampling splits a model that training does not split (mesh.tensor=1) over the devices of these chips."""


@dataclass(frozen=True)
class Workload:
    """What one run of a program processes: ``rows`` times ``length`` tokens over all devices.

    The other figures are those of one device: ``flops`` that the model needs, recomputation left out (training only), and the
    bytes of ``weights``, ``optimizer`` and ``cache``. ``dtype`` describes the weights, in words.
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
class Compilation:
    """The result of compiling one program.

    ``seconds`` include tracing. ``hbm`` is None when the program does not fit; ``text`` is then the compiler's message instead of
    the HLO. ``needed`` is the HBM in bytes that the program takes, or asked for in vain. ``versions`` are those of the packages
    that compiled it.
    """

    seconds: float
    text: str
    hbm: HbmUsage | None
    needed: float
    versions: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Outcome:
    """One program compiled for one topology; ``costs`` is None when it does not fit. ``mesh`` maps axis to size.

    ``order`` are the places of a slice's devices in the order of the mesh, to which the program's ids refer.
    """

    program: str
    experiment: Experiment
    topology: Topology
    mesh: dict[str, int]
    work: Workload
    compilation: Compilation
    costs: Costs | None
    order: tuple[Place, ...] = ()

    @property
    def free_hbm(self) -> float:
        """Bytes of a device that stay free; negative when the program does not fit."""
        return self.topology.chip.hbm - self.compilation.needed

    @property
    def decode_bound(self) -> float:
        """Seconds to read the weights and a full cache once: a lower bound on a decoding pass."""
        m = self.experiment.model
        embedding = 2 * m.vocab * m.width / self.mesh["tensor"]  # a token reads one row of it
        return (self.work.weights - embedding + self.work.cache) / self.topology.chip.bandwidth

    def mfu(self, seconds: float) -> float:
        """Model FLOPs utilization of a run that takes ``seconds``, between 0 and 1."""
        return self.work.flops / self.topology.chip.flops / seconds


def check_programs(text: str) -> tuple[str, ...]:
    """ "train,decode" -> the names. Raises InputError for an unknown one."""
    names = tuple(text.split(","))
    if unknown := [name for name in names if name not in PROGRAMS]:
        raise InputError(f"--what {text}: no program {unknown[0]!r}; the programs are {', '.join(PROGRAMS)}")
    return names


def compile_programs(
    cfg: Experiment,
    topology: Topology,
    programs: Sequence[str] = PROGRAMS,
    matrices: str = "bfloat16",
    pictures: int = 1,
) -> Iterator[Outcome]:
    """Compiles ``programs`` one after the other; those of sampling have ``matrices`` in bfloat16, int8 or int4, and sample
    ``pictures`` at once with each copy of the model.

    Raises InputError when mesh, batch or model do not divide over the devices, MissingPackageError without libtpu.
    """
    devices = topology.devices()
    if "train" in programs:
        yield compile_train_step(cfg, topology, devices)
    if set(programs) - {"train"}:
        yield from compile_sampling(cfg, topology, devices, programs, matrices, pictures)


def compile_train_step(cfg: Experiment, topology: Topology, devices: list[jax.Device]) -> Outcome:
    """The training step on batches of the longest bucket."""
    mesh = make_mesh(cfg.mesh, devices)
    check_rows(cfg.data.batch // cfg.optim.accumulate, mesh)
    start = time.monotonic()
    state = state_shapes(cfg, mesh)
    rows, length = cfg.data.batch, max(cfg.data.buckets)
    with jax.set_mesh(mesh):
        lowered = jitted_step(cfg, mesh).lower(state, batch_shapes((rows, length), mesh))
    flops = train_flops(cfg, count(state.model), rows, length) / topology.device_count
    work = Workload(rows, length, flops, _bytes_per_device(state.model), _bytes_per_device(state.opt))
    compilation = _compile(lowered, start)
    order = places(mesh.devices.flat)
    costs = program_costs(hlo.parse(compilation.text), topology, order=order) if compilation.hbm else None
    return Outcome("train", cfg, topology, dict(mesh.shape), work, compilation, costs, order)


def compile_sampling(
    cfg: Experiment,
    topology: Topology,
    devices: list[jax.Device],
    programs: Sequence[str],
    matrices: str,
    pictures: int,
) -> Iterator[Outcome]:
    """Prefill, and one pass of the decoding loop, in bfloat16 (the blocks' matrices in ``matrices``).

    The devices form groups that share one model and sample ``pictures`` answers to one prompt. A group has mesh.tensor devices, or,
    when that is 1, as many devices of a host as divide heads, MLP and vocabulary.
    """
    m = cfg.model
    host_share = math.gcd(CHIPS_PER_HOST * topology.chip.devices, len(devices), m.kv_heads, m.mlp, m.vocab)
    tensor = cfg.mesh.tensor if cfg.mesh.tensor > 1 else host_share
    mesh = make_mesh(MeshConfig(replica=-1, fsdp=1, tensor=tensor), devices)
    start = time.monotonic()
    shapes = jax.eval_shape(functools.partial(_sampling_model, cfg.model, matrices))
    model = jax.tree.map(lambda leaf, sharding: leaf.update(sharding=sharding), shapes, shardings(shapes, mesh))
    prompts = [np.zeros(PROMPT_TOKENS, np.int32)] * (pictures * mesh.shape["replica"])
    window = KNOWN if cfg.sample.parallel == "off" else cfg.sample.window or backend(mesh).draft_window
    settings = replace(
        cfg.sample, max_new_tokens=max(max(cfg.data.buckets) - PROMPT_TOKENS - window - cfg.sample.tree, 1)
    )
    lowered = decode.lower(model, prompts, settings, _stand_in_vocab(cfg.vq.codes), mesh)
    rows = len(prompts) * (2 if cfg.sample.guidance != 1 else 1)
    dtype = f"{matrices} and bfloat16" if matrices != "bfloat16" else "bfloat16"
    cache = lowered.cache / topology.device_count
    work = Workload(rows, PROMPT_TOKENS, weights=_bytes_per_device(model), cache=cache, dtype=dtype)
    prefill_costs, order = functools.partial(program_costs, unbounded_trips=0), places(mesh.devices.flat)
    for name, length, estimate in (("prefill", PROMPT_TOKENS, prefill_costs), ("decode", 1, iteration_costs)):
        if name in programs:
            compilation = _compile(getattr(lowered, name), start)
            costs = estimate(hlo.parse(compilation.text), topology, order=order) if compilation.hbm else None
            yield Outcome(
                name, cfg, topology, dict(mesh.shape), replace(work, length=length), compilation, costs, order
            )
        start = time.monotonic()


def _sampling_model(cfg: ModelConfig, matrices: str) -> Chameleon:
    """A model with the dtypes of sampling."""
    model = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), Chameleon(cfg, nnx.Rngs(0)))
    return {"bfloat16": lambda model: model, "int8": quantized, "int4": quantized_int4}[matrices](model)


def train_flops(cfg: Experiment, weights: int, rows: int, length: int) -> float:
    """6 per weight (embedding excluded) and token, plus causal attention, forward and backward, without recomputation."""
    m = cfg.model
    attention = 6 * m.layers * m.heads * m.head_dim * length**2
    return rows * (6 * (weights - m.vocab * m.width) * length + attention)


def _compile(lowered: jax.stages.Lowered, start: float) -> Compilation:
    """Compiles; a program that does not fit is a result, any other error of the compiler is raised."""
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return Compilation(time.monotonic() - start, str(error), None, requested_bytes(str(error)), versions())
    seconds, hbm = time.monotonic() - start, hbm_usage(compiled)
    return Compilation(seconds, compiled.as_text(), hbm, hbm.total, versions())


def versions() -> dict[str, str]:
    """The versions of jax and of the TPU compiler that programs are compiled with here."""
    return {name: importlib.metadata.version(name) for name in ("jax", "libtpu")}


def requested_bytes(message: str) -> float:
    """The HBM in bytes that the compiler's error message names; infinity when it names none."""
    match = re.search(r"Used ([\d.]+)([KMGT]) of|HLO temporaries \(([\d.]+)([KMGT])\)", message)
    if not match:
        return math.inf
    size, unit = (group for group in match.groups() if group)
    return float(size) * GIB * 1024.0 ** ("KMGT".index(unit) - 2)


def _bytes_per_device(tree) -> float:
    """Bytes of a tree of sharded shapes on one device; two int4 numbers share a byte there."""
    sizes = ((math.prod(leaf.sharding.shard_shape(leaf.shape)), leaf.dtype) for leaf in jax.tree.leaves(tree))
    return sum(count * (0.5 if dtype == jnp.int4 else dtype.itemsize) for count, dtype in sizes)


def _stand_in_vocab(codes: int) -> Vocab:
    """A tokenizer with the special tokens that the sampler looks up; their ids do not change the program."""
    names = [BEGIN, BEGIN_IMAGE, END_IMAGE, END_OF_TURN, END_OF_LINE]
    names += [image_code_name(code) for code in range(codes)] + [size_name(units) for units in range(1, 65)]
    return Vocab(Tokenizer(WordLevel({name: index for index, name in enumerate(names)}, unk_token=BEGIN)))
